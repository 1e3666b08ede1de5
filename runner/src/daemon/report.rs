//! What other threads tell the daemon's thread.

use std::sync::Arc;
use std::sync::mpsc::Sender;

use rustix::fd::OwnedFd;
use tcmu::netlink::Ticket;
use tcmu_handler::Error;

use super::board::EventKind;
use super::open::Taken;
use super::petition::Petition;
use crate::reactor::{LunId, Notice};
use crate::registry::Image;

/// What other threads report to the daemon's.
pub(super) enum Report {
    /// A device was opened, or not.
    Taken {
        id: LunId,
        /// Which of the daemon's openings this is about.
        opening: u64,
        result: Result<Box<Taken>, Error>,
    },
    /// An image was opened, or not.
    Opened {
        id: LunId,
        /// Which of the daemon's openings this is about.
        opening: u64,
        result: Result<Image, Error>,
    },
    /// A LUN's other image was opened, or not, and whether it has another size.
    MediumOpened {
        id: LunId,
        opening: u64,
        result: Result<(Image, bool), Error>,
    },
    /// A LUN was attached to its reactor, or not.
    Attached {
        id: LunId,
        result: Result<(), Error>,
    },
    /// What was in flight when the LUN was attached has been completed.
    Recovered { id: LunId },
    /// A LUN's backstore is closed and its device let go.
    Detached {
        id: LunId,
        result: Result<(), Error>,
    },
    /// A change that the kernel waits for was made, or refused.
    Changed {
        id: LunId,
        /// What it is.
        kind: EventKind,
        ticket: Ticket,
        result: Result<(), Error>,
    },
    /// A LUN of this drain has nothing in flight and all is durable, or that could not be.
    Held {
        number: u64,
        id: LunId,
        result: Result<(), Error>,
    },
    /// A reactor noticed something.
    Notice(Notice),
    /// Somebody asks for something.
    Petition(Petition),
}

/// Reports from any thread, with a bell.
#[derive(Clone)]
pub(super) struct Reporter {
    pub(super) reports: Sender<Report>,
    pub(super) bell: Arc<OwnedFd>,
}

impl Reporter {
    /// Hands over a report.
    pub(super) fn send(&self, report: Report) {
        // Without a daemon nobody needs the report.
        if self.reports.send(report).is_ok() {
            let _ = rustix::io::write(&*self.bell, &1u64.to_ne_bytes());
        }
    }
}
