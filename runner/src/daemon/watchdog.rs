//! Proves to systemd that the daemon serves: every reactor has to turn, not only this thread.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::reactor::{Done, Message, ReactorHandle};
use crate::service_manager;

/// How many rounds there are in the time that systemd allows: a reactor that is late once does no
/// harm.
const ROUNDS: u32 = 4;

/// Asks the reactors round by round.
#[derive(Debug)]
pub(super) struct Watchdog {
    interval: Duration,
    due: Instant,
    /// Who has answered in this round, by reactor.
    answers: Vec<Arc<AtomicBool>>,
    complained: bool,
}

impl Watchdog {
    /// `None` if nobody wants to know.
    pub(super) fn start() -> Option<Self> {
        let limit = service_manager::watchdog_limit()?;
        Some(Self::every(limit / ROUNDS, Instant::now()))
    }

    fn every(interval: Duration, start: Instant) -> Self {
        Self {
            interval,
            due: start,
            answers: Vec::new(),
            complained: false,
        }
    }

    /// When [`round`](Self::round) has something to do.
    pub(super) fn due(&self) -> Instant {
        self.due
    }

    /// If it is due: tells systemd that all is well if all reactors have answered, and asks them
    /// again. While one has not, systemd hears nothing, and will end the daemon.
    pub(super) fn round(&mut self, reactors: &[ReactorHandle]) {
        match self.judge(Instant::now()) {
            None => {}
            Some(Verdict::Alive) => {
                service_manager::alive();
                for (reactor, done) in reactors.iter().zip(self.questions(reactors.len())) {
                    reactor.send(Message::Ping { done });
                }
            }
            Some(Verdict::Silent(_)) if self.complained => {}
            Some(Verdict::Silent(reactors)) => {
                self.complained = true;
                tracing::error!(
                    ?reactors,
                    "these reactors do not turn; systemd will restart tcmu-runner unless they go on"
                );
            }
        }
    }

    /// How the last round has ended, if it is over.
    fn judge(&mut self, now: Instant) -> Option<Verdict> {
        if now < self.due {
            return None;
        }
        self.due = now + self.interval;
        let answers = self.answers.iter().enumerate();
        let silent: Vec<usize> = answers
            .filter_map(|(number, answer)| (!answer.load(Ordering::Acquire)).then_some(number))
            .collect();
        if silent.is_empty() {
            self.complained = false;
            Some(Verdict::Alive)
        } else {
            Some(Verdict::Silent(silent))
        }
    }

    /// Begins a round: what so many reactors are to do.
    fn questions(&mut self, reactors: usize) -> Vec<Done> {
        self.answers = (0..reactors).map(|_| Arc::default()).collect();
        let answers = self.answers.iter().map(Arc::clone);
        answers
            .map(|answer: Arc<AtomicBool>| -> Done {
                Box::new(move |_| answer.store(true, Ordering::Release))
            })
            .collect()
    }
}

/// How a round has ended.
#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    /// All reactors have answered.
    Alive,
    /// These have not.
    Silent(Vec<usize>),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reactor_has_to_answer() {
        let start = Instant::now();
        let interval = Duration::from_secs(1);
        let mut watchdog = Watchdog::every(interval, start);
        assert_eq!(watchdog.judge(start), Some(Verdict::Alive));
        let mut questions = watchdog.questions(3);
        assert_eq!(watchdog.judge(start), None, "not due");
        questions.remove(0)(Ok(()));
        let mut now = start + interval;
        assert_eq!(watchdog.judge(now), Some(Verdict::Silent(vec![1, 2])));
        questions.remove(1)(Ok(()));
        now += interval;
        assert_eq!(watchdog.judge(now), Some(Verdict::Silent(vec![1])));
        questions.remove(0)(Ok(()));
        now += interval;
        assert_eq!(watchdog.judge(now), Some(Verdict::Alive));
    }
}
