//! What the daemon knows of a device.

use std::time::Instant;

use tcmu::discovery::DeviceName;
use tcmu::netlink::Ticket;

use crate::recovery::CrashLoop;

/// Where a device stands.
#[derive(Debug)]
pub(super) enum Phase {
    /// It is suspected of having brought daemons down, and waits for its trial.
    Suspect(CrashLoop),
    /// Its image is being opened, or it is on its way to a reactor.
    Opening,
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
    /// Reset the ring and serve the device again.
    Reset,
}

/// A device of a handler of ours.
pub(super) struct Device {
    pub(super) name: DeviceName,
    pub(super) phase: Phase,
    pub(super) since: Instant,
    pub(super) reactor: usize,
    /// The kernel's question that is answered when the phase ends.
    pub(super) ticket: Option<Ticket>,
    /// The device is to go as soon as its opening has ended.
    pub(super) unwanted: bool,
    pub(super) ring_resets: u32,
    /// What its in-flight table says of crashes.
    pub(super) crash_loop: Option<CrashLoop>,
    /// Commands that a predecessor left are still in flight.
    pub(super) recovering: bool,
}
