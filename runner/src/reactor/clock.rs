//! What time it is, read at most twice in a turn.

use std::cell::Cell;
use std::time::Instant;

/// The time of a turn. It stands still from when it is asked for until it is told to go on: reading
/// the system's clock for each command would cost a good part of what the command does.
#[derive(Debug)]
pub(crate) struct Clock {
    start: Instant,
    /// 0: it has gone on.
    now: Cell<u64>,
}

impl Clock {
    pub(super) fn new() -> Self {
        Self {
            start: Instant::now(),
            now: Cell::new(0),
        }
    }

    /// Nanoseconds since some moment.
    #[inline]
    pub(crate) fn now(&self) -> u64 {
        match self.now.get() {
            0 => self.read(),
            now => now,
        }
    }

    /// The next to ask gets a new time.
    #[inline]
    pub(super) fn go_on(&self) {
        self.now.set(0);
    }

    #[inline(never)]
    fn read(&self) -> u64 {
        // 2^64 ns are 584 years.
        let now = (self.start.elapsed().as_nanos() as u64).max(1);
        self.now.set(now);
        now
    }
}

#[cfg(test)]
mod tests {
    use std::thread;
    use std::time::Duration;

    use super::*;

    #[test]
    fn stands_still_until_it_goes_on() {
        let clock = Clock::new();
        let first = clock.now();
        thread::sleep(Duration::from_millis(2));
        assert_eq!(clock.now(), first);
        clock.go_on();
        assert!(clock.now() >= first + 2_000_000);
    }
}
