//! How long a server has been away, and when to look for it again.

use std::time::{Duration, Instant};

/// The pause before the second attempt; each further one is twice as long.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
/// The longest pause.
const LONGEST_PAUSE: Duration = Duration::from_secs(2);
/// Once it was given up, a server is looked for this often, if there is something to do.
const AFTERWARDS: Duration = Duration::from_secs(1);

/// What to do about a server that has gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Advice {
    /// Try after this time.
    Try(Duration),
    /// It has been away for too long.
    GiveUp,
}

/// The time without a server.
#[derive(Debug, Default)]
pub(crate) struct Outage {
    since: Option<Instant>,
    attempts: u32,
    last: Option<Instant>,
    given_up: bool,
    /// Why the last attempt failed.
    pub(crate) reason: String,
}

impl Outage {
    /// Requests have no connection. Every attempt follows such a question.
    pub(crate) fn advise(&mut self, now: Instant, patience: Duration) -> Advice {
        let since = *self.since.get_or_insert(now);
        if self.given_up {
            return match self.last {
                Some(last) if now.saturating_duration_since(last) < AFTERWARDS => Advice::GiveUp,
                _ => self.attempt(now, Duration::ZERO),
            };
        }
        let left = patience.saturating_sub(now.saturating_duration_since(since));
        if left.is_zero() && self.attempts > 0 {
            self.given_up = true;
            return Advice::GiveUp;
        }
        let pause = match self.attempts.checked_sub(1) {
            None => Duration::ZERO,
            Some(before) => (FIRST_PAUSE * 2u32.pow(before.min(16))).min(LONGEST_PAUSE),
        };
        self.attempt(now, pause.min(left))
    }

    fn attempt(&mut self, now: Instant, pause: Duration) -> Advice {
        self.attempts += 1;
        self.last = Some(now + pause);
        Advice::Try(pause)
    }

    /// The server has answered a request.
    pub(crate) fn over(&mut self) {
        if self.since.is_some() {
            *self = Self::default();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_is_looked_for_less_and_less_often_and_then_given_up() {
        let patience = Duration::from_secs(10);
        let (mut outage, mut now) = (Outage::default(), Instant::now());
        let begin = now;
        let mut pauses = Vec::new();
        while let Advice::Try(pause) = outage.advise(now, patience) {
            pauses.push(pause.as_millis());
            now += pause;
        }
        assert_eq!(pauses[..7], [0, 50, 100, 200, 400, 800, 1600]);
        assert_eq!(now - begin, patience, "{pauses:?}");
        assert_eq!(outage.advise(now, patience), Advice::GiveUp);
        let later = now + AFTERWARDS;
        assert_eq!(outage.advise(later, patience), Advice::Try(Duration::ZERO));
        assert_eq!(outage.advise(later, patience), Advice::GiveUp);
        outage.over();
        assert_eq!(outage.advise(later, patience), Advice::Try(Duration::ZERO));
        assert_eq!(outage.advise(later, patience), Advice::Try(FIRST_PAUSE));
    }

    #[test]
    fn without_patience_there_is_one_attempt() {
        let (mut outage, now) = (Outage::default(), Instant::now());
        let advice = outage.advise(now, Duration::ZERO);
        assert_eq!(advice, Advice::Try(Duration::ZERO));
        assert_eq!(outage.advise(now, Duration::ZERO), Advice::GiveUp);
    }
}
