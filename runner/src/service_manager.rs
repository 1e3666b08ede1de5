//! What systemd is told of the daemon (sd_notify(3)). Without systemd all of this does nothing.

use std::time::Duration;

use sd_notify::NotifyState;

/// How often systemd wants to hear that the daemon is alive, if it does (`WatchdogSec=`).
pub(crate) fn watchdog_limit() -> Option<Duration> {
    sd_notify::watchdog_enabled()
}

/// The daemon can be used.
pub(crate) fn ready(luns: usize) {
    tell(&[NotifyState::Ready, NotifyState::Status(&status(luns))]);
}

/// How many LUNs there are has changed.
pub(crate) fn luns(luns: usize) {
    tell(&[NotifyState::Status(&status(luns))]);
}

/// The daemon finishes what is in flight, and ends.
pub(crate) fn stopping() {
    let status = NotifyState::Status("finishing what is in flight");
    tell(&[NotifyState::Stopping, status]);
}

/// The daemon is alive.
pub(crate) fn alive() {
    tell(&[NotifyState::Watchdog]);
}

fn status(luns: usize) -> String {
    match luns {
        1 => "1 LUN".to_owned(),
        luns => format!("{luns} LUNs"),
    }
}

fn tell(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::warn!(%error, "systemd cannot be told how the daemon is");
    }
}
