//! Proves to systemd that the daemon serves: every reactor has to turn, not only this thread.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::reactor::{Message, ReactorHandle};
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
        Some(Self {
            interval: limit / ROUNDS,
            due: Instant::now(),
            answers: Vec::new(),
            complained: false,
        })
    }

    /// When [`round`](Self::round) has something to do.
    pub(super) fn due(&self) -> Instant {
        self.due
    }

    /// If it is due: tells systemd that all is well if all reactors have answered, and asks them
    /// again. While one has not, systemd hears nothing, and will end the daemon.
    pub(super) fn round(&mut self, reactors: &[ReactorHandle]) {
        let now = Instant::now();
        if now < self.due {
            return;
        }
        self.due = now + self.interval;
        let silent: Vec<usize> = self.silent().collect();
        if silent.is_empty() {
            self.complained = false;
            service_manager::alive();
            self.ask(reactors);
        } else if !self.complained {
            self.complained = true;
            tracing::error!(
                reactors = ?silent,
                "these reactors do not turn; systemd will restart tcmu-runner unless they go on"
            );
        }
    }

    fn silent(&self) -> impl Iterator<Item = usize> {
        let answers = self.answers.iter().enumerate();
        answers.filter_map(|(number, answer)| (!answer.load(Ordering::Acquire)).then_some(number))
    }

    fn ask(&mut self, reactors: &[ReactorHandle]) {
        self.answers = reactors
            .iter()
            .map(|reactor| {
                let answer = Arc::<AtomicBool>::default();
                let answered = Arc::clone(&answer);
                let done = Box::new(move |_| answered.store(true, Ordering::Release));
                reactor.send(Message::Ping { done });
                answer
            })
            .collect();
    }
}
