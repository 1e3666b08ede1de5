//! Overlapping commands that are under way at the same time end as if they had run one after the
//! other, in whatever order the backstore's requests end.

use std::cell::{Cell, RefCell};
use std::future::{Future, poll_fn};
use std::num::NonZeroU32;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};

use proptest::prelude::*;
use tcmu::scsi::{SenseKey, Status};
use tcmu_handler::{Backstore, Buffer, Capabilities, Io, OwnedBuffer, Result, WriteFlags, testing};
use tcmu_runner::device_server::{Geometry, Identity, LogicalUnit, Request, Response};

use crate::target::{BLOCK, cdb};

const BLOCKS: usize = 6;

/// A disk whose requests take effect, each as a whole, some time between their start and their end.
struct Shuffled {
    image: RefCell<Vec<u8>>,
    dice: Dice,
}

impl Shuffled {
    async fn pause(&self) {
        let mut turns = self.dice.below(4);
        poll_fn(|_| {
            if turns == 0 {
                return Poll::Ready(());
            }
            turns -= 1;
            Poll::Pending
        })
        .await;
    }
}

impl Backstore for Shuffled {
    fn capabilities(&self) -> Capabilities {
        Capabilities::new((BLOCKS * BLOCK) as u64)
    }

    async fn read(&self, _io: &Io, buffer: Buffer<'_>, offset: u64) -> Result<()> {
        self.pause().await;
        buffer.copy_from(0, &self.image.borrow()[offset as usize..][..buffer.len()]);
        self.pause().await;
        Ok(())
    }

    async fn write(&self, _: &Io, buffer: Buffer<'_>, offset: u64, _: WriteFlags) -> Result<()> {
        self.pause().await;
        let range = offset as usize..offset as usize + buffer.len();
        buffer.copy_to(0, &mut self.image.borrow_mut()[range]);
        self.pause().await;
        Ok(())
    }
}

/// Numbers that look random.
struct Dice(Cell<u64>);

impl Dice {
    fn below(&self, limit: usize) -> usize {
        let mut state = self.0.get();
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        self.0.set(state);
        (state >> 11) as usize % limit
    }
}

#[derive(Clone, Copy, Debug)]
enum Kind {
    Read,
    Write,
    WriteSame,
    WriteAndVerify,
    Or,
    /// With this byte expected everywhere.
    Swap(u8),
}

#[derive(Clone, Copy, Debug)]
struct Command {
    kind: Kind,
    lba: usize,
    blocks: usize,
    byte: u8,
}

/// What the initiator hears: whether it was good, and what was read.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Outcome(bool, Vec<u8>);

impl Command {
    fn cdb(self) -> Vec<u8> {
        let (lba, blocks) = (self.lba as u64, self.blocks as u32);
        let (opcode, flags) = match self.kind {
            Kind::Read => (0x88, 0),
            Kind::Write => (0x8a, 0),
            Kind::WriteSame => (0x93, 0),
            Kind::WriteAndVerify => (0x8e, 0x02),
            Kind::Or => (0x8b, 0),
            Kind::Swap(_) => (0x89, 0),
        };
        cdb::sixteen(opcode, flags, lba, blocks).to_vec()
    }

    fn data(self) -> Vec<u8> {
        let len = self.blocks * BLOCK;
        match self.kind {
            Kind::WriteSame => vec![self.byte; BLOCK],
            Kind::Swap(expected) => [vec![expected; len], vec![self.byte; len]].concat(),
            _ => vec![self.byte; len],
        }
    }

    fn outcome(self, response: Response, data: &OwnedBuffer) -> Outcome {
        let good = response.status == Status::Good;
        if !good {
            let sense = response.sense.unwrap();
            assert_eq!(sense.key, SenseKey::Miscompare, "{self:?}");
        }
        let read = matches!(self.kind, Kind::Read);
        Outcome(
            good,
            if read {
                testing::contents(data)
            } else {
                vec![]
            },
        )
    }

    /// What the command does when it is alone.
    fn apply(self, image: &mut [u8]) -> Outcome {
        let bytes = &mut image[self.lba * BLOCK..(self.lba + self.blocks) * BLOCK];
        match self.kind {
            Kind::Read => return Outcome(true, bytes.to_vec()),
            Kind::Or => bytes.iter_mut().for_each(|byte| *byte |= self.byte),
            Kind::Swap(expected) if bytes.iter().any(|byte| *byte != expected) => {
                return Outcome(false, vec![]);
            }
            _ => bytes.fill(self.byte),
        }
        Outcome(true, vec![])
    }
}

fn any_command() -> impl Strategy<Value = Command> {
    let kind = prop_oneof![
        Just(Kind::Read),
        Just(Kind::Write),
        Just(Kind::WriteSame),
        Just(Kind::WriteAndVerify),
        Just(Kind::Or),
        (0..4u8).prop_map(Kind::Swap),
        (0..4u8).prop_map(Kind::Swap),
    ];
    let range = (0..BLOCKS).prop_flat_map(|lba| (Just(lba), 1..=BLOCKS - lba));
    (kind, range, 0..4u8).prop_map(|(kind, (lba, blocks), byte)| Command {
        kind,
        lba,
        blocks,
        byte,
    })
}

/// Whether some order of the commands, one after the other, explains what was seen.
fn explained(image: &[u8], commands: &[(Command, &Outcome)], expected: &[u8]) -> bool {
    if commands.is_empty() {
        return image == expected;
    }
    (0..commands.len()).any(|first| {
        let mut rest = commands.to_vec();
        let (command, outcome) = rest.remove(first);
        let mut image = image.to_vec();
        command.apply(&mut image) == *outcome && explained(&image, &rest, expected)
    })
}

fn unit(seed: u64) -> LogicalUnit<Shuffled> {
    let disk = Shuffled {
        image: RefCell::new(vec![0; BLOCKS * BLOCK]),
        dice: Dice(Cell::new(seed | 1)),
    };
    let geometry = Geometry {
        size: (BLOCKS * BLOCK) as u64,
        block_size: NonZeroU32::new(BLOCK as u32).unwrap(),
        max_transfer_blocks: 0,
    };
    LogicalUnit::new(disk, Identity::default(), geometry, false)
}

/// Runs the commands, except those that are given up half-way, and returns what they heard.
fn run(
    unit: &LogicalUnit<Shuffled>,
    commands: &[Command],
    give_up: impl Fn(usize) -> bool,
) -> Vec<Option<Outcome>> {
    let io = testing::io();
    let cdbs: Vec<_> = commands.iter().map(|command| command.cdb()).collect();
    let buffers: Vec<_> = commands
        .iter()
        .map(|command| testing::scattered(&command.data(), 300))
        .collect();
    type Running<'a> = Pin<Box<dyn Future<Output = Response> + 'a>>;
    let mut running: Vec<(usize, Running<'_>)> = cdbs
        .iter()
        .zip(&buffers)
        .map(|(cdb, buffer)| {
            let data = buffer.view();
            Box::pin(unit.execute(&io, Request { cdb, data })) as Running<'_>
        })
        .enumerate()
        .collect();
    let mut outcomes = vec![None; commands.len()];
    let dice = &unit.backstore().dice;
    let mut context = Context::from_waker(Waker::noop());
    for _ in 0..100_000 {
        if running.is_empty() {
            return outcomes;
        }
        let next = dice.below(running.len());
        let (index, future) = &mut running[next];
        let index = *index;
        let polled = future.as_mut().poll(&mut context);
        if let Poll::Ready(response) = polled {
            outcomes[index] = Some(commands[index].outcome(response, &buffers[index]));
            drop(running.remove(next));
        } else if give_up(index) && dice.below(3) == 0 {
            drop(running.remove(next));
        }
    }
    panic!("{} commands wait for each other", running.len());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn commands_are_as_one_after_the_other(
        commands in prop::collection::vec(any_command(), 2..6),
        seed: u64,
    ) {
        let unit = unit(seed);
        let outcomes = run(&unit, &commands, |_| false);
        let heard: Vec<_> = commands
            .iter()
            .copied()
            .zip(outcomes.iter().map(|outcome| outcome.as_ref().unwrap()))
            .collect();
        let image = unit.backstore().image.borrow();
        prop_assert!(explained(&vec![0; image.len()], &heard, &image), "{outcomes:?}");
    }

    #[test]
    fn commands_that_are_given_up_hold_nobody_off(
        commands in prop::collection::vec(any_command(), 2..20),
        seed: u64,
    ) {
        let unit = unit(seed);
        let outcomes = run(&unit, &commands, |index| index % 2 == 0);
        prop_assert!(outcomes.iter().skip(1).step_by(2).all(Option::is_some));
    }
}

#[test]
fn one_of_many_swaps_wins() {
    let swap = |byte| Command {
        kind: Kind::Swap(0),
        lba: 1,
        blocks: 4,
        byte,
    };
    for seed in 1..100 {
        let commands: Vec<_> = (1..20).map(swap).collect();
        let outcomes = run(&unit(seed), &commands, |_| false);
        let winners = outcomes
            .iter()
            .flatten()
            .filter(|outcome| outcome.0)
            .count();
        assert_eq!(winners, 1);
    }
}
