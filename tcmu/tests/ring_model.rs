//! The ring against the mock kernel, in any order of events: every command ends exactly once, with
//! its own data and status.
#![allow(clippy::unwrap_used, reason = "this is a test")]

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use proptest::prelude::*;
use tcmu::abi;
use tcmu::mapping::Mapping;
use tcmu::mock::{CommandTag, Config, Data, Finished, MockKernel, SubmitError};
use tcmu::ring::{Command, Completion, Entry, Ring, Segment, TmrKind};

#[derive(Clone, Copy, Debug)]
enum Kind {
    None,
    Out(usize),
    In(usize),
    Bidi(usize, usize),
}

#[derive(Clone, Copy, Debug)]
enum How {
    Good,
    Short(u32),
    Failed,
}

#[derive(Clone, Debug)]
enum Step {
    Submit(Kind, usize),
    Notify(Vec<usize>),
    Fetch,
    Complete(usize, How),
    Abandon(usize),
    Expire(usize),
    Publish,
    Reap,
}

fn kind() -> impl Strategy<Value = Kind> {
    prop_oneof![
        Just(Kind::None),
        (1..20_000_usize).prop_map(Kind::Out),
        (1..20_000_usize).prop_map(Kind::In),
        (1..9000_usize, 1..9000_usize).prop_map(|(out, len_in)| Kind::Bidi(out, len_in)),
    ]
}

fn how() -> impl Strategy<Value = How> {
    prop_oneof![
        Just(How::Good),
        (0..20_000_u32).prop_map(How::Short),
        Just(How::Failed)
    ]
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => (kind(), 10..200_usize).prop_map(|(kind, cdb)| Step::Submit(kind, cdb)),
        1 => prop::collection::vec(any::<usize>(), 0..5).prop_map(Step::Notify),
        8 => Just(Step::Fetch),
        7 => (any::<usize>(), how()).prop_map(|(index, how)| Step::Complete(index, how)),
        1 => any::<usize>().prop_map(Step::Abandon),
        1 => any::<usize>().prop_map(Step::Expire),
        4 => Just(Step::Publish),
        4 => Just(Step::Reap),
    ]
}

/// What the model knows of a command from its submission to its end.
#[derive(Debug)]
struct Known {
    cdb: Vec<u8>,
    kind: Kind,
}

struct World {
    kernel: MockKernel,
    ring: Ring,
    submitted: BTreeMap<CommandTag, Known>,
    /// In the ring, not fetched; `None` is a notice.
    waiting: VecDeque<Option<CommandTag>>,
    fetched: Vec<(CommandTag, Command)>,
    answered: BTreeMap<CommandTag, Finished>,
    expired: BTreeSet<CommandTag>,
    serial: u8,
}

/// The byte that fills a command's buffers, from its serial number.
fn filler(cdb: &[u8]) -> u8 {
    cdb[1]
}

fn fill(memory: &Mapping, segments: &[Segment], byte: u8) {
    for segment in segments {
        memory.fill(segment.offset, segment.len, byte).unwrap();
    }
}

impl World {
    fn new(config: Config) -> Self {
        let (kernel, device) = MockKernel::new(config).unwrap();
        let ring = Ring::new(Arc::clone(device.memory())).unwrap();
        Self {
            kernel,
            ring,
            submitted: BTreeMap::new(),
            waiting: VecDeque::new(),
            fetched: Vec::new(),
            answered: BTreeMap::new(),
            expired: BTreeSet::new(),
            serial: 0,
        }
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Submit(kind, cdb) => self.submit(kind, cdb),
            Step::Notify(indices) => self.notify(&indices),
            Step::Fetch => self.fetch(),
            Step::Complete(index, how) => {
                if !self.fetched.is_empty() {
                    self.complete(index % self.fetched.len(), how);
                }
            }
            Step::Abandon(index) => {
                if !self.fetched.is_empty() {
                    self.abandon(index % self.fetched.len());
                }
            }
            Step::Expire(index) => {
                let tag = self.submitted.keys().nth(index % 8).copied();
                if let Some(finished) = tag.and_then(|tag| self.kernel.expire(tag)) {
                    assert_eq!(Some(finished.tag), tag);
                    assert!(self.expired.insert(finished.tag));
                }
            }
            Step::Publish => self.publish(),
            Step::Reap => self.reap(),
        }
    }

    fn submit(&mut self, kind: Kind, cdb_len: usize) {
        self.serial = self.serial % 100 + 1;
        let mut cdb = vec![self.serial; cdb_len];
        cdb[0] = 0x7f;
        cdb[7] = (cdb_len - 8) as u8;
        let out = |len| vec![self.serial; len];
        let result = match kind {
            Kind::None => self.kernel.submit(&cdb, Data::None),
            Kind::Out(len) => self.kernel.submit(&cdb, Data::Out(&out(len))),
            Kind::In(len) => self.kernel.submit(&cdb, Data::In(len)),
            Kind::Bidi(len, len_in) => self.kernel.submit(
                &cdb,
                Data::Bidi {
                    out: &out(len),
                    len_in,
                },
            ),
        };
        match result {
            Ok(tag) => {
                self.submitted.insert(tag, Known { cdb, kind });
                self.waiting.push_back(Some(tag));
            }
            Err(error) => assert_ne!(error, SubmitError::Broken),
        }
    }

    fn notify(&mut self, indices: &[usize]) {
        let tags: Vec<_> = self.submitted.keys().copied().collect();
        let tags: Vec<_> = indices
            .iter()
            .filter_map(|index| tags.get(index % 8).copied())
            .collect();
        if self
            .kernel
            .notify_task_management(TmrKind::AbortTaskSet, &tags)
            .is_ok()
        {
            self.waiting.push_back(None);
        }
    }

    fn fetch(&mut self) {
        assert_eq!(self.ring.has_new(), !self.waiting.is_empty());
        match (self.ring.next().unwrap(), self.waiting.pop_front()) {
            (None, None) => {}
            (Some(Entry::TaskManagement(notice)), Some(None)) => {
                assert_eq!(notice.kind, TmrKind::AbortTaskSet);
            }
            (Some(Entry::Command(command)), Some(Some(tag))) => {
                let known = &self.submitted[&tag];
                assert_eq!(**command.cdb(), *known.cdb);
                let (data_len, bidi_len) = match known.kind {
                    Kind::None => (0, 0),
                    Kind::Out(len) | Kind::In(len) => (len, 0),
                    Kind::Bidi(out, len_in) => (out, len_in),
                };
                assert_eq!(command.data_len(), data_len);
                assert_eq!(
                    command.bidi_in().iter().map(|s| s.len).sum::<usize>(),
                    bidi_len
                );
                if let Kind::Out(_) | Kind::Bidi(..) = known.kind {
                    for segment in command.data() {
                        let mut data = vec![0; segment.len];
                        self.ring.memory().read(segment.offset, &mut data).unwrap();
                        assert!(data.iter().all(|byte| *byte == filler(&known.cdb)));
                    }
                }
                self.fetched.push((tag, command));
            }
            (found, expected) => panic!("found {found:?} instead of {expected:?}"),
        }
    }

    fn complete(&mut self, index: usize, how: How) {
        let (tag, command) = self.fetched.swap_remove(index);
        let known = &self.submitted[&tag];
        let byte = filler(&known.cdb);
        let mut expected = Finished {
            tag,
            status: 0,
            sense: vec![],
            data_in: vec![],
            read_len: None,
        };
        match known.kind {
            Kind::None | Kind::Out(_) => {}
            Kind::In(len) => {
                fill(self.ring.memory(), command.data(), byte);
                expected.data_in = vec![byte; len];
            }
            Kind::Bidi(_, len_in) => {
                fill(self.ring.memory(), command.bidi_in(), byte);
                expected.data_in = vec![byte; len_in];
            }
        }
        let sense = [byte; 20];
        let completion = match how {
            How::Good => Completion::GOOD,
            How::Short(len) => {
                match known.kind {
                    Kind::In(whole) if self.ring.read_len() && len > 0 => {
                        let len = (len as usize).min(whole);
                        expected.data_in.truncate(len);
                        expected.read_len = Some(len as u32);
                    }
                    _ => {}
                }
                Completion {
                    read_len: Some(len),
                    ..Completion::GOOD
                }
            }
            How::Failed => {
                expected.status = 2;
                expected.sense = sense.to_vec();
                expected.sense.resize(abi::SENSE_LEN, 0);
                expected.data_in.clear();
                Completion::check_condition(&sense)
            }
        };
        self.ring.complete(command, completion);
        self.answered.insert(tag, expected);
    }

    fn abandon(&mut self, index: usize) {
        let (tag, command) = self.fetched.swap_remove(index);
        drop(command);
        let mut sense = vec![0x70, 0, 4, 0, 0, 0, 0, 10, 0, 0, 0, 0, 0x44];
        sense.resize(abi::SENSE_LEN, 0);
        let expected = Finished {
            tag,
            status: 2,
            sense,
            data_in: vec![],
            read_len: None,
        };
        self.answered.insert(tag, expected);
    }

    fn publish(&mut self) {
        let _ = self.ring.publish();
        assert_eq!(self.ring.in_flight(), self.fetched.len());
    }

    fn reap(&mut self) {
        for finished in self.kernel.reap() {
            let tag = finished.tag;
            assert!(
                self.submitted.remove(&tag).is_some(),
                "{tag:?} ends only once"
            );
            assert!(!self.expired.contains(&tag));
            assert_eq!(self.answered.remove(&tag), Some(finished));
        }
        assert_eq!(self.kernel.broken(), None);
    }

    fn finish(mut self) {
        while !self.waiting.is_empty() {
            self.fetch();
        }
        self.fetch();
        while !self.fetched.is_empty() {
            self.complete(0, How::Good);
        }
        self.publish();
        self.reap();
        assert_eq!(self.kernel.in_flight(), 0);
        assert_eq!(self.kernel.late_completions(), self.expired.len() as u64);
        assert!(self.answered.keys().all(|tag| self.expired.contains(tag)));
        assert_eq!(self.kernel.late_writes(), 0);
        assert_eq!(self.ring.malformed(), 0);
        assert!(!self.ring.publish());
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn every_command_ends_once_with_its_own_data(
        ring_size in 100..1000_u32,
        blocks in 6..64_usize,
        flags in 0..8_u16,
        steps in prop::collection::vec(step(), 1..300),
    ) {
        let config = Config { ring_size: ring_size * 8, blocks, flags, ..Config::default() };
        let mut world = World::new(config);
        for step in steps {
            world.step(step);
        }
        world.finish();
    }
}
