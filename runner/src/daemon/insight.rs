//! What is to be seen of the daemon: how much it logs, and where it shows its figures.

use std::sync::Arc;

use super::Daemon;
use crate::metrics;

impl Daemon {
    /// Does as the settings say that hold now.
    pub(super) fn show_as_configured(&mut self) {
        let config = self.settings.config();
        self.slow_limit.set(config.slow_command());
        let listen = config.metrics.listen.clone();
        if self.metrics.as_ref().map(metrics::Server::listen) != listen.as_ref() {
            // First: the next one may want the same place.
            self.metrics = None;
            self.metrics = listen.and_then(|listen| {
                let place = listen.to_string();
                match metrics::Server::start(listen, Arc::clone(&self.board)) {
                    Ok(server) => {
                        tracing::info!(listen = place, "the figures can be fetched");
                        Some(server)
                    }
                    Err(error) => {
                        tracing::error!(listen = place, %error, "the figures cannot be fetched");
                        None
                    }
                }
            });
        }
        self.tell_facts();
    }

    /// Changes how much is logged; an empty level is the configured one. Returns what holds.
    pub(super) fn set_log_level(&mut self, level: &str) -> Result<String, String> {
        let set = self.settings.set_log_level(level);
        set.map_err(|error| format!("{error:#}"))?;
        let level = self.settings.log_level().to_owned();
        tracing::info!(level, "how much is logged was changed over D-Bus");
        self.tell_facts();
        Ok(level)
    }

    /// Puts on the board what holds for the daemon as a whole.
    fn tell_facts(&self) {
        let metrics = self.metrics.as_ref().map(metrics::Server::listen);
        self.board.change(|facts| {
            facts.reactors = self.reactors.len();
            facts.log_level = self.settings.log_level().to_owned();
            facts.slow_command = self.settings.config().slow_command();
            facts.metrics = metrics.map_or_else(String::new, ToString::to_string);
        });
    }
}
