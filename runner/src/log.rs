//! Where the daemon's log goes: to the journal under systemd, otherwise to stderr.

use std::io::IsTerminal;
use std::os::fd::AsFd;

use anyhow::Context;
use tracing::level_filters::LevelFilter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, fmt, reload};

use crate::journal_log::JournalLayer;

/// What a level can be.
pub(crate) const LEVELS: &str =
    "a level is one of \"error\", \"warn\", \"info\", \"debug\", \"trace\", or a filter of modules";

/// The log, which has been started.
#[derive(Debug)]
pub(crate) struct Log {
    filter: reload::Handle<EnvFilter, tracing_subscriber::Registry>,
}

impl Log {
    /// Starts logging; `level` is a level or a filter per module.
    pub(crate) fn start(level: &str) -> anyhow::Result<Self> {
        let (filter, handle) = reload::Layer::new(filter(level)?);
        let registry = tracing_subscriber::registry().with(filter);
        if stderr_is_journal()
            && let Ok(journal) = JournalLayer::connect()
        {
            registry.with(journal).init();
        } else {
            registry
                .with(
                    fmt::layer()
                        .with_writer(std::io::stderr)
                        .with_ansi(std::io::stderr().is_terminal())
                        .with_target(false),
                )
                .init();
        }
        Ok(Self { filter: handle })
    }

    /// Changes how much is logged from now on.
    pub(crate) fn set_level(&self, level: &str) -> anyhow::Result<()> {
        self.filter
            .reload(filter(level)?)
            .context("changing the log's filter")
    }
}

/// A level or a filter per module.
pub(crate) fn filter(level: &str) -> anyhow::Result<EnvFilter> {
    // EnvFilter takes a word that is no level for the name of a module, all of which is to be logged.
    let is_word = !level.contains(['=', ':', ',', '[']);
    let filter = EnvFilter::builder().parse(level).ok();
    let is_level = !level.is_empty() && level.parse::<LevelFilter>().is_ok();
    let known = !is_word || is_level;
    filter.filter(|_| known).with_context(|| {
        format!("\"{level}\" is none of error, warn, info, debug, trace, and no filter of modules")
    })
}

/// systemd names the journal's stream in JOURNAL_STREAM as `device:inode` (sd-journal's
/// convention); the variable may be inherited, so both are compared.
fn stderr_is_journal() -> bool {
    let Ok(stream) = std::env::var("JOURNAL_STREAM") else {
        return false;
    };
    let Ok(stat) = rustix::fs::fstat(std::io::stderr().as_fd()) else {
        return false;
    };
    stream == format!("{}:{}", stat.st_dev, stat.st_ino)
}

#[cfg(test)]
mod tests {
    use super::filter;

    #[test]
    fn levels_and_filters_are_told_from_typing_errors() {
        for good in ["info", "TRACE", "off", "info,tcmu_runner::reactor=trace"] {
            filter(good).unwrap();
        }
        for bad in ["loud", "", "infoo", "tcmu_runner=loud"] {
            assert!(filter(bad).is_err(), "{bad}");
        }
    }
}
