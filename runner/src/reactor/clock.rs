//! What time it is, read at most twice in a turn.

use std::cell::Cell;

use super::ticks::Ticks;

/// The time of a turn. It stands still from when it is asked for until it is told to go on: reading
/// it for each command would cost a good part of what the command does.
#[derive(Debug)]
pub(crate) struct Clock {
    ticks: Ticks,
    /// 0: it has gone on.
    now: Cell<u64>,
}

impl Clock {
    pub(super) fn new() -> Self {
        Self {
            ticks: Ticks::new(),
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
        let now = self.ticks.now().max(1);
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
