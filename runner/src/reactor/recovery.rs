//! The commands of a LUN that a predecessor had fetched.

use std::collections::VecDeque;
use std::rc::Rc;

use tcmu::ring::recovery::{Interrupted, Phases};

use crate::device_server::Progress;

/// Is called when none of these commands is in flight any more; not at all if there were none.
pub(crate) type Recovered = Box<dyn FnOnce() + Send>;

/// The commands that run again before anything is fetched.
#[derive(Default)]
pub(crate) struct Recovery {
    waiting: VecDeque<Interrupted>,
    /// How many of them have not ended.
    left: usize,
    /// Commands with this number or a higher one were fetched by this process.
    first_new: u64,
    recovered: Option<Recovered>,
}

impl Recovery {
    /// These commands, in the order in which they were fetched, run again.
    pub(crate) fn new(interrupted: Vec<Interrupted>, recovered: Recovered) -> Self {
        let newest = interrupted.iter().map(|found| found.command.number()).max();
        let first_new = newest.map_or(0, |number| number + 1);
        let left = interrupted.len();
        // What holds its blocks already comes first.
        let (further, rest): (Vec<_>, Vec<_>) =
            interrupted.into_iter().partition(|found| found.phase != 0);
        Self {
            waiting: further.into_iter().chain(rest).collect(),
            left,
            first_new,
            recovered: Some(recovered),
        }
    }

    /// The next command to start.
    #[inline]
    pub(crate) fn next(&mut self) -> Option<Interrupted> {
        self.waiting.pop_front()
    }

    /// Whether some of the commands have not ended.
    #[inline]
    pub(crate) fn is_under_way(&self) -> bool {
        self.left > 0
    }

    /// The command with this number has ended.
    #[cold]
    pub(crate) fn ended(&mut self, number: u64) {
        if number >= self.first_new {
            return;
        }
        self.left -= 1;
        if self.left == 0
            && let Some(recovered) = self.recovered.take()
        {
            recovered();
        }
    }

    /// The commands that have not been started.
    pub(crate) fn waiting(&self) -> impl Iterator<Item = &Interrupted> {
        self.waiting.iter()
    }
}

/// Notes in the in-flight table how far a command has come.
pub(super) struct Noted {
    /// Missing where the ring has no table.
    pub(super) phases: Option<Rc<Phases>>,
    pub(super) id: u16,
    /// What a predecessor had noted.
    pub(super) phase: u64,
}

impl Progress for Noted {
    fn phase(&self) -> u64 {
        self.phase
    }

    fn note(&self, phase: u64) {
        if let Some(phases) = &self.phases {
            phases.set(self.id, phase);
        }
    }
}
