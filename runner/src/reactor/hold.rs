//! Leaving a LUN's image alone for a while.

use std::mem;

use tcmu_handler::{Error, ErrorKind};

use super::lun::Done;
use crate::copy::RemoteCopy;

/// Whether a LUN fetches commands.
#[derive(Default)]
enum State {
    /// It does.
    #[default]
    Off,
    /// It does not. When nothing is in flight and all is durable, this is told.
    Draining(Done),
    /// It does not, and nothing is in flight.
    Held,
}

/// A LUN's hold.
#[derive(Default)]
pub(super) struct Hold {
    state: State,
    /// What copies of other LUNs have asked for meanwhile.
    copies: Vec<(u64, RemoteCopy)>,
}

impl Hold {
    /// No further command is to be fetched; `done` is told when all is in order.
    pub(super) fn begin(&mut self, done: Done) {
        if let State::Draining(before) = mem::replace(&mut self.state, State::Draining(done)) {
            before(Err(given_up()));
        }
    }

    /// Whether no command is to be fetched.
    #[inline]
    pub(super) fn is_on(&self) -> bool {
        !matches!(self.state, State::Off)
    }

    /// Whether somebody waits for the LUN to have nothing in flight.
    #[inline]
    pub(super) fn is_awaited(&self) -> bool {
        matches!(self.state, State::Draining(_))
    }

    /// The LUN has nothing in flight. Returns who is to be told when all is durable.
    pub(super) fn drained(&mut self) -> Option<Done> {
        match mem::replace(&mut self.state, State::Held) {
            State::Draining(done) => Some(done),
            other => {
                self.state = other;
                None
            }
        }
    }

    /// Keeps what a copy asks for until the hold ends, or returns it if there is none.
    pub(super) fn keep(&mut self, key: u64, copy: RemoteCopy) -> Option<RemoteCopy> {
        if !matches!(self.state, State::Held) {
            return Some(copy);
        }
        self.copies.push((key, copy));
        None
    }

    /// Ends the hold. Returns what copies have asked for meanwhile; dropped, it is answered.
    pub(super) fn end(&mut self) -> Vec<(u64, RemoteCopy)> {
        if let State::Draining(done) = mem::take(&mut self.state) {
            done(Err(given_up()));
        }
        mem::take(&mut self.copies)
    }
}

fn given_up() -> Error {
    let why = "the LUN was not drained: it is served again, or not any more";
    Error::new(ErrorKind::Busy, why)
}
