//! What the daemon knows of a device.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use tcmu::discovery::DeviceName;
use tcmu::netlink::Ticket;

use super::images::Trouble;
use super::medium::NewMedium;
use crate::recovery::CrashLoop;
use crate::registry::{Image, ImageRequest, OpenDevice};

/// How long a LUN that the kernel removes may finish what is in flight.
const DRAIN_LIMIT: Duration = Duration::from_secs(10);

/// Where a device stands.
#[derive(Debug)]
pub(super) enum Phase {
    /// It is suspected of having brought daemons down, and waits for its trial.
    Suspect(CrashLoop),
    /// It is being opened, and its image is.
    Opening,
    /// Its image cannot be opened: commands wait in the kernel.
    Waiting,
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
    /// Serve the device with the image that was opened meanwhile.
    ComeBack,
    /// Serve it again with another image.
    ChangeMedium,
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
    pub(super) unwanted: Unwanted,
    pub(super) ring_resets: u32,
    /// What its in-flight table says of crashes.
    pub(super) crash_loop: Option<CrashLoop>,
    /// The kernel wanted it to go.
    pub(super) removed: Option<Instant>,
    /// Its backstore has not answered a command for long.
    pub(super) stuck: bool,
    /// The device, until its image is open.
    pub(super) taken: Option<OpenDevice>,
    /// The image, until its device is there for it.
    pub(super) image: Option<Image>,
    /// What the image is.
    pub(super) request: Option<ImageRequest>,
    /// Its image cannot be opened.
    pub(super) away: Option<Trouble>,
    /// It is served without its image, for this reason.
    pub(super) offline: Option<String>,
    /// How many commands of a predecessor's run again.
    pub(super) interrupted: usize,
    /// Commands that a predecessor left are still in flight.
    pub(super) recovering: bool,
    /// It is getting another image.
    pub(super) medium: Option<NewMedium>,
    /// The device that has the number by now, and waits until this one is out of its way.
    pub(super) successor: Option<Announced>,
}

/// Says to a device's opener, too, that nobody wants the device any more.
#[derive(Clone, Default)]
pub(super) struct Unwanted(Arc<AtomicBool>);

impl Unwanted {
    pub(super) fn is_set(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    pub(super) fn set(&self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// A device that the kernel announces: whoever enables it waits for the answer.
pub(super) struct Announced {
    pub(super) name: DeviceName,
    pub(super) ticket: Ticket,
    pub(super) since: Instant,
}

impl Device {
    /// One that is about to be opened.
    pub(super) fn new(name: DeviceName, opening: u64, reactor: usize) -> Self {
        Self {
            name,
            opening,
            phase: Phase::Opening,
            since: Instant::now(),
            reactor,
            ticket: None,
            unwanted: Unwanted::default(),
            ring_resets: 0,
            crash_loop: None,
            removed: None,
            stuck: false,
            taken: None,
            image: None,
            request: None,
            away: None,
            offline: None,
            interrupted: 0,
            recovering: false,
            medium: None,
            successor: None,
        }
    }

    /// Since when the kernel waits for this to be opened, or for its successor.
    pub(super) fn waited_for_since(&self) -> Option<Instant> {
        let opens = matches!(self.phase, Phase::Opening) && self.ticket.is_some();
        let successors = self.successor.as_ref().map(|successor| successor.since);
        opens
            .then_some(self.since)
            .into_iter()
            .chain(successors)
            .min()
    }

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
