//! A process is killed at each single store that it makes, and a successor goes on.

use std::collections::BTreeMap;
use std::fs::File;

use super::*;
use crate::mapping::tests::Fuse;
use crate::ring::recovery::{Mismatch, Owner, Table};

const OWNER: Owner = [7; 32];
const NEVER: usize = usize::MAX / 2;

/// Small enough that ring and data area are full again and again.
fn config() -> Config {
    Config {
        ring_size: 2008,
        blocks: 24,
        ..Config::default()
    }
}

fn random(state: &mut u64, below: usize) -> usize {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    (*state >> 11) as usize % below
}

/// What a command asks for, and what has to come back.
struct Expected {
    byte: u8,
    out: bool,
    len_in: usize,
    malformed: bool,
}

struct World {
    kernel: MockKernel,
    table: File,
    expected: BTreeMap<CommandTag, Expected>,
    serial: u8,
}

/// One process that serves the device.
struct Process {
    ring: Ring,
    fuse: Arc<Fuse>,
    fetched: Vec<Command>,
    phases: BTreeMap<u16, u64>,
}

impl World {
    fn new() -> Self {
        let (mut kernel, device) = MockKernel::new(config()).unwrap();
        let table = tempfile::tempfile().unwrap();
        Table::create(table.try_clone().unwrap(), &OWNER, device.memory()).unwrap();
        kernel.reopen().unwrap();
        Self {
            kernel,
            table,
            expected: BTreeMap::new(),
            serial: 0,
        }
    }

    /// Starts a process that is killed after so many stores.
    fn start(&mut self, stores: usize) -> Process {
        let fuse = Fuse::new(stores);
        let device = self.kernel.reopen().unwrap();
        let mapping = Arc::into_inner(device.into_memory()).unwrap();
        let mapping = Arc::new(mapping.with_fuse(&fuse));
        let table = Table::open(self.table.try_clone().unwrap(), &OWNER, &mapping).unwrap();
        let (count, _) = table.check(&mapping).unwrap();
        let (ring, interrupted) = Ring::with_table(mapping, table.with_fuse(&fuse)).unwrap();
        assert!(interrupted.len() <= count);
        let mut process = Process {
            ring,
            fuse,
            fetched: Vec::new(),
            phases: BTreeMap::new(),
        };
        for found in interrupted {
            process.phases.insert(found.command.id(), found.phase);
            self.check_request(&process, &found.command);
            process.fetched.push(found.command);
        }
        process
    }

    fn submit(&mut self, seed: &mut u64) {
        self.serial = self.serial % 200 + 1;
        let byte = self.serial;
        let mut cdb = vec![byte; [16, 32, 40, 200][random(seed, 4)]];
        cdb[0] = 0x7f;
        cdb[7] = (cdb.len() - 8) as u8;
        let out = vec![byte; 1 + random(seed, 12_000)];
        let len_in = 1 + random(seed, 12_000);
        let (data, len_in) = match random(seed, 4) {
            0 => (Data::None, 0),
            1 => (Data::Out(&out), 0),
            2 => (Data::In(len_in), len_in),
            _ => (Data::Bidi { out: &out, len_in }, len_in),
        };
        let at = 128 + head(self.kernel.memory()) as usize;
        // Full or too big for this small ring.
        let Ok(tag) = self.kernel.submit(&cdb, data) else {
            return;
        };
        let cdb_off = at + offset_of!(abi::CommandRequest, cdb_off);
        let is_here = self.kernel.memory().load_u32(at).unwrap() & abi::OP_MASK == abi::OP_CMD;
        let malformed = random(seed, 8) == 0 && is_here;
        if malformed {
            self.kernel.memory().store_u64(cdb_off, 0).unwrap();
        }
        let out = matches!(data, Data::Out(_) | Data::Bidi { .. });
        self.expected.insert(
            tag,
            Expected {
                byte,
                out,
                len_in,
                malformed,
            },
        );
    }

    /// The kernel takes what is published; each command ends once, as it should.
    fn reap(&mut self) {
        for finished in self.kernel.reap() {
            let expected = self.expected.remove(&finished.tag).expect("ended twice");
            if expected.malformed {
                assert!(is_internal_target_failure(&finished));
                continue;
            }
            assert_eq!(finished.status, expected.byte & 0x7e);
            if finished.status != Status::CheckCondition.code() {
                assert_eq!(finished.data_in, vec![expected.byte; expected.len_in]);
            }
        }
        assert_eq!(self.kernel.broken(), None);
    }

    /// A command is what its initiator sent, with its data, whoever fetched it.
    fn check_request(&self, process: &Process, command: &Command) {
        let byte = command.cdb()[1];
        assert!(command.cdb()[8..].iter().all(|other| *other == byte));
        let mut with_byte = self.expected.values().filter(|known| known.byte == byte);
        let known = with_byte.next().expect("a command that has ended");
        if known.out {
            let data = read_segments(process.ring.memory(), command.data());
            assert!(data.iter().all(|other| *other == byte));
        }
    }
}

impl Process {
    fn is_dead(&self) -> bool {
        self.fuse.left() == 0
    }

    fn fetch(&mut self, world: &World) {
        while let Some(entry) = self.ring.next().unwrap() {
            if let Entry::Command(command) = entry {
                // One that is dead may see what its own stores would have prevented.
                if !self.is_dead() {
                    world.check_request(self, &command);
                    self.phases.remove(&command.id());
                }
                self.fetched.push(command);
            }
        }
    }

    fn complete(&mut self, index: usize) {
        let command = self.fetched.swap_remove(index);
        let byte = command.cdb()[1];
        let data_in = if command.bidi_in().is_empty() {
            command.data()
        } else {
            command.bidi_in()
        };
        // A data-out buffer may be written to as well: it is the same byte.
        write_segments(self.ring.memory(), data_in, byte);
        let completion = Completion {
            status: byte & 0x7e,
            sense: &[],
            read_len: None,
        };
        self.ring.complete(command, completion);
    }
}

/// Runs steps until the process is dead or the steps are over.
fn live(world: &mut World, process: &mut Process, mut seed: u64, steps: usize) {
    for _ in 0..steps {
        if process.is_dead() {
            return;
        }
        match random(&mut seed, 12) {
            0..3 => world.submit(&mut seed),
            3..5 => process.fetch(world),
            5..9 if !process.fetched.is_empty() => {
                let index = random(&mut seed, process.fetched.len());
                process.complete(index);
            }
            // With the kick, if it comes to that.
            9 if process.ring.publish() && !process.is_dead() => world.reap(),
            // The kernel comes by itself.
            10 => world.reap(),
            11 => {
                let tags: Vec<_> = world.expected.keys().copied().take(2).collect();
                let _ = world
                    .kernel
                    .notify_task_management(TmrKind::AbortTask, &tags);
            }
            _ => {}
        }
    }
}

/// Everything that is there is served to its end; the kernel only looks when it is kicked.
fn finish(world: &mut World) {
    let mut process = world.start(NEVER);
    for _ in 0..4 {
        process.fetch(world);
        while !process.fetched.is_empty() {
            process.complete(0);
        }
        if process.ring.publish() {
            world.reap();
        }
    }
    assert!(world.expected.is_empty(), "a command never ended");
    assert_eq!(world.kernel.in_flight(), 0);
    assert_eq!(world.kernel.late_writes(), 0);
}

/// Returns how many stores the first process made.
fn history(seed: u64, first: usize, second: usize) -> usize {
    let mut world = World::new();
    let mut process = world.start(first);
    live(&mut world, &mut process, seed, 90);
    let stores = first - process.fuse.left();
    drop(process);
    if seed.is_multiple_of(2) {
        world.reap();
    }
    let mut process = world.start(second);
    live(&mut world, &mut process, seed.rotate_left(17) | 1, 30);
    drop(process);
    finish(&mut world);
    stores
}

#[test]
fn killed_at_any_store_nothing_is_lost_and_nothing_done_twice() {
    let mut tried = 0;
    for seed in [0x1234_5677, 0x9e37_79b9_7f4a_7c15, 42, 0xdead_beef_0003] {
        let stores = history(seed, NEVER, NEVER);
        assert!(stores > 250, "{stores} stores are no history");
        for first in 1..stores {
            let second = 1 + random(&mut (seed ^ (first as u64) << 20), stores);
            history(seed, first, second);
            tried += 1;
        }
    }
    println!("killed {tried} times");
}

#[test]
fn a_phase_is_found_again_until_its_command_ends() {
    let mut world = World::new();
    let mut process = world.start(NEVER);
    let mut seed = 99;
    while world
        .expected
        .values()
        .filter(|known| !known.malformed)
        .count()
        < 2
    {
        world.submit(&mut seed);
    }
    process.fetch(&world);
    let id = process.fetched[1].id();
    process.ring.phases().unwrap().set(id, 5);
    drop(process);

    let process = world.start(NEVER);
    assert_eq!(process.phases[&id], 5);
    assert_eq!(
        process.phases.values().filter(|phase| **phase == 0).count(),
        1
    );
    drop(process);
    finish(&mut world);

    while world
        .expected
        .values()
        .filter(|known| !known.malformed)
        .count()
        < 2
    {
        world.submit(&mut seed);
    }
    let mut process = world.start(NEVER);
    process.fetch(&world);
    drop(process);
    assert!(world.start(NEVER).phases.values().all(|phase| *phase == 0));
    finish(&mut world);
}

#[test]
fn a_command_knows_how_often_it_was_found() {
    let mut world = World::new();
    let mut process = world.start(NEVER);
    world.kernel.submit(&READ_10, Data::None).unwrap();
    let _ = process.ring.next().unwrap();
    // A dropped command is answered by the next publication only.
    drop(process);
    for runs in 1..4 {
        let device = world.kernel.reopen().unwrap();
        let table = Table::open(world.table.try_clone().unwrap(), &OWNER, device.memory()).unwrap();
        assert_eq!(table.check(device.memory()).unwrap(), (1, runs - 1));
        let (ring, interrupted) = Ring::with_table(Arc::clone(device.memory()), table).unwrap();
        assert_eq!(interrupted[0].runs, runs);
        drop((interrupted, ring));
    }
}

#[test]
fn a_table_of_something_else_is_refused() {
    let mut world = World::new();
    let file = || world.table.try_clone().unwrap();
    let device = world.kernel.reopen().unwrap();
    let open = |file, owner| Table::open(file, owner, device.memory());
    assert!(open(file(), &OWNER).is_ok());
    assert!(matches!(open(file(), &[8; 32]), Err(Mismatch::OtherDevice)));
    let empty = tempfile::tempfile().unwrap();
    assert!(matches!(open(empty, &OWNER), Err(Mismatch::NoTable)));

    let other = Config {
        ring_size: 4096,
        ..config()
    };
    let (_kernel, larger) = MockKernel::new(other).unwrap();
    let refused = Table::open(file(), &OWNER, larger.memory());
    assert!(matches!(refused, Err(Mismatch::OtherRing)));

    file().set_len(8192).unwrap();
    assert!(matches!(
        open(file(), &OWNER),
        Err(Mismatch::Length { len: 8192, .. })
    ));

    let (_kernel, in_order) = MockKernel::new(in_order()).unwrap();
    let refused = Table::create(tempfile::tempfile().unwrap(), &OWNER, in_order.memory());
    assert!(matches!(refused, Err(Mismatch::InOrder)));
}

#[test]
fn a_ring_that_was_reset_meanwhile_is_noticed() {
    let mut world = World::new();
    let mut process = world.start(NEVER);
    let mut seed = 3;
    for _ in 0..4 {
        world.submit(&mut seed);
    }
    process.fetch(&world);
    drop(process);
    world.kernel.reset_ring();
    let device = world.kernel.reopen().unwrap();
    let table = Table::open(world.table.try_clone().unwrap(), &OWNER, device.memory()).unwrap();
    let refused = table.check(device.memory());
    assert!(matches!(refused, Err(Mismatch::Entries { entries: 0, .. })));
    let refused = Ring::with_table(Arc::clone(device.memory()), table);
    assert!(matches!(refused, Err(Mismatch::Entries { entries: 0, .. })));
}

#[test]
fn a_table_without_room_is_given_up_and_the_ring_goes_on() {
    let large = Config {
        ring_size: 0x10000 - 128,
        ..Config::default()
    };
    let (mut kernel, device) = MockKernel::new(large).unwrap();
    let file = tempfile::tempfile().unwrap();
    let copy = file.try_clone().unwrap();
    let mut table = Table::create(file, &OWNER, device.memory()).unwrap();
    table.refuse_growth();
    let (mut ring, _) = Ring::with_table(Arc::clone(device.memory()), table).unwrap();
    let tags: Vec<_> = (0..40)
        .map(|_| kernel.submit(&READ_10, Data::None).unwrap())
        .collect();
    for _ in &tags {
        let command = next(&mut ring);
        ring.complete(command, Completion::GOOD);
    }
    assert!(ring.publish());
    assert!(ring.take_table_error().is_some() && ring.take_table_error().is_none());
    assert_eq!(kernel.reap().len(), 40);
    let reopened = Table::open(copy, &OWNER, device.memory());
    assert!(matches!(reopened, Err(Mismatch::NoTable)));
}

#[test]
fn the_table_grows_with_the_number_and_the_length_of_commands() {
    let large = Config {
        ring_size: 0x40000,
        blocks: 4096,
        ..Config::default()
    };
    let (mut kernel, device) = MockKernel::new(large).unwrap();
    let file = tempfile::tempfile().unwrap();
    let copy = file.try_clone().unwrap();
    let table = Table::create(file, &OWNER, device.memory()).unwrap();
    let (mut ring, _) = Ring::with_table(Arc::clone(device.memory()), table).unwrap();
    // Every other block stays in use, so that what comes next is scattered over many segments.
    let mut kept = Vec::new();
    for number in 0..600 {
        let tag = kernel.submit(&READ_10, Data::In(4096)).unwrap();
        let command = next(&mut ring);
        if number % 2 == 0 {
            kept.push((tag, command));
        } else {
            ring.complete(command, Completion::GOOD);
        }
        assert!(number % 2 == 0 || ring.publish());
        if number == 599 {
            kernel.reap();
        }
    }
    let out: Vec<u8> = (0..1_200_000_u32).map(|at| (at / 4096) as u8).collect();
    kernel.submit(&WRITE_16, Data::Out(&out)).unwrap();
    let command = next(&mut ring);
    let (segments, data) = (
        command.data().to_vec(),
        read_segments(ring.memory(), command.data()),
    );
    assert!(segments.len() > 200 && data == out);
    let count = kept.len() + 1;
    drop((kept, command, ring));

    let table = Table::open(copy, &OWNER, device.memory()).unwrap();
    let (mut ring, mut interrupted) = Ring::with_table(Arc::clone(device.memory()), table).unwrap();
    assert_eq!(interrupted.len(), count);
    let command = interrupted.pop().unwrap().command;
    assert_eq!(**command.cdb(), WRITE_16);
    assert_eq!(command.data(), segments);
    for found in interrupted {
        ring.complete(found.command, Completion::GOOD);
    }
    ring.complete(command, Completion::GOOD);
    assert!(ring.publish());
    kernel.reap();
    assert_eq!((kernel.in_flight(), kernel.broken()), (0, None));
}
