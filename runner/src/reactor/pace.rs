//! How long a reactor lets commands gather before it serves the next.
//!
//! An initiator with a deep queue hands commands in one after the other, and a reactor that wakes for
//! each of them pays a system call per command. So where several commands are known to be
//! outstanding, it rests a moment between its turns. The length of the rest is found by trying:
//! longer while turns find few commands, shorter when they find more than are wanted. Wanted is half
//! of the most that were seen outstanding of late: the other half keeps the initiator busy meanwhile.
//! One with fewer than four commands outstanding never meets a rest, nor does anybody while the
//! kernel works on operations of a backstore: then it is the medium that sets the pace.
//!
//! Nothing here reads a clock: it would cost as much as what is saved.

use std::time::Duration;

/// The first rest, and about what a timer can do.
const SHORTEST: Duration = Duration::from_micros(8);
/// No rest is longer, whatever it would gather: commands wait for its end.
const LONGEST: Duration = Duration::from_micros(800);
/// So many commands in a turn are worth its system calls.
const ENOUGH: usize = 12;
/// The memory of a deep queue fades in about so many turns of a shallow one.
const MEMORY: usize = 16;

/// Finds the length of rests.
#[derive(Debug, Default)]
pub(super) struct Pace {
    rest: Duration,
    /// The most commands that were outstanding of late, times [`MEMORY`].
    most: usize,
}

impl Pace {
    /// Learns from a turn that found `fetched` commands, at least one; `outstanding` were in its hands
    /// at the same time. `busy`: the kernel worked on operations at the turn's beginning.
    pub(super) fn learn(&mut self, fetched: usize, outstanding: usize, busy: bool) {
        let outstanding = outstanding * MEMORY;
        self.most = if outstanding < self.most {
            self.most - (self.most - outstanding).div_ceil(MEMORY)
        } else {
            outstanding
        };
        let wanted = (self.most / MEMORY / 2).min(ENOUGH);
        if busy || wanted < 2 || fetched > wanted {
            self.rest = self.rest * 7 / 8;
            if self.rest < SHORTEST {
                self.rest = Duration::ZERO;
            }
        } else if fetched < wanted {
            self.rest = (self.rest * 9 / 8).clamp(SHORTEST, LONGEST);
        }
    }

    /// Whether more than one command was outstanding of late.
    pub(super) fn is_crowded(&self) -> bool {
        self.most > MEMORY
    }

    /// How long to rest, if at all.
    pub(super) fn rest(&self) -> Option<Duration> {
        (!self.rest.is_zero()).then_some(self.rest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What an initiator meets that keeps `depth` commands outstanding and needs `each` to hand in
    /// one: how many commands a turn finds in the end, and the rest before it. Now and then it is
    /// faster, or the reactor slower, and everything is there at once.
    fn settle(depth: usize, each: Duration) -> (usize, Option<Duration>) {
        let mut pace = Pace::default();
        let mut fetched = 1;
        for turn in 1..=1000 {
            fetched = if turn % 10 == 0 { depth } else { fetched };
            // Half of what is not here is on its way back.
            pace.learn(fetched, fetched + (depth - fetched) / 2, false);
            let rest = pace.rest().unwrap_or_default();
            let arrived = 1 + rest.as_nanos() / each.as_nanos();
            fetched = (arrived as usize).min(depth);
        }
        (fetched, pace.rest())
    }

    #[test]
    fn few_commands_are_never_kept_waiting() {
        for depth in [1, 2, 3] {
            assert_eq!(settle(depth, Duration::from_micros(5)), (1, None));
        }
    }

    #[test]
    fn half_of_the_queue_stays_with_the_initiator() {
        for depth in [4, 8, 16] {
            let (fetched, _) = settle(depth, Duration::from_micros(20));
            assert!((1..=depth / 2 + 1).contains(&fetched), "{depth}: {fetched}");
        }
    }

    #[test]
    fn a_deep_queue_is_served_in_lots() {
        for each in [2, 10, 50] {
            let (fetched, rest) = settle(64, Duration::from_micros(each));
            assert!(fetched.abs_diff(ENOUGH) <= 3, "{each}: {fetched}, {rest:?}");
        }
    }

    #[test]
    fn one_command_at_a_time_is_no_crowd() {
        let mut pace = Pace::default();
        assert!(!pace.is_crowded());
        pace.learn(1, 1, false);
        assert!(!pace.is_crowded());
        pace.learn(1, 8, true);
        pace.learn(1, 1, false);
        assert!(pace.is_crowded());
        for _ in 0..100 {
            pace.learn(1, 1, false);
        }
        assert!(!pace.is_crowded());
    }

    #[test]
    fn nobody_waits_longer_than_the_limit() {
        let (_, rest) = settle(32, Duration::from_millis(5));
        assert!(rest.is_some_and(|rest| rest <= LONGEST), "{rest:?}");
    }

    #[test]
    fn a_deep_queue_is_soon_forgotten() {
        let mut pace = Pace::default();
        for _ in 0..100 {
            pace.learn(2, 32, false);
        }
        assert!(pace.rest().is_some());
        let turns = (0..)
            .take_while(|_| {
                pace.learn(1, 1, false);
                pace.rest().is_some()
            })
            .count();
        assert!(turns < 100, "{turns}");
    }

    #[test]
    fn nobody_waits_while_a_medium_works() {
        let mut pace = Pace::default();
        for _ in 0..100 {
            pace.learn(2, 32, false);
        }
        for _ in 0..50 {
            pace.learn(2, 32, true);
        }
        assert_eq!(pace.rest(), None);
    }
}
