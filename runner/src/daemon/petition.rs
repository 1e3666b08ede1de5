//! What others in this process ask of the daemon's thread.

use tcmu_handler::Error;

use super::report::{Report, Reporter};

/// A request to the daemon's thread.
pub(crate) enum Petition {
    /// Other processes have registered or given up handlers.
    HandlersChanged,
    /// Give a LUN another image.
    ChangeMedium(MediumChange),
}

/// Another image for a LUN that is served.
pub(crate) struct MediumChange {
    /// The LUN's name.
    pub(crate) lun: String,
    /// Is told how it went; dropped untold if the daemon ends before.
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
