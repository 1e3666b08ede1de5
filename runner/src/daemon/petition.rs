//! What others in this process ask of the daemon's thread.

use std::os::unix::net::UnixStream;
use std::time::Duration;

use tcmu_handler::Error;

use super::report::{Report, Reporter};
use crate::reactor::LunId;

/// A request to the daemon's thread.
pub(crate) enum Petition {
    /// Other processes have registered or given up handlers.
    HandlersChanged,
    /// Give a LUN another image.
    ChangeMedium(MediumChange),
    /// Log as much as this says; is told what holds then, or why not.
    SetLogLevel {
        level: String,
        done: Box<dyn FnOnce(Result<String, String>) + Send>,
    },
    /// Let images alone for a while.
    Drain(DrainRequest),
}

/// The most seconds for which LUNs can be held.
pub(crate) const LONGEST_HOLD: u32 = 3600;

/// LUNs whose images are to be left alone.
pub(crate) struct DrainRequest {
    /// Empty: all that are served.
    pub(crate) luns: Vec<LunId>,
    /// How long they are drained and held together at the most.
    pub(crate) limit: Duration,
    /// Is told that the LUNs are held, until the other end is closed, or why not; dropped untold if
    /// the daemon ends before.
    pub(crate) done: Box<dyn FnOnce(Result<Held, Error>) + Send>,
}

/// The caller's end of what holds LUNs, and which they are.
pub(crate) type Held = (UnixStream, Vec<LunId>);

/// Another image for a LUN that is served.
pub(crate) struct MediumChange {
    /// The LUN's name.
    pub(crate) lun: String,
    /// The subtype of the handler that was asked, which has to be the LUN's.
    pub(crate) subtype: String,
    /// The other image: the configuration behind the subtype.
    pub(crate) config: String,
    /// Its size in bytes, which the LUN has from then on.
    pub(crate) size: u64,
    /// Is told how it went; dropped untold if the LUN or the daemon ends before.
    pub(crate) done: Box<dyn FnOnce(Result<(), Error>) + Send>,
}

/// Hands petitions to the daemon's thread, from any thread.
#[derive(Clone)]
pub(crate) struct Petitioner(pub(super) Reporter);

impl Petitioner {
    pub(crate) fn send(&self, petition: Petition) {
        self.0.send(Report::Petition(petition));
    }
}
