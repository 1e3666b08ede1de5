//! What the daemon knows of a device.

use std::time::{Duration, Instant};

use tcmu::discovery::DeviceName;
use tcmu::netlink::Ticket;

use crate::recovery::CrashLoop;

/// How long a LUN that the kernel removes may finish what is in flight.
const DRAIN_LIMIT: Duration = Duration::from_secs(10);

/// Where a device stands.
#[derive(Debug)]
pub(super) enum Phase {
    /// It is suspected of having brought daemons down, and waits for its trial.
    Suspect(CrashLoop),
    /// Its image is being opened.
    Opening,
    /// It is on its way to its reactor.
    Attaching,
    Serving,
    /// It is on its way from its reactor.
    Leaving {
        then: Next,
    },
}

/// What follows when a device has left its reactor.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Next {
    Forget,
    /// Serve the device that may have taken its place.
    LookAgain,
    /// Reset the ring and serve the device again.
    Reset,
}

/// A device of a handler of ours.
pub(super) struct Device {
    pub(super) name: DeviceName,
    pub(super) phase: Phase,
    /// When the phase began.
    pub(super) since: Instant,
    pub(super) reactor: usize,
    /// The kernel's question that is answered when the phase ends.
    pub(super) ticket: Option<Ticket>,
    /// Which of the daemon's openings is its own.
    pub(super) opening: u64,
    /// The device is to go as soon as its opening has ended.
    pub(super) unwanted: bool,
    pub(super) ring_resets: u32,
    /// What its in-flight table says of crashes.
    pub(super) crash_loop: Option<CrashLoop>,
    /// The kernel wanted it to go.
    pub(super) removed: Option<Instant>,
    /// Its backstore has not answered a command for long.
    pub(super) stuck: bool,
    /// It is served without its image.
    pub(super) offline: bool,
    /// Commands that a predecessor left are still in flight.
    pub(super) recovering: bool,
}

impl Device {
    /// What is wrong with it although it is served; empty if nothing is.
    pub(super) fn trouble(&self) -> &'static str {
        if self.stuck {
            "the image does not answer"
        } else {
            ""
        }
    }

    /// When the kernel is answered that the device may go, whatever its backstore does.
    pub(super) fn drained_by(&self) -> Option<Instant> {
        let leaving = matches!(self.phase, Phase::Leaving { .. });
        Some(self.removed.filter(|_| leaving)? + DRAIN_LIMIT)
    }
}
