//! A ring whose shared memory is written to at random: it may end with an error, but neither
//! panics nor hangs, and never names memory outside the data area.
#![allow(clippy::unwrap_used, reason = "this is a test")]

use std::sync::Arc;

use proptest::prelude::*;
use tcmu::mapping::Mapping;
use tcmu::mock::{Config, Data, MockKernel};
use tcmu::ring::{Command, Completion, Entry, Ring, TmrKind};

const RING_SIZE: u32 = 2048;
const RING_END: usize = 128 + RING_SIZE as usize;

#[derive(Clone, Debug)]
enum Step {
    Submit(usize),
    Notify,
    Write { word: usize, value: u32 },
    Drain,
    Complete(usize),
    Abandon(usize),
    Publish,
    Reopen,
}

/// Values near what could be valid reach further than any others.
fn value() -> impl Strategy<Value = u32> {
    prop_oneof![
        any::<u32>(),
        0..8_u32,
        (0..RING_SIZE / 8).prop_map(|word| word * 8),
        (0..40_u32, 0..8_u32).prop_map(|(words, op)| (words * 8) | op),
        (RING_END as u32 - 64..RING_END as u32 + 64),
        Just(u32::MAX),
    ]
}

/// The mailbox, and the words of entries, whose first ones matter most.
fn word() -> impl Strategy<Value = usize> {
    prop_oneof![
        1 => 0..5_usize,
        1 => Just(16_usize),
        4 => (0..RING_SIZE as usize / 128, 0..16_usize).prop_map(|(e, w)| 32 + e * 32 + w),
        4 => 32..RING_END / 4,
    ]
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0..30_000_usize).prop_map(Step::Submit),
        1 => Just(Step::Notify),
        4 => (word(), value()).prop_map(|(word, value)| Step::Write { word, value }),
        4 => Just(Step::Drain),
        3 => any::<usize>().prop_map(Step::Complete),
        1 => any::<usize>().prop_map(Step::Abandon),
        2 => Just(Step::Publish),
        1 => Just(Step::Reopen),
    ]
}

fn check(memory: &Mapping, command: &Command) {
    assert!(!command.cdb().is_empty() && command.cdb().len() <= 263);
    assert_ne!(command.id(), 0);
    for segment in command.data().iter().chain(command.bidi_in()) {
        memory.check(segment.offset, segment.len).unwrap();
        assert!(segment.offset >= RING_END);
    }
    let data_len: usize = command.data().iter().map(|segment| segment.len).sum();
    assert_eq!(command.data_len(), data_len);
}

/// An honest ring cannot hold more entries than this, and a dishonest one must not seem to.
const MOST_ENTRIES: usize = RING_SIZE as usize / 8;

fn drain(ring: &mut Ring, commands: &mut Vec<Command>) {
    for _ in 0..=MOST_ENTRIES {
        match ring.next() {
            Ok(Some(Entry::Command(command))) => {
                check(ring.memory(), &command);
                commands.push(command);
            }
            Ok(Some(Entry::TaskManagement(notice))) => {
                assert!(notice.commands.len() <= RING_SIZE as usize / 2);
            }
            Ok(None) => return,
            Err(error) => {
                assert_eq!(ring.error(), Some(error));
                return;
            }
        }
    }
    panic!("more entries than the ring can hold");
}

fn run(flags: u16, steps: Vec<Step>) {
    let config = Config {
        ring_size: RING_SIZE,
        flags,
        poison: false,
        ..Config::default()
    };
    let (mut kernel, device) = MockKernel::new(config).unwrap();
    let memory = Arc::clone(device.memory());
    let mut ring = Ring::new(Arc::clone(&memory)).unwrap();
    let mut commands = Vec::new();
    for step in steps {
        match step {
            Step::Submit(len) => {
                let _ = kernel.submit(&[0x28; 10], Data::In(len));
            }
            Step::Notify => {
                let _ = kernel.notify_task_management(TmrKind::LunReset, &[]);
            }
            Step::Write { word, value } => memory.store_u32(word * 4, value).unwrap(),
            Step::Drain => drain(&mut ring, &mut commands),
            Step::Complete(index) if !commands.is_empty() => {
                let command = commands.swap_remove(index % commands.len());
                ring.complete(command, Completion::check_condition(&[0xff; 96]));
            }
            Step::Abandon(index) if !commands.is_empty() => {
                drop(commands.swap_remove(index % commands.len()));
            }
            Step::Complete(_) | Step::Abandon(_) => {}
            Step::Publish => {
                let _ = ring.publish();
                assert_eq!(ring.in_flight(), commands.len());
                let _ = kernel.reap();
            }
            Step::Reopen => {
                if let Ok(fresh) = Ring::new(Arc::clone(&memory)) {
                    ring = fresh;
                    commands.clear();
                }
            }
        }
    }
    for command in commands {
        ring.complete(command, Completion::GOOD);
    }
    let _ = ring.publish();
    assert_eq!(ring.in_flight(), 0);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, ..ProptestConfig::default() })]

    #[test]
    fn random_writes_do_no_harm(
        flags in 0..8_u16,
        steps in prop::collection::vec(step(), 1..120),
    ) {
        run(flags, steps);
    }
}

proptest! {
    // Each case rewrites the whole ring.
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn a_ring_of_noise_does_no_harm(
        noise in prop::collection::vec(value(), RING_END / 4),
        head in (0..RING_SIZE / 8).prop_map(|word| word * 8),
        steps in prop::collection::vec(
            prop_oneof![
                Just(Step::Drain),
                any::<usize>().prop_map(Step::Complete),
                Just(Step::Publish),
                (word(), value()).prop_map(|(word, value)| Step::Write { word, value }),
            ],
            1..40,
        ),
    ) {
        let mut all: Vec<_> = noise
            .into_iter()
            .enumerate()
            .skip(32)
            .map(|(word, value)| Step::Write { word, value })
            .collect();
        all.push(Step::Write { word: 3, value: head });
        all.push(Step::Drain);
        all.extend(steps);
        run(7, all);
    }
}
