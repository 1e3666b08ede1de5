//! Random commands, several at a time, against the simplest model of a disk.
//!
//! Commands that are in flight together may run in any order, so the model knows for each block
//! what it may hold. Each write has values of its own, so that what is read tells where it is from.
//! Some are aborted, and have to end like the others: see `device_server/abort.rs`.

use proptest::collection::vec;
use proptest::prelude::*;
use tcmu::mock::Data;
use tcmu::ring::TmrKind;
use tcmu::scsi::Status;
use tcmu_handler::{Backstore, Handler, OpenRequest};
use tcmu_handler_ram::RamHandler;

use crate::faults::sense_key;
use crate::lun::{BLOCK, Lun, SIZE, image};

const GOOD: u8 = Status::Good.code();
const CHECK_CONDITION: u8 = Status::CheckCondition.code();
const MISCOMPARE: u8 = 0xe;
/// The part of the disk that is used, in logical blocks: small, so that commands meet.
const BLOCKS: u32 = 96;
const LONGEST: u32 = 24;

#[derive(Clone, Copy, Debug)]
enum Kind {
    Read,
    Write {
        fua: bool,
    },
    WriteSame {
        ndob: bool,
        unmap: bool,
    },
    Unmap,
    /// Expects what the blocks held before anything ran.
    CompareAndWrite,
    /// Expects the same, byte by byte.
    Verify,
    SynchronizeCache,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Command {
    kind: Kind,
    block: u32,
    blocks: u32,
    aborted: bool,
}

fn command() -> impl Strategy<Value = Command> {
    let kind = prop_oneof![
        4 => Just(Kind::Read),
        5 => any::<bool>().prop_map(|fua| Kind::Write { fua }),
        2 => any::<[bool; 2]>().prop_map(|[ndob, unmap]| Kind::WriteSame { ndob, unmap }),
        2 => Just(Kind::Unmap),
        3 => Just(Kind::CompareAndWrite),
        1 => Just(Kind::Verify),
        1 => Just(Kind::SynchronizeCache),
    ];
    let range = (0..BLOCKS).prop_flat_map(|block| {
        let longest = LONGEST.min(BLOCKS - block);
        (Just(block), 1..=longest)
    });
    let aborted = prop::bool::weighted(0.2);
    (kind, range, aborted).prop_map(|(kind, (block, blocks), aborted)| Command {
        kind,
        block,
        blocks,
        aborted,
    })
}

/// Commands that are in flight together.
pub(crate) fn batches() -> impl Strategy<Value = Vec<Vec<Command>>> {
    vec(vec(command(), 1..12), 1..12)
}

/// What fills a block: the command that wrote it, and the block's place in that command.
type Value = u64;

const ZERO: Value = 0;

fn value(command: u32, place: u32) -> Value {
    u64::from(command) << 32 | u64::from(place)
}

fn filled(value: Value) -> impl Iterator<Item = u8> {
    value.to_le_bytes().into_iter().cycle().take(BLOCK)
}

impl Command {
    fn covers(&self, block: u32) -> bool {
        (self.block..self.block + self.blocks).contains(&block)
    }

    fn compares(&self) -> bool {
        matches!(self.kind, Kind::CompareAndWrite | Kind::Verify)
    }

    /// What it leaves in a block, and whether it has to; `None` if it leaves the block alone.
    fn leaves(&self, number: u32, block: u32) -> Option<(Value, bool)> {
        if !self.covers(block) {
            return None;
        }
        match self.kind {
            Kind::Read | Kind::Verify | Kind::SynchronizeCache => None,
            Kind::Write { .. } | Kind::CompareAndWrite => {
                Some((value(number, block - self.block), true))
            }
            Kind::WriteSame { ndob: true, .. } => Some((ZERO, true)),
            Kind::WriteSame { .. } => Some((value(number, 0), true)),
            // What cannot be given back may keep its data (SBC-3, 4.7.3.4).
            Kind::Unmap => Some((ZERO, false)),
        }
    }

    fn cdb(&self) -> Vec<u8> {
        let long = |opcode: u8, flags: u8| {
            let mut cdb = vec![opcode, flags];
            cdb.extend(u64::from(self.block).to_be_bytes());
            cdb.extend(self.blocks.to_be_bytes());
            cdb.extend([0, 0]);
            cdb
        };
        match self.kind {
            Kind::Read => long(0x88, 0),
            Kind::Write { fua } => long(0x8a, u8::from(fua) << 3),
            Kind::WriteSame { ndob, unmap } => long(0x93, u8::from(ndob) | u8::from(unmap) << 3),
            Kind::Unmap => vec![0x42, 0, 0, 0, 0, 0, 0, 0, 24, 0],
            Kind::CompareAndWrite => {
                let mut cdb = long(0x89, 0);
                // Three bytes are reserved, one has the number of blocks: the longest is shorter.
                cdb[10..13].fill(0);
                cdb
            }
            Kind::Verify => long(0x8f, 1 << 1),
            Kind::SynchronizeCache => long(0x91, 0),
        }
    }

    fn data_out(&self, number: u32, model: &Model) -> Vec<u8> {
        let new = (0..self.blocks).flat_map(|place| filled(value(number, place)));
        let held =
            (self.block..self.block + self.blocks).flat_map(|block| filled(model.settled(block)));
        match self.kind {
            Kind::Write { .. } => new.collect(),
            Kind::CompareAndWrite => held.chain(new).collect(),
            Kind::Verify => held.collect(),
            Kind::WriteSame { ndob: false, .. } => filled(value(number, 0)).collect(),
            Kind::Unmap => {
                let mut list = vec![0, 22, 0, 16, 0, 0, 0, 0];
                list.extend(u64::from(self.block).to_be_bytes());
                list.extend(self.blocks.to_be_bytes());
                list.extend([0; 4]);
                list
            }
            _ => Vec::new(),
        }
    }
}

/// What each block may hold.
struct Model(Vec<Vec<Value>>);

impl Model {
    fn new() -> Self {
        Model(vec![vec![ZERO]; BLOCKS as usize])
    }

    /// What a block holds while nothing runs.
    fn settled(&self, block: u32) -> Value {
        self.0[block as usize][0]
    }

    /// What a read beside these commands may see in a block.
    fn while_running(&self, batch: &[(u32, Command)], block: u32) -> Vec<Value> {
        let mut may = self.0[block as usize].clone();
        let left = batch
            .iter()
            .filter_map(|(number, command)| command.leaves(*number, block));
        may.extend(left.map(|(value, _)| value));
        may
    }

    /// Whether a command of these may have left in a block what it held before.
    fn may_be_as_before(&self, batch: &[(u32, Command)], block: u32) -> bool {
        let mut left = batch
            .iter()
            .filter_map(|(number, command)| command.leaves(*number, block));
        left.any(|(value, _)| value == self.settled(block))
    }

    /// These commands have run, in some order; those that compare and found a difference are left
    /// out.
    fn run(&mut self, batch: &[(u32, Command)]) {
        for block in 0..BLOCKS {
            let left = |swaps: bool| {
                batch
                    .iter()
                    .filter(move |(_, command)| command.compares() == swaps)
                    .filter_map(move |(number, command)| command.leaves(*number, block))
            };
            // Zeroes where zeroes were: what compared may have found those of either.
            let again = self.may_be_as_before(batch, block);
            let may = &mut self.0[block as usize];
            if again {
                may.extend(left(true).map(|(value, _)| value));
            } else if left(false).any(|(_, has_to)| has_to) {
                // What compared with success found the block as it was, so it ran before these.
                may.clear();
            } else if let Some((swapped, _)) = left(true).next() {
                *may = vec![swapped];
            }
            may.extend(left(false).map(|(value, _)| value));
        }
    }

    /// This was read while nothing else ran: each block holds one thing, and will go on to.
    fn settle(&mut self, data: &[u8]) -> Result<(), TestCaseError> {
        for (block, (bytes, may)) in data.chunks(BLOCK).zip(&mut self.0).enumerate() {
            let held = check(block as u32, bytes, may)?;
            let first = held[0];
            prop_assert!(
                held.iter().all(|value| *value == first),
                "block {block} is torn"
            );
            *may = vec![first];
        }
        Ok(())
    }
}

/// The values in a block, which have to be among those that it may hold.
fn check(block: u32, bytes: &[u8], may: &[Value]) -> Result<Vec<Value>, TestCaseError> {
    let values: Vec<Value> = bytes
        .chunks_exact(size_of::<Value>())
        .map(|word| Value::from_le_bytes(word.try_into().unwrap()))
        .collect();
    for value in &values {
        prop_assert!(
            may.contains(value),
            "block {block} holds {value:#x}, and may hold {may:x?}"
        );
    }
    Ok(values)
}

pub(crate) fn run<B: Backstore>(
    backstore: B,
    batches: &[Vec<Command>],
) -> Result<(), TestCaseError> {
    let mut lun = Lun::new(backstore);
    let mut model = Model::new();
    let mut numbers = 1..;
    for batch in batches {
        let batch: Vec<_> = numbers.by_ref().zip(batch.iter().copied()).collect();
        let mut tags = Vec::new();
        for (number, command) in &batch {
            let out = command.data_out(*number, &model);
            let data = match command.kind {
                Kind::Read => Data::In(command.blocks as usize * BLOCK),
                _ if out.is_empty() => Data::None,
                _ => Data::Out(&out),
            };
            tags.push(lun.submit(&command.cdb(), data));
        }
        let aborted = tags.iter().zip(&batch);
        let aborted = aborted.filter(|(_, (_, command))| command.aborted);
        let aborted: Vec<_> = aborted.map(|(tag, _)| *tag).collect();
        if !aborted.is_empty() {
            // By then, some wait for each other.
            lun.turn(false);
            let notified = (lun.kernel).notify_task_management(TmrKind::LunReset, &aborted);
            prop_assert!(notified.is_ok());
        }
        let mut ran = Vec::new();
        for (tag, (number, command)) in tags.into_iter().zip(&batch) {
            let finished = lun.wait(tag);
            if command.compares() && finished.status == CHECK_CONDITION {
                prop_assert_eq!(sense_key(&finished.sense), MISCOMPARE, "{:?}", command);
                let disturbed = |(other, by): &(u32, Command)| {
                    let block = command.block..command.block + command.blocks;
                    other != number
                        && block
                            .clone()
                            .any(|block| by.leaves(*other, block).is_some())
                };
                prop_assert!(
                    batch.iter().any(disturbed),
                    "{command:?} found a difference, and nobody else was there"
                );
                continue;
            }
            prop_assert_eq!(
                finished.status,
                GOOD,
                "{:?}: {:x?}",
                command,
                finished.sense
            );
            if let Kind::Read = command.kind {
                prop_assert_eq!(finished.data_in.len(), command.blocks as usize * BLOCK);
                for (block, bytes) in (command.block..).zip(finished.data_in.chunks(BLOCK)) {
                    check(block, bytes, &model.while_running(&batch, block))?;
                }
            }
            ran.push((*number, *command));
        }
        for block in 0..BLOCKS {
            let swapped = |(_, command): &&(u32, Command)| {
                matches!(command.kind, Kind::CompareAndWrite) && command.covers(block)
            };
            prop_assert!(
                ran.iter().filter(swapped).count() <= 1 || model.may_be_as_before(&ran, block),
                "two commands found block {block} as it was, and changed it"
            );
        }
        model.run(&ran);
        let tag = lun.read(0, BLOCKS as u16);
        model.settle(&lun.wait(tag).data_in)?;
    }
    prop_assert_eq!(lun.kernel.broken(), None);
    prop_assert_eq!(lun.kernel.in_flight(), 0);
    prop_assert_eq!(lun.kernel.late_writes(), 0);
    Ok(())
}

proptest! {
    #[test]
    fn a_file_is_a_disk_whatever_runs_together(batches in batches()) {
        let folder = tempfile::tempdir().unwrap();
        run(image(folder.path()), &batches)?;
    }

    #[test]
    fn memory_is_a_disk_whatever_runs_together(batches in batches()) {
        let request = OpenRequest {
            config: "model".parse().unwrap(),
            size: SIZE,
            block_size: BLOCK as u32,
        };
        run(RamHandler.open(&request).unwrap(), &batches)?;
    }
}
