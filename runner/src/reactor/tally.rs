//! What a reactor counts of a LUN's commands.

use std::rc::Rc;
use std::sync::Arc;

use tcmu::cdb::Cdb;
use tcmu::scsi::{SenseKey, Status};

use super::clock::Clock;
use crate::meter::{Class, Failure, Meter};
use crate::slow_log::{self, SlowLimit, SlowLog};

/// How a command has ended.
#[derive(Clone, Copy, Debug)]
pub(super) struct End {
    pub(super) status: Status,
    /// The sense key, with CHECK CONDITION.
    pub(super) key: Option<SenseKey>,
    /// How many bytes it has moved, if it succeeded.
    pub(super) moved: u32,
}

impl End {
    /// Of a command that was dropped, see [`tcmu::ring::Command`].
    pub(super) const DROPPED: Self = Self {
        status: Status::CheckCondition,
        key: Some(SenseKey::HardwareError),
        moved: 0,
    };
}

/// A command that has ended, and whose completion is to be published.
struct Ended {
    class: Class,
    bytes: u32,
    /// When it was fetched.
    since: u64,
}

/// Counts commands. Their time ends when their completion is published, so that they are kept until
/// then.
pub(super) struct Tally {
    meter: Arc<Meter>,
    clock: Rc<Clock>,
    slow_log: SlowLog,
    completed: u64,
    ended: Vec<Ended>,
}

impl Tally {
    pub(super) fn new(meter: Arc<Meter>, clock: Rc<Clock>, slow_limit: Arc<SlowLimit>) -> Self {
        Self {
            meter,
            clock,
            slow_log: SlowLog::new(slow_limit),
            completed: 0,
            ended: Vec::new(),
        }
    }

    /// Where others read the figures.
    pub(super) fn meter(&self) -> &Arc<Meter> {
        &self.meter
    }

    /// How many commands have ended.
    pub(super) fn completed(&self) -> u64 {
        self.completed
    }

    /// The time to be noted of a command that was fetched just now.
    #[inline]
    pub(super) fn now(&self) -> u64 {
        self.clock.now()
    }

    /// A command of the LUN `lun`, fetched at the time `since`, has ended while so many others are in
    /// flight.
    #[inline]
    pub(super) fn ended(&mut self, lun: &str, cdb: &Cdb, since: u64, end: End, others: usize) {
        let class = Class::of(cdb);
        let mut bytes = end.moved;
        if let Some(failure) = Failure::of(end.status, end.key) {
            self.meter.failed(class, failure);
            bytes = 0;
        }
        if self.slow_log.is_on() {
            self.look_if_slow(lun, cdb, since, end.status, others);
        }
        self.completed += 1;
        self.ended.push(Ended {
            class,
            bytes,
            since,
        });
    }

    #[inline(never)]
    fn look_if_slow(&mut self, lun: &str, cdb: &Cdb, since: u64, status: Status, others: usize) {
        let ended = slow_log::Ended {
            cdb,
            status,
            since,
            now: self.clock.now(),
            others,
        };
        if self.slow_log.look(lun, &ended) {
            self.meter.slow();
        }
    }

    /// What has ended is published at this moment, while so many commands are in flight. Returns how
    /// many have ended since the last time.
    pub(super) fn publish(&mut self, in_flight: usize) -> usize {
        let count = self.ended.len();
        if count > 0 {
            let now = self.clock.now();
            for ended in self.ended.drain(..) {
                let took = now.saturating_sub(ended.since);
                self.meter.ended(ended.class, ended.bytes, took);
            }
        }
        self.meter.commands(self.completed, in_flight);
        count
    }
}

#[cfg(test)]
mod tests {
    use std::thread;
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_command_is_counted_when_it_is_published() {
        let (meter, clock) = (Arc::<Meter>::default(), Rc::new(Clock::new()));
        let mut tally = Tally::new(Arc::clone(&meter), Rc::clone(&clock), Arc::default());
        let read = Cdb::new(&[0x28, 0, 0, 0, 0, 0, 0, 0, 8, 0]).unwrap();
        let good = End {
            status: Status::Good,
            key: None,
            moved: 4096,
        };
        let since = tally.now();
        tally.ended("disk", &read, since, good, 1);
        tally.ended(
            "disk",
            &read,
            since,
            End {
                moved: 9,
                ..End::DROPPED
            },
            0,
        );
        let aborted = End {
            status: Status::TaskAborted,
            key: None,
            moved: 0,
        };
        tally.ended("disk", &read, since, aborted, 0);
        let reads = || meter.classes().next().unwrap();
        assert_eq!(reads().commands, 0);
        thread::sleep(Duration::from_millis(2));
        clock.go_on();
        assert_eq!(tally.publish(7), 3);
        let reads = reads();
        assert_eq!(
            (reads.commands, reads.bytes),
            (3, 4096),
            "of good ones only"
        );
        assert!(reads.nanoseconds >= 3 * 2_000_000, "{}", reads.nanoseconds);
        let failures: Vec<_> = reads
            .failures
            .iter()
            .map(|(failure, count)| (failure.status(), failure.sense_key(), *count))
            .collect();
        assert_eq!(
            failures,
            [
                ("check-condition", "hardware-error", 1),
                ("task-aborted", "", 1)
            ]
        );
        assert_eq!(meter.read().in_flight, 7);
        assert_eq!(meter.read().completed, 3);
        assert_eq!(tally.publish(0), 0);
    }
}
