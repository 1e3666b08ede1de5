//! What is counted about a LUN while it is served.

mod class;
mod failure;
mod histogram;

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

pub(crate) use self::class::Class;
pub(crate) use self::failure::Failure;
pub(crate) use self::histogram::Bucket;

use self::histogram::Histogram;

/// The figures of one LUN, written by its reactor and read by anyone at any time.
///
/// There is one writer, so plain stores do, and a reader may see figures of two moments.
#[derive(Debug, Default)]
pub(crate) struct Meter {
    size: AtomicU64,
    block_size: AtomicU32,
    completed: AtomicU64,
    in_flight: AtomicU32,
    slow: AtomicU64,
    classes: [Commands; Class::ALL.len()],
}

/// The figures of the commands of a class.
#[derive(Debug, Default)]
struct Commands {
    bytes: AtomicU64,
    nanoseconds: AtomicU64,
    /// All that have ended are in here.
    times: Histogram,
    failures: [AtomicU64; Failure::COUNT],
}

/// What a [`Meter`] showed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Reading {
    /// The LUN's size in bytes; 0 before it was opened.
    pub(crate) size: u64,
    /// Its logical block size in bytes; 0 before it was opened.
    pub(crate) block_size: u32,
    /// How many commands were completed since the LUN was opened, whatever their status.
    pub(crate) completed: u64,
    /// How many commands have been fetched and not completed.
    pub(crate) in_flight: u32,
    /// How many of the completed ones took longer than the limit that held then.
    pub(crate) slow: u64,
}

/// What a [`Meter`] showed of a class, since the LUN was opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ClassReading {
    pub(crate) class: Class,
    /// How many commands were completed, whatever their status.
    pub(crate) commands: u64,
    /// How many bytes those that succeeded moved from or to the initiator.
    pub(crate) bytes: u64,
    /// How long all of them took together, each from when it was fetched until its completion was
    /// published.
    pub(crate) nanoseconds: u64,
    /// How long they took; `commands` is the sum of the counts.
    pub(crate) times: Vec<Bucket>,
    /// How those failed that failed.
    pub(crate) failures: Vec<(Failure, u64)>,
}

/// Adds to a figure, as its one writer.
#[inline]
fn add(figure: &AtomicU64, more: u64) {
    let sum = figure.load(Ordering::Relaxed).wrapping_add(more);
    figure.store(sum, Ordering::Relaxed);
}

impl Meter {
    /// The LUN has been opened with this geometry.
    pub(crate) fn opened(&self, size: u64, block_size: u32) {
        self.block_size.store(block_size, Ordering::Relaxed);
        self.resized(size);
    }

    /// The LUN's size in bytes has changed.
    pub(crate) fn resized(&self, size: u64) {
        self.size.store(size, Ordering::Relaxed);
    }

    /// How many commands have been completed in all, and how many are being executed.
    pub(crate) fn commands(&self, completed: u64, in_flight: usize) {
        self.completed.store(completed, Ordering::Relaxed);
        let in_flight = u32::try_from(in_flight).unwrap_or(u32::MAX);
        self.in_flight.store(in_flight, Ordering::Relaxed);
    }

    /// The completion of a command that moved so many bytes was published, so many nanoseconds after
    /// the command was fetched.
    #[inline]
    pub(crate) fn ended(&self, class: Class, bytes: u32, nanoseconds: u64) {
        let commands = &self.classes[class as usize];
        add(&commands.bytes, bytes.into());
        add(&commands.nanoseconds, nanoseconds);
        commands.times.count(nanoseconds);
    }

    /// A command has failed, which is still to be counted by [`ended`](Self::ended).
    #[cold]
    pub(crate) fn failed(&self, class: Class, failure: Failure) {
        add(&self.classes[class as usize].failures[failure.index()], 1);
    }

    /// A command took longer than the limit that holds.
    #[cold]
    pub(crate) fn slow(&self) {
        add(&self.slow, 1);
    }

    pub(crate) fn read(&self) -> Reading {
        Reading {
            size: self.size.load(Ordering::Relaxed),
            block_size: self.block_size.load(Ordering::Relaxed),
            completed: self.completed.load(Ordering::Relaxed),
            in_flight: self.in_flight.load(Ordering::Relaxed),
            slow: self.slow.load(Ordering::Relaxed),
        }
    }

    /// The figures of all classes.
    pub(crate) fn classes(&self) -> impl Iterator<Item = ClassReading> {
        Class::ALL.into_iter().map(|class| {
            let commands = &self.classes[class as usize];
            let times = commands.times.read();
            let failures = Failure::all().filter_map(|failure| {
                let count = commands.failures[failure.index()].load(Ordering::Relaxed);
                (count > 0).then_some((failure, count))
            });
            ClassReading {
                class,
                commands: times.iter().map(|bucket| bucket.count).sum(),
                bytes: commands.bytes.load(Ordering::Relaxed),
                nanoseconds: commands.nanoseconds.load(Ordering::Relaxed),
                failures: failures.collect(),
                times,
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use tcmu::scsi::{SenseKey, Status};

    use super::*;

    #[test]
    fn each_class_has_figures_of_its_own() {
        let meter = Meter::default();
        meter.ended(Class::Read, 4096, 1000);
        meter.ended(Class::Read, 512, 70_000);
        meter.ended(Class::Flush, 0, 5_000_000);
        let failure = Failure::of(Status::CheckCondition, Some(SenseKey::MediumError));
        meter.failed(Class::Read, failure.unwrap());
        meter.slow();
        let [read, write, flush, unmap, other] =
            <[ClassReading; 5]>::try_from(Vec::from_iter(meter.classes())).unwrap();
        assert_eq!(
            (read.commands, read.bytes, read.nanoseconds),
            (2, 4608, 71_000)
        );
        assert_eq!(read.failures, [(failure.unwrap(), 1)]);
        assert_eq!((flush.commands, flush.bytes), (1, 0));
        assert!(flush.failures.is_empty());
        for none in [write, unmap, other] {
            assert_eq!((none.commands, none.bytes, none.nanoseconds), (0, 0, 0));
            assert!(none.times.is_empty());
        }
        assert_eq!(meter.read().slow, 1);
    }
}
