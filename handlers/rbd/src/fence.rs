//! What becomes of an image whose client was shut out of the cluster.

use std::cell::Cell;
use std::time::{Duration, Instant};

/// How long after one attempt to open the image again the next is made, at the earliest.
const PAUSE: Duration = Duration::from_secs(2);

/// Whether requests may pass.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum State {
    /// They may.
    #[default]
    Open,
    /// They fail. The first that comes after this time tries to open the image again.
    Shut(Instant),
    /// A request is opening the image.
    Opening,
}

/// Stands between requests and the image.
#[derive(Debug, Default)]
pub(crate) struct Fence {
    state: Cell<State>,
}

/// What a request is to do.
#[derive(Debug)]
pub(crate) enum Way<'a> {
    /// Go to the image.
    Open,
    /// Come again.
    Opening,
    /// Fail.
    Shut,
    /// Open the image again, and say how that went.
    TryAgain(Attempt<'a>),
}

impl Fence {
    /// The client was shut out.
    pub(crate) fn shut(&self, now: Instant) {
        if self.state.get() == State::Open {
            // The first attempt need not wait.
            self.state.set(State::Shut(now));
        }
    }

    /// What a request that comes now is to do.
    pub(crate) fn way(&self, now: impl FnOnce() -> Instant) -> Way<'_> {
        match self.state.get() {
            State::Open => Way::Open,
            State::Opening => Way::Opening,
            State::Shut(until) if now() < until => Way::Shut,
            State::Shut(_) => {
                self.state.set(State::Opening);
                Way::TryAgain(Attempt(self))
            }
        }
    }
}

/// An attempt to open the image again. It has failed unless it is said to have succeeded.
#[derive(Debug)]
pub(crate) struct Attempt<'a>(&'a Fence);

impl Attempt<'_> {
    /// The image is open.
    pub(crate) fn succeeded(self) {
        self.0.state.set(State::Open);
    }
}

impl Drop for Attempt<'_> {
    fn drop(&mut self) {
        if self.0.state.get() == State::Opening {
            self.0.state.set(State::Shut(Instant::now() + PAUSE));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_request_at_a_time_tries_again_and_not_too_often() {
        let fence = Fence::default();
        let begin = Instant::now();
        assert!(matches!(
            fence.way(|| unreachable!("no need to know")),
            Way::Open
        ));
        fence.shut(begin);
        let Way::TryAgain(attempt) = fence.way(|| begin) else {
            panic!("nobody tried");
        };
        assert!(matches!(fence.way(|| begin), Way::Opening));
        fence.shut(begin);
        drop(attempt);
        assert!(matches!(fence.way(|| begin), Way::Shut));
        let Way::TryAgain(attempt) = fence.way(|| Instant::now() + PAUSE) else {
            panic!("nobody tried again");
        };
        attempt.succeeded();
        assert!(matches!(fence.way(|| begin), Way::Open));
    }
}
