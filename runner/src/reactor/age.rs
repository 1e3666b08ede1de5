//! How long the oldest command of a LUN has been in flight.
//!
//! Commands carry no time: a reactor with commands in flight looks at them now and then, and what it
//! finds again is that much older.

use std::time::{Duration, Instant};

/// How often a reactor looks while commands are in flight.
pub(super) const INTERVAL: Duration = Duration::from_secs(2);

/// From this age on it is said that the backstore does not answer; then each time it has doubled.
const STUCK: Duration = Duration::from_secs(10);

/// What is known of the oldest command.
#[derive(Debug, Default)]
pub(super) struct Age {
    /// Its number, and when it was first seen.
    oldest: Option<(u64, Instant)>,
    /// The age at which it was last reported.
    reported: Option<Duration>,
}

/// What is worth telling.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Finding {
    /// The oldest command has been in flight for so long.
    Stuck(Duration),
    /// The one that was reported has ended, so many seconds after it was seen first.
    AnswersAgain(Duration),
}

impl Age {
    /// Looks at the command with the lowest number that is in flight.
    pub(super) fn look(&mut self, oldest: Option<u64>, now: Instant) -> Option<Finding> {
        let known = self.oldest.filter(|(number, _)| Some(*number) == oldest);
        let Some((_, since)) = known else {
            let age = self.oldest.map_or(Duration::ZERO, |(_, since)| now - since);
            self.oldest = oldest.map(|number| (number, now));
            return self.reported.take().map(|_| Finding::AnswersAgain(age));
        };
        let age = now - since;
        let due = self.reported.map_or(STUCK, |reported| 2 * reported);
        (age >= due).then(|| {
            self.reported = Some(age);
            Finding::Stuck(age)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_is_reported_when_its_age_has_doubled_and_when_it_ends() {
        let (begin, mut age) = (Instant::now(), Age::default());
        let at = |seconds| begin + Duration::from_secs(seconds);
        let mut said = Vec::new();
        for seconds in (0..60).step_by(2) {
            said.extend(age.look(Some(5), at(seconds)));
        }
        let stuck = |seconds| Finding::Stuck(Duration::from_secs(seconds));
        assert_eq!(said, [10, 20, 40].map(stuck));
        let ended = age.look(Some(6), at(60));
        assert_eq!(ended, Some(Finding::AnswersAgain(Duration::from_secs(60))));
        assert_eq!(age.look(None, at(62)), None);
    }

    #[test]
    fn commands_that_come_and_go_are_never_reported() {
        let (begin, mut age) = (Instant::now(), Age::default());
        for number in 0..100 {
            let now = begin + Duration::from_secs(9 * number);
            assert_eq!(age.look((number % 3 != 0).then_some(number), now), None);
        }
    }
}
