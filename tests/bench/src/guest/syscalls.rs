//! Counting a daemon's system calls.
//!
//! The kernel's own trace events slow the daemon far less than strace does, and a slower daemon
//! makes larger batches. So strace serves only where the kernel has no such events.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};

use super::process::{Daemon, output, wait_for};
use crate::record::Method;

const LIMIT: Duration = Duration::from_secs(20);

/// Counts the system calls of one process's threads.
#[derive(Debug)]
pub(super) enum Counter {
    /// By the events of `raw_syscalls:sys_enter` in this tracefs.
    Events(PathBuf),
    /// By strace, which writes its summary here at its end.
    Strace(Daemon, PathBuf),
}

impl Counter {
    /// Starts to count the system calls of `pid`; `folder` takes temporary files.
    ///
    /// # Errors
    /// A kernel without trace events in a guest without strace.
    pub(super) fn start(pid: u32, folder: &Path) -> Result<Self> {
        let by_events = start_events(pid);
        match by_events {
            Ok(tracing) => Ok(Self::Events(tracing)),
            Err(no_events) => start_strace(pid, folder)
                .with_context(|| format!("no trace events ({no_events:#}) and no strace")),
        }
    }

    /// How it counts.
    pub(super) fn method(&self) -> Method {
        match self {
            Self::Events(_) => Method::TraceEvents,
            Self::Strace(..) => Method::Strace,
        }
    }

    /// Ends the count.
    ///
    /// # Errors
    /// A summary that cannot be read.
    pub(super) fn stop(self) -> Result<u64> {
        match self {
            Self::Events(tracing) => {
                set(&tracing, "events/raw_syscalls/sys_enter/enable", "0")?;
                let mut calls = 0;
                for cpu in fs::read_dir(tracing.join("per_cpu")).context("tracefs")? {
                    let stats = fs::read_to_string(cpu.context("tracefs")?.path().join("stats"))
                        .context("tracefs")?;
                    calls += events(&stats).context("tracefs' statistics are not understood")?;
                }
                Ok(calls)
            }
            Self::Strace(strace, summary) => {
                strace.stop()?;
                let text = fs::read_to_string(&summary).context("strace's summary")?;
                total(&text).context("strace's summary is not understood")
            }
        }
    }
}

fn start_events(pid: u32) -> Result<PathBuf> {
    let tracing = PathBuf::from("/sys/kernel/tracing");
    if !tracing.join("events").exists() {
        output(
            Command::new("mount")
                .args(["-t", "tracefs", "nodev"])
                .arg(&tracing),
            LIMIT,
        )
        .ok()
        .context("no tracefs")?;
    }
    set(&tracing, "events/raw_syscalls/sys_enter/enable", "0")?;
    set(&tracing, "tracing_on", "1")?;
    // The oldest events are overwritten: only their number counts.
    set(&tracing, "trace", "")?;
    set(&tracing, "set_event_pid", &threads(pid)?.join(" "))?;
    set(&tracing, "events/raw_syscalls/sys_enter/enable", "1")?;
    Ok(tracing)
}

fn set(tracing: &Path, file: &str, value: &str) -> Result<()> {
    let path = tracing.join(file);
    fs::write(&path, value).with_context(|| path.display().to_string())
}

fn start_strace(pid: u32, folder: &Path) -> Result<Counter> {
    let summary = folder.join("strace.summary");
    let mut command = Command::new("strace");
    command
        .args(["-c", "-f", "-p", &pid.to_string(), "-o"])
        .arg(&summary);
    let mut strace = Daemon::start("strace", &mut command, folder)?;
    let status = format!("/proc/{pid}/status");
    wait_for("strace on the daemon", LIMIT, || {
        let text = fs::read_to_string(&status).context("the daemon's state")?;
        Ok((!text.contains("TracerPid:\t0")).then_some(()))
    })?;
    strace.check_alive()?;
    Ok(Counter::Strace(strace, summary))
}

fn threads(pid: u32) -> Result<Vec<String>> {
    fs::read_dir(Path::new("/proc").join(pid.to_string()).join("task"))
        .context("the daemon's threads")?
        .map(|task| Ok(task?.file_name().to_string_lossy().into_owned()))
        .collect()
}

/// The events that a CPU's trace buffer has seen: those in it and those already overwritten.
fn events(stats: &str) -> Option<u64> {
    let value = |key: &str| {
        stats
            .lines()
            .find_map(|line| line.strip_prefix(key)?.trim().parse::<u64>().ok())
    };
    Some(value("entries:")? + value("overrun:")?)
}

/// The calls in the closing line of `strace -c`: share, seconds, microseconds per call, calls.
fn total(summary: &str) -> Option<u64> {
    let line = summary.lines().rfind(|line| line.ends_with(" total"))?;
    line.split_ascii_whitespace().nth(3)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn overwritten_events_count() {
        let stats = "entries: 129\noverrun: 1000\ncommit overrun: 7\nbytes: 5240\n";
        assert_eq!(events(stats), Some(1129));
        assert_eq!(events("entries: 1\n"), None);
    }

    #[test]
    fn straces_closing_line_is_read() {
        let summary = "% time     seconds  usecs/call     calls    errors syscall\n\
            ------ ----------- ----------- --------- --------- ----------------\n \
            50.00    0.000100          50         2         1 total_recall\n\
            100.00    1.310000        8911       147        20 total\n";
        assert_eq!(total(summary), Some(147));
        let no_errors = "100.00    1.310000        8911       147           total\n";
        assert_eq!(total(no_errors), Some(147));
        assert_eq!(total(""), None);
    }

    #[test]
    fn a_process_has_at_least_its_own_thread() {
        let me = std::process::id();
        let threads = threads(me).expect("own threads");
        assert!(threads.contains(&me.to_string()));
    }
}
