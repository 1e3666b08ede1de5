//! Reads over iSCSI by libiscsi: no SCSI layer is there to try again what ends with BUSY before anybody
//! sees it, as Linux's own does.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use rustix::process::Signal;

use super::super::process::{Daemon, wait_for};
use crate::crash::Iscsi;

/// How many reads are in flight at once.
const DEPTH: &str = "8";
const LIMIT: Duration = Duration::from_secs(30);

/// `iscsi-perf` at work on one LUN. It reads again what ends with BUSY, counts that, and gives up when
/// nothing else comes for long: 4 times the reads in flight.
#[derive(Debug)]
pub(super) struct Reads {
    name: String,
    url: String,
    logs: PathBuf,
    perf: Daemon,
    /// What came of those before that gave up.
    seen: Iscsi,
}

impl Reads {
    /// Reads a LUN, given by its URL, at random; the logs go to `logs`.
    ///
    /// # Errors
    /// A LUN that cannot be read.
    pub(super) fn start(name: &str, url: &str, logs: &Path) -> Result<Self> {
        let mut reads = Self {
            name: name.to_owned(),
            url: url.to_owned(),
            logs: logs.to_owned(),
            perf: perf(name, url, logs)?,
            seen: Iscsi::default(),
        };
        reads.await_progress()?;
        Ok(reads)
    }

    /// Starts again if it gave up.
    ///
    /// # Errors
    /// A LUN that cannot be read any more.
    pub(super) fn go_on(&mut self) -> Result<()> {
        if self.perf.check_alive().is_err() {
            self.add(Iscsi {
                gave_up: 1,
                ..parse(&self.text()?)
            });
            self.perf = perf(&self.name, &self.url, &self.logs)?;
            self.await_progress()?;
        }
        Ok(())
    }

    /// Ends it; returns what became of the reads.
    ///
    /// # Errors
    /// It does not go on.
    pub(super) fn finish(mut self) -> Result<Iscsi> {
        self.go_on()?;
        // What it says now may have been written before the last read ended.
        self.await_progress()?;
        self.add(parse(&self.text()?));
        self.perf.end(Signal::KILL, LIMIT)?;
        Ok(self.seen)
    }

    fn add(&mut self, more: Iscsi) {
        self.seen.busy += more.busy;
        self.seen.failed += more.failed;
        self.seen.gave_up += more.gave_up;
    }

    fn text(&self) -> Result<String> {
        let log = self.logs.join(format!("{}.log", self.name));
        fs::read_to_string(&log).with_context(|| log.display().to_string())
    }

    /// Waits until it has begun and ended another line, of which it writes one a second.
    fn await_progress(&mut self) -> Result<()> {
        let before = lines(&self.text()?).count();
        wait_for("iscsi-perf's progress", LIMIT, || {
            self.perf.check_alive()?;
            Ok((lines(&self.text()?).count() >= before + 2).then_some(()))
        })
    }
}

fn perf(name: &str, url: &str, logs: &Path) -> Result<Daemon> {
    let mut command = Command::new("iscsi-perf");
    // At random, with a line for each progress, and going on after errors.
    command.args(["-r", "-l", "-n", "-m", DEPTH, url]);
    Daemon::start(name, &mut command, logs)
}

/// The lines with figures.
fn lines(text: &str) -> impl Iterator<Item = &str> {
    text.split(['\r', '\n'])
        .filter(|line| line.contains("busy "))
}

/// What iscsi-perf has said last.
fn parse(text: &str) -> Iscsi {
    let last = lines(text).last();
    let busy = last.and_then(|line| line.rsplit_once("busy ")?.1.trim().parse().ok());
    Iscsi {
        busy: busy.unwrap_or(0),
        failed: text.matches("Read16 failed").count() as u64,
        gave_up: 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_figures_count() {
        let text = "connected to iscsi://127.0.0.1/x/0\n\n\
            \r00:00:01 - lba 8, iops current 9 (1 MB/s), iops average 9 (1 MB/s), in_flight 8, busy 0        \n\
            Read16 failed with SENSE KEY:HARDWARE_ERROR(4)\n\
            \r00:00:02 - lba 8, iops current 9 (1 MB/s), iops average 9 (1 MB/s), in_flight 8, busy 41        \n";
        let seen = parse(text);
        assert_eq!((seen.busy, seen.failed), (41, 1));
        assert_eq!(
            parse("connected to iscsi://127.0.0.1/x/0\n"),
            Iscsi::default()
        );
    }
}
