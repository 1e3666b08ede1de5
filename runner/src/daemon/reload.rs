//! Taking over settings that have changed.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use super::Daemon;
use crate::config::{Cause, Config, Settings};
use crate::registry::Registry;

/// What the watcher writes into the stream; SIGHUP writes something else.
const NOTICED: u8 = b'n';

/// Bytes come when the settings are to be looked at again: on SIGHUP, and when the file changes.
pub(super) fn requests(settings: &mut Settings) -> anyhow::Result<UnixStream> {
    let (read, write) = UnixStream::pair()?;
    read.set_nonblocking(true)?;
    write.set_nonblocking(true)?;
    let write = Arc::new(write);
    signal_hook::low_level::pipe::register(signal_hook::consts::SIGHUP, write.try_clone()?)?;
    let notice = move || {
        // Full: there are requests enough.
        let _ = (&*write).write(&[NOTICED]);
    };
    settings.watch(notice.clone());
    // What was saved since the file was read.
    notice();
    Ok(read)
}

/// Hands the handlers what the configuration says of them.
pub(super) fn configure_handlers(registry: &Registry, config: &Config) {
    let known: Vec<&str> = registry.help().map(|(subtype, _)| subtype).collect();
    for (subtype, handler) in &config.handlers {
        if handler.is_enabled() && !known.contains(&subtype.as_str()) {
            tracing::warn!(
                "[handlers.{subtype}] has no effect: the handlers are {}",
                known.join(", ")
            );
        }
    }
    registry.allow_paths(config.handlers.iter().filter_map(|(subtype, handler)| {
        let paths = handler.allowed_paths.clone()?;
        Some((subtype.clone(), paths))
    }));
}

impl Daemon {
    /// Reads the settings again if somebody asked for it.
    pub(super) fn hear_reload_requests(&mut self) {
        let mut requests = [0; 64];
        let count = (&self.reload_requests).read(&mut requests).unwrap_or(0);
        let requests = &requests[..count];
        let cause = match requests.iter().find(|&&request| request != NOTICED) {
            _ if requests.is_empty() => return,
            Some(_) => Cause::Asked,
            None => Cause::Noticed,
        };
        if let Some(config) = self.settings.reload(cause) {
            configure_handlers(&self.opener.registry, config);
            self.show_as_configured();
        }
    }
}
