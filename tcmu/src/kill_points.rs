//! Points at which a test has the process killed (feature `kill-points`).
//!
//! The environment variable `TCMU_KILL_AT` holds a point's name and how often it is passed before:
//! `fetched:40`, `noted:3`, `publishing:7`, `published:0`.

use std::sync::LazyLock;
use std::sync::atomic::{AtomicI64, Ordering};

use rustix::process::{Signal, getpid, kill_process};

/// Where a process can be killed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum KillPoint {
    /// A command is fetched, and noted in the table.
    Fetched,
    /// The table knows how far a command has come that cannot simply run again.
    Noted,
    /// The table knows of a publication that has not taken place.
    Publishing,
    /// A publication has taken place, and the kernel is not kicked.
    Published,
}

static CHOSEN: LazyLock<Option<(KillPoint, AtomicI64)>> = LazyLock::new(|| {
    let text = std::env::var("TCMU_KILL_AT").ok()?;
    let (name, passes) = text.split_once(':')?;
    let point = match name {
        "fetched" => KillPoint::Fetched,
        "noted" => KillPoint::Noted,
        "publishing" => KillPoint::Publishing,
        "published" => KillPoint::Published,
        _ => return None,
    };
    Some((point, AtomicI64::new(passes.parse().ok()?)))
});

/// Passes a point, or not.
pub(crate) fn pass(point: KillPoint) {
    if let Some((chosen, left)) = &*CHOSEN
        && *chosen == point
        && left.fetch_sub(1, Ordering::Relaxed) <= 0
    {
        // The process has no time to see an error.
        let _ = kill_process(getpid(), Signal::KILL);
    }
}
