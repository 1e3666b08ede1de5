//! Where the daemon's log goes: to the journal under systemd, otherwise to stderr.

use std::io::IsTerminal;
use std::os::fd::AsFd;

use anyhow::Context;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, fmt};

/// Starts logging; `level` is a level or a filter per module.
pub(crate) fn start(level: &str) -> anyhow::Result<()> {
    let filter = EnvFilter::builder().parse(level).with_context(|| {
        format!("the log level \"{level}\" is none of error, warn, info, debug, trace")
    })?;
    let registry = tracing_subscriber::registry().with(filter);
    if stderr_is_journal()
        && let Ok(journal) = tracing_journald::layer()
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
    Ok(())
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
