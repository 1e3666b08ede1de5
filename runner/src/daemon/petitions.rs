//! What others in this process ask for, and the D-Bus service that brings most of it.

use std::sync::Arc;

use super::board::EventKind;
use super::petition::{Petition, Petitioner};
use super::{Daemon, dbus};

impl Daemon {
    /// Starts the D-Bus service.
    pub(super) fn offer_on_bus(&self) -> std::io::Result<dbus::Service> {
        dbus::Service::start(dbus::Backend {
            registry: Arc::clone(&self.opener.registry),
            board: Arc::clone(&self.board),
            externals: Arc::clone(&self.externals),
            petitioner: Petitioner(self.reporter.clone()),
        })
    }

    pub(super) fn hear_petition(&mut self, petition: Petition) {
        match petition {
            Petition::HandlersChanged => {
                let external = self.externals.subtypes();
                self.board.tell(
                    EventKind::Handlers,
                    "",
                    format!("other processes: {external:?}"),
                );
                if let Err(error) = self.note_handlers() {
                    tracing::warn!(%error, "tcmuctl does not learn which handlers there are");
                }
            }
            Petition::SetLogLevel { level, done } => done(self.set_log_level(&level)),
            Petition::Drain(request) => self.drain(request),
            Petition::ChangeMedium(change) => self.change_medium(change),
        }
    }

    /// Leaves a note of the handlers that there are, here and in other processes.
    pub(super) fn note_handlers(&self) -> std::io::Result<()> {
        let external = self.externals.subtypes();
        let own = self.opener.registry.help().map(|(subtype, _)| subtype);
        self.run_dir
            .note_handlers(own.chain(external.iter().map(String::as_str)))
    }
}
