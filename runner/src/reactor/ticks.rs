//! Nanoseconds from the processor's time-stamp counter.
//!
//! Asking the system for the time is a system call wherever the vDSO cannot answer: under User-mode
//! Linux, and where the clocksource is the HPET, ACPI's timer or a hypervisor's own. A reactor asks
//! twice a turn, as often as it does anything else that costs a system call.
//!
//! The counter is only trusted to go on evenly for about a [second](SPAN). Then it is laid beside the
//! system's clock again, so that it does no harm where it drifts, stands still in a processor's
//! sleep, differs between processors, or changes its pace because a guest has moved to another host:
//! for at most that long, times are wrong by as much, and if it does not count evenly at all, the
//! system's clock is used.

use std::cell::Cell;
use std::time::Instant;

/// How long the counter is trusted at most, in nanoseconds.
const SPAN: u64 = 1_000_000_000;
/// The counter is trusted so many times as long as its pace was observed.
const TRUST: u64 = 4;
/// The counter's pace is not taken from shorter times, in nanoseconds.
const SHORTEST: u64 = 10_000_000;
/// Its pace is known at least this well: to one part in so many.
const PRECISION: u64 = 1000;
/// Paces that a counter can have, in nanoseconds for 2^32 ticks: 10 MHz to 100 GHz.
const PACES: std::ops::RangeInclusive<u64> = (1 << 32) / 100..=100 << 32;

/// What time can be read from.
pub(super) trait Source {
    /// The counter, if there is one.
    fn ticks(&self) -> Option<u64>;

    /// The system's clock: nanoseconds since some moment, which never go back.
    fn system(&self) -> u64;
}

/// The real ones.
#[derive(Debug)]
pub(super) struct Hardware {
    start: Instant,
}

impl Source for Hardware {
    #[inline]
    #[cfg(target_arch = "x86_64")]
    fn ticks(&self) -> Option<u64> {
        // SAFETY: every x86_64 processor has the instruction, and it touches no memory. Linux
        // forbids it only to threads that ask for that (PR_SET_TSC of prctl(2)).
        Some(unsafe { core::arch::x86_64::_rdtsc() })
    }

    /// The vDSO of other architectures reads their counters just as well.
    #[cfg(not(target_arch = "x86_64"))]
    fn ticks(&self) -> Option<u64> {
        None
    }

    fn system(&self) -> u64 {
        // 2^64 ns are 584 years.
        self.start.elapsed().as_nanos() as u64
    }
}

/// A clock that seldom asks the system.
#[derive(Debug)]
pub(super) struct Ticks<S = Hardware> {
    source: S,
    /// When the counter was last laid beside the system's clock: what both showed.
    ticks: Cell<u64>,
    system: Cell<u64>,
    /// Nanoseconds for 2^32 ticks. 0: not known.
    pace: Cell<u64>,
    /// For how many ticks from then on the counter is trusted.
    span: Cell<u64>,
    /// What was said last.
    last: Cell<u64>,
}

impl Ticks {
    pub(super) fn new() -> Self {
        Self::of(Hardware {
            start: Instant::now(),
        })
    }
}

impl<S: Source> Ticks<S> {
    fn of(source: S) -> Self {
        Self {
            ticks: Cell::new(source.ticks().unwrap_or(0)),
            system: Cell::new(source.system()),
            source,
            pace: Cell::new(0),
            span: Cell::new(0),
            last: Cell::new(0),
        }
    }

    /// Nanoseconds since some moment; they never go back.
    #[inline]
    pub(super) fn now(&self) -> u64 {
        let now = match self.source.ticks() {
            Some(ticks) => {
                let since = ticks.wrapping_sub(self.ticks.get());
                if since < self.span.get() {
                    self.system.get() + in_nanoseconds(since, self.pace.get())
                } else {
                    self.compare(ticks)
                }
            }
            None => self.source.system(),
        };
        let now = now.max(self.last.get());
        self.last.set(now);
        now
    }

    /// Lays the counter, which showed `before` just now, beside the system's clock. Returns the time.
    #[cold]
    fn compare(&self, before: u64) -> u64 {
        let system = self.source.system();
        let ticks = self.source.ticks().unwrap_or(before);
        let (took, counted) = (
            ticks.wrapping_sub(before),
            ticks.wrapping_sub(self.ticks.get()),
        );
        let passed = system.saturating_sub(self.system.get());
        if passed < SHORTEST {
            return system;
        }
        // Something came in between: the next to ask has more luck.
        if took > counted / PRECISION {
            return system;
        }
        let pace = (u128::from(passed) << 32) / u128::from(counted.max(1));
        let pace = u64::try_from(pace).unwrap_or(u64::MAX);
        let pace = if PACES.contains(&pace) { pace } else { 0 };
        self.pace.set(pace);
        let span = passed.saturating_mul(TRUST).min(SPAN);
        let span = (u128::from(span) << 32) / u128::from(pace.max(1));
        self.span.set(if pace == 0 { 0 } else { span as u64 });
        self.ticks.set(ticks);
        self.system.set(system);
        system
    }
}

#[inline]
fn in_nanoseconds(ticks: u64, pace: u64) -> u64 {
    ((u128::from(ticks) * u128::from(pace)) >> 32) as u64
}

#[cfg(test)]
mod tests {
    use std::thread;
    use std::time::Duration;

    use super::*;

    /// A machine whose time passes when it is told to.
    #[derive(Default)]
    struct Machine {
        ticks: Cell<u64>,
        system: Cell<u64>,
        /// How often the system's clock was read.
        asked: Cell<u32>,
        /// A reading of the system's clock takes so many ticks.
        slow: Cell<u64>,
    }

    impl Source for &Machine {
        fn ticks(&self) -> Option<u64> {
            Some(self.ticks.get())
        }

        fn system(&self) -> u64 {
            self.asked.set(self.asked.get() + 1);
            self.ticks
                .set(self.ticks.get().wrapping_add(self.slow.get()));
            self.system.get()
        }
    }

    impl Machine {
        /// So many microseconds pass, with so many ticks each.
        fn pass(&self, microseconds: u64, ticks: u64) {
            self.system.set(self.system.get() + microseconds * 1000);
            let ticks = self.ticks.get().wrapping_add(microseconds * ticks);
            self.ticks.set(ticks);
        }

        fn asked(&self) -> u32 {
            self.asked.take()
        }
    }

    /// A clock that has had the time to learn the pace of 3000 ticks per microsecond.
    fn learned(machine: &Machine) -> Ticks<&Machine> {
        let clock = Ticks::of(machine);
        machine.pass(1_000_000, 3000);
        clock.now();
        machine.asked();
        clock
    }

    #[test]
    fn the_system_is_asked_about_once_a_second() {
        let machine = Machine::default();
        // The counter overflows on the way.
        machine.ticks.set(u64::MAX - 1_000_000_000);
        let clock = learned(&machine);
        for _ in 0..10_000 {
            machine.pass(1000, 3000);
            assert!(clock.now().abs_diff(machine.system.get()) < 10);
        }
        assert!((9..=10).contains(&machine.asked()));
    }

    #[test]
    fn trust_grows() {
        let machine = Machine::default();
        let clock = Ticks::of(&machine);
        for span in [10, 50, 200, 300] {
            machine.pass(span * 1000, 3000);
            clock.now();
            machine.asked();
            machine.pass(span * 1000, 3000);
            clock.now();
            assert_eq!(machine.asked(), 0, "{span}");
            machine.pass(span * 3000, 3000);
            clock.now();
            assert_eq!(machine.asked(), 1, "{span}");
        }
    }

    #[test]
    fn before_the_pace_is_known_the_system_is_asked() {
        let machine = Machine::default();
        let clock = Ticks::of(&machine);
        machine.asked();
        for _ in 0..9 {
            machine.pass(1000, 3000);
            assert_eq!(clock.now(), machine.system.get());
        }
        assert_eq!(machine.asked(), 9);
    }

    #[test]
    fn a_comparison_that_was_interrupted_does_not_count() {
        let machine = Machine::default();
        let clock = Ticks::of(&machine);
        machine.slow.set(3000 * 5000);
        machine.pass(20_000, 3000);
        assert_eq!(clock.now(), machine.system.get());
        assert_eq!(clock.pace.get(), 0);
        machine.slow.set(0);
        machine.pass(20_000, 3000);
        clock.now();
        // The 5 ms in between are not in the model's system time.
        assert_ne!(clock.pace.get(), 0);
    }

    #[test]
    fn a_new_pace_is_learned() {
        let machine = Machine::default();
        let clock = learned(&machine);
        for _ in 0..3000 {
            machine.pass(1000, 1500);
            clock.now();
        }
        machine.asked();
        machine.pass(500, 1500);
        assert!(clock.now().abs_diff(machine.system.get()) < 10_000);
        assert_eq!(machine.asked(), 0);
    }

    #[test]
    fn time_never_goes_back() {
        let machine = Machine::default();
        let clock = learned(&machine);
        machine.pass(500_000, 6000);
        let before = clock.now();
        machine.ticks.set(machine.ticks.get() - 1_000_000_000);
        assert_eq!(clock.now(), before);
        machine.ticks.set(17);
        assert_eq!(clock.now(), before);
        // The jump is believed, then wrong for the pace, then out of sight.
        for _ in 0..3 {
            machine.pass(3_000_000, 3000);
            clock.now();
        }
        machine.pass(1000, 3000);
        assert!(clock.now().abs_diff(machine.system.get()) < 10_000);
    }

    #[test]
    fn a_counter_that_stands_still_is_not_used() {
        let machine = Machine::default();
        let clock = learned(&machine);
        machine.pass(2_000_000, 0);
        // It is believed for a while.
        machine.pass(1, 4_000_000_000);
        clock.now();
        for _ in 0..100 {
            machine.pass(20_000, 0);
            clock.now();
        }
        machine.pass(2_000_000, 3001);
        assert_eq!(clock.now(), machine.system.get());
    }

    #[test]
    fn the_real_counter_goes_like_the_system() {
        let clock = Ticks::new();
        thread::sleep(Duration::from_millis(30));
        clock.now();
        for _ in 0..10 {
            let (earliest, first) = (Instant::now(), clock.now());
            let begun = Instant::now();
            thread::sleep(Duration::from_millis(20));
            let ended = Instant::now();
            let (last, latest) = (clock.now(), Instant::now());
            let passed = Duration::from_nanos(last - first);
            assert!(
                passed >= (ended - begun).mul_f64(0.97),
                "{passed:?} of {:?}",
                ended - begun
            );
            assert!(
                passed <= (latest - earliest).mul_f64(1.03),
                "{passed:?} of {:?}",
                latest - earliest
            );
        }
    }
}
