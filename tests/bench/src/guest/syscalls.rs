//! Counting a daemon's system calls with the kernel's own trace events, which slow the daemon far
//! less than ptrace does: a tracer that slows the daemon makes its batches larger.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};

use super::process::output;

/// Counts the events of `raw_syscalls:sys_enter` of one process's threads.
#[derive(Debug)]
pub(super) struct Counter {
    tracing: PathBuf,
}

impl Counter {
    /// Starts to count the system calls of `pid`.
    ///
    /// # Errors
    /// A kernel without that trace event.
    pub(super) fn start(pid: u32) -> Result<Self> {
        let tracing = PathBuf::from("/sys/kernel/tracing");
        if !tracing.join("events").exists() {
            output(
                Command::new("mount")
                    .args(["-t", "tracefs", "nodev"])
                    .arg(&tracing),
                Duration::from_secs(10),
            )
            .context("this kernel has no tracefs")?;
        }
        let counter = Self { tracing };
        counter.set("events/raw_syscalls/sys_enter/enable", "0")?;
        counter.set("tracing_on", "1")?;
        // The oldest events are overwritten: only their number counts.
        counter.set("trace", "")?;
        counter.set("set_event_pid", &threads(pid)?.join(" "))?;
        counter.set("events/raw_syscalls/sys_enter/enable", "1")?;
        Ok(counter)
    }

    /// Ends the count.
    ///
    /// # Errors
    /// A tracefs that cannot be read.
    pub(super) fn stop(self) -> Result<u64> {
        self.set("events/raw_syscalls/sys_enter/enable", "0")?;
        let mut calls = 0;
        for cpu in fs::read_dir(self.tracing.join("per_cpu")).context("tracefs")? {
            let stats = fs::read_to_string(cpu.context("tracefs")?.path().join("stats"))
                .context("tracefs")?;
            calls += events(&stats).context("tracefs' statistics are not understood")?;
        }
        Ok(calls)
    }

    fn set(&self, file: &str, value: &str) -> Result<()> {
        let path = self.tracing.join(file);
        fs::write(&path, value)
            .with_context(|| format!("this kernel cannot count system calls: {}", path.display()))
    }
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
    fn a_process_has_at_least_its_own_thread() {
        let me = std::process::id();
        let threads = threads(me).expect("own threads");
        assert!(threads.contains(&me.to_string()));
    }
}
