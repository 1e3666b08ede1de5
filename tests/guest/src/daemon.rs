//! The runner, as a test starts and ends it.

use std::fs::{self, File};
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use rustix::process::{Pid, Signal};

/// Environment variable with the folder of the programs under test.
pub(crate) const PROGRAMS_VAR: &str = "TCMU_GUEST_PROGRAMS";

/// How long the daemon may take to start or to stop. Generous: a hang should run into it.
const PATIENCE: Duration = Duration::from_secs(60);

const POLL: Duration = Duration::from_millis(5);

/// The daemon.
pub const RUNNER: &str = "tcmu-runner";
/// The same, which the environment variable `TCMU_KILL_AT` kills at a chosen point.
pub const RUNNER_WITH_KILL_POINTS: &str = "tcmu-runner-kill-points";

static STARTED: AtomicU32 = AtomicU32::new(0);

/// The path of a program under test, such as `tcmuctl`.
///
/// # Errors
/// If it has not been built.
pub fn program(name: &str) -> anyhow::Result<PathBuf> {
    let dir = std::env::var(PROGRAMS_VAR).with_context(|| format!("{PROGRAMS_VAR} is not set"))?;
    let path = Path::new(&dir).join(name);
    anyhow::ensure!(path.is_file(), "{} has not been built", path.display());
    Ok(path)
}

/// Where a test's process keeps the log of the daemon that it started as the `number`th.
pub(crate) fn log_of(test: u32, number: u32) -> PathBuf {
    PathBuf::from(format!("/run/guest-test-daemon-{test}-{number}.log"))
}

/// A running `tcmu-runner`. Dropped, it is killed, and its log is printed, so that a
/// failed test shows it.
#[derive(Debug)]
pub struct Daemon {
    process: Child,
    log: PathBuf,
}

impl Daemon {
    /// Starts it without D-Bus and waits until it says that it is ready.
    ///
    /// # Errors
    /// If it ends or stays silent instead.
    pub fn start() -> anyhow::Result<Self> {
        Self::start_with(RUNNER, &[], &[])
    }

    /// Starts this program with these arguments and environment variables, otherwise like
    /// [`start`](Self::start).
    ///
    /// # Errors
    /// As there.
    pub fn start_with(program: &str, args: &[&str], vars: &[(&str, &str)]) -> anyhow::Result<Self> {
        Self::spawn(program, &[&["--no-dbus"], args].concat(), vars)?.await_ready()
    }

    /// Starts a program that serves devices and is not the daemon, and waits until it says `ready`.
    ///
    /// # Errors
    /// As [`start`](Self::start).
    pub fn start_other(program: &str, args: &[&str], ready: &str) -> anyhow::Result<Self> {
        Self::spawn(program, args, &[])?.await_word(ready)
    }

    /// Starts it with D-Bus, where there may be a bus or not, and waits until it says that it is
    /// ready.
    ///
    /// # Errors
    /// As [`start`](Self::start).
    pub fn start_on_bus() -> anyhow::Result<Self> {
        Self::spawn(RUNNER, &[], &[])?.await_ready()
    }

    /// Starts it with the settings in a file, and D-Bus if there is a bus, and waits until it says
    /// that it is ready.
    ///
    /// # Errors
    /// As [`start`](Self::start).
    pub fn start_with_config(file: &str) -> anyhow::Result<Self> {
        Self::spawn(RUNNER, &["--config", file], &[])?.await_ready()
    }

    /// Starts this program, as [`start_with`](Self::start_with), though something may kill it at any
    /// moment: waits until it says that it is ready, or has ended.
    ///
    /// # Errors
    /// If it stays silent instead.
    pub fn start_doomed(
        program: &str,
        args: &[&str],
        vars: &[(&str, &str)],
    ) -> anyhow::Result<Self> {
        let mut daemon = Self::spawn(program, &[&["--no-dbus"], args].concat(), vars)?;
        daemon.said_or_ended(" ready ")?;
        Ok(daemon)
    }

    fn await_ready(self) -> anyhow::Result<Self> {
        self.await_word(" ready ")
    }

    fn await_word(mut self, word: &str) -> anyhow::Result<Self> {
        if let Some(status) = self.said_or_ended(word)? {
            bail!("the daemon ended at its start with {status}");
        }
        Ok(self)
    }

    /// Waits until its log has this word; returns how it ended, if it did that first.
    fn said_or_ended(&mut self, word: &str) -> anyhow::Result<Option<ExitStatus>> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            // Asked before the log is read: what ends after it was ready is no failure to start.
            let ended = self.process.try_wait()?;
            if self.log().lines().any(|line| line.contains(word)) {
                return Ok(None);
            }
            if ended.is_some() {
                return Ok(ended);
            }
            if Instant::now() > deadline {
                bail!("the daemon is not ready after {} s", PATIENCE.as_secs());
            }
            thread::sleep(POLL);
        }
    }

    /// Starts one that is expected to end by itself, and returns how it did and its log.
    ///
    /// # Errors
    /// If it is still running after a minute.
    pub fn start_expecting_end() -> anyhow::Result<(ExitStatus, String)> {
        let mut daemon = Self::spawn(RUNNER, &["--no-dbus"], &[])?;
        let status = daemon.wait()?;
        Ok((status, daemon.log()))
    }

    /// As [`start_expecting_end`](Self::start_expecting_end), with the settings in a file.
    ///
    /// # Errors
    /// As that.
    pub fn start_with_config_expecting_end(file: &str) -> anyhow::Result<(ExitStatus, String)> {
        let mut daemon = Self::spawn(RUNNER, &["--config", file], &[])?;
        let status = daemon.wait()?;
        Ok((status, daemon.log()))
    }

    fn spawn(name: &str, args: &[&str], vars: &[(&str, &str)]) -> anyhow::Result<Self> {
        let number = STARTED.fetch_add(1, Ordering::Relaxed);
        let log = log_of(std::process::id(), number);
        let out = File::create(&log).with_context(|| format!("cannot make {}", log.display()))?;
        let process = Command::new(program(name)?)
            .args(args)
            .envs(vars.iter().copied())
            .stdin(Stdio::null())
            .stdout(out.try_clone()?)
            .stderr(out)
            .spawn()
            .context("cannot start the daemon")?;
        Ok(Daemon { process, log })
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.process.id()
    }

    /// What it has logged so far.
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Waits until what it has logged from a byte on contains `text`; returns the log's length then.
    ///
    /// # Errors
    /// If it does not within a minute.
    pub fn await_log(&self, from: usize, text: &str) -> anyhow::Result<usize> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let log = self.log();
            if log.get(from..).is_some_and(|new| new.contains(text)) {
                return Ok(log.len());
            }
            if Instant::now() > deadline {
                bail!("the daemon does not log `{text}`");
            }
            thread::sleep(POLL);
        }
    }

    /// Asks it to read its settings again (SIGHUP).
    ///
    /// # Errors
    /// If it is gone.
    pub fn reload(&self) -> anyhow::Result<()> {
        self.signal(Signal::HUP)
    }

    /// Asks it to end (SIGTERM) and waits for that.
    ///
    /// # Errors
    /// If it does not end, or not with code 0.
    pub fn stop(mut self) -> anyhow::Result<()> {
        self.signal(Signal::TERM)?;
        let status = self.wait()?;
        anyhow::ensure!(
            status.success(),
            "on SIGTERM the daemon ended with {status}"
        );
        Ok(())
    }

    /// Kills it (SIGKILL), as a crash would.
    ///
    /// # Errors
    /// If it survives that.
    pub fn kill(mut self) -> anyhow::Result<()> {
        self.signal(Signal::KILL)?;
        self.wait().map(drop)
    }

    /// Waits until somebody else has killed it (SIGKILL).
    ///
    /// # Errors
    /// If nobody does, or it ends otherwise.
    pub fn wait_for_kill(mut self) -> anyhow::Result<()> {
        let status = self.wait()?;
        let killed = status.signal() == Some(Signal::KILL.as_raw());
        anyhow::ensure!(
            killed,
            "the daemon was to be killed, and ended with {status}"
        );
        Ok(())
    }

    /// Whether it has not ended.
    ///
    /// # Errors
    /// If that cannot be found out.
    pub fn is_running(&mut self) -> anyhow::Result<bool> {
        Ok(self.process.try_wait()?.is_none())
    }

    /// Sends it a signal.
    ///
    /// # Errors
    /// If it is gone.
    pub fn signal(&self, signal: Signal) -> anyhow::Result<()> {
        let pid = i32::try_from(self.process.id())
            .ok()
            .and_then(Pid::from_raw);
        let pid = pid.context("the daemon has no process id")?;
        rustix::process::kill_process(pid, signal).context("cannot signal the daemon")
    }

    fn wait(&mut self) -> anyhow::Result<ExitStatus> {
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline {
            if let Some(status) = self.process.try_wait()? {
                return Ok(status);
            }
            thread::sleep(POLL);
        }
        bail!("the daemon is still running after {} s", PATIENCE.as_secs())
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        println!("--- the daemon's log:\n{}---", self.log());
    }
}
