//! Programs and kernel calls that may hang, each with a bounded wait.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use rustix::process::Signal;

/// Runs `work` in a thread and waits at most `limit` for it. A system call that never returns keeps
/// its thread: the guest is powered off at the end whatever hangs in it.
///
/// # Errors
/// Those of `work`, and the end of the wait.
pub(super) fn bounded<T: Send + 'static>(
    what: &str,
    limit: Duration,
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || sender.send(work()));
    match receiver.recv_timeout(limit) {
        Ok(result) => result.with_context(|| what.to_owned()),
        Err(mpsc::RecvTimeoutError::Timeout) => {
            bail!("{what}: no end after {} s", limit.as_secs())
        }
        Err(mpsc::RecvTimeoutError::Disconnected) => bail!("{what}: its thread panicked"),
    }
}

/// Calls `probe` until it yields a value, at most for `limit`.
///
/// # Errors
/// The end of the wait, with what `probe` said last.
pub(super) fn wait_for<T>(
    what: &str,
    limit: Duration,
    mut probe: impl FnMut() -> Result<Option<T>>,
) -> Result<T> {
    let end = Instant::now() + limit;
    loop {
        let outcome = probe();
        if let Ok(Some(value)) = outcome {
            return Ok(value);
        }
        if Instant::now() >= end {
            let error = anyhow!("{what}: not after {} s", limit.as_secs());
            return Err(match outcome {
                Err(last) => last.context(error),
                Ok(_) => error,
            });
        }
        thread::sleep(Duration::from_millis(50));
    }
}

/// Runs a program to its end and returns its standard output.
///
/// # Errors
/// A program that is missing, fails (with what it wrote to standard error), or does not end within
/// `limit`; the latter is killed.
pub(super) fn output(command: &mut Command, limit: Duration) -> Result<String> {
    let what = format!("{command:?}");
    let out = tempfile::tempfile().context("temporary file")?;
    let err = tempfile::tempfile().context("temporary file")?;
    let child = command
        .stdin(Stdio::null())
        .stdout(out.try_clone().context("temporary file")?)
        .stderr(err.try_clone().context("temporary file")?)
        .spawn()
        .with_context(|| format!("cannot start {what}"))?;
    let status = end_of(child, limit).with_context(|| what.clone())?;
    if !status.success() {
        bail!("{what}: {status}: {}", text_of(err)?.trim());
    }
    text_of(out)
}

fn text_of(mut file: File) -> Result<String> {
    use std::io::{Read, Seek};
    let mut bytes = Vec::new();
    file.rewind()?;
    file.read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// Waits at most `limit` for a child; then it is killed and left to itself, since a process in an
/// uninterruptible call does not end by a signal.
fn end_of(mut child: Child, limit: Duration) -> Result<ExitStatus> {
    let pid = rustix::process::Pid::from_child(&child);
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || sender.send(child.wait()));
    match receiver.recv_timeout(limit) {
        Ok(status) => status.context("cannot wait for it"),
        Err(_) => {
            // It may end at this very moment: nothing is lost if the signal finds nobody.
            let _ = rustix::process::kill_process(pid, Signal::KILL);
            bail!("no end after {} s", limit.as_secs())
        }
    }
}

/// A program in the background, its output in a file.
#[derive(Debug)]
pub(super) struct Daemon {
    name: String,
    child: Child,
    log: PathBuf,
}

impl Daemon {
    /// Starts `command`; its output goes to `<name>.log` in `logs`.
    ///
    /// # Errors
    /// A program that cannot be started.
    pub(super) fn start(name: &str, command: &mut Command, logs: &Path) -> Result<Self> {
        let log = logs.join(format!("{name}.log"));
        let file = File::create(&log).with_context(|| log.display().to_string())?;
        let child = command
            .stdin(Stdio::null())
            .stdout(file.try_clone().context("log file")?)
            .stderr(file)
            .spawn()
            .with_context(|| format!("cannot start {command:?}"))?;
        Ok(Self {
            name: name.to_owned(),
            child,
            log,
        })
    }

    /// Its process id.
    #[must_use]
    pub(super) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Asks it to end and waits a moment, so that it writes its closing lines.
    ///
    /// # Errors
    /// A daemon that does not end.
    pub(super) fn stop(self) -> Result<()> {
        self.end(Signal::TERM, Duration::from_secs(10))
    }

    /// Ends it by a signal, and waits until it has ended.
    ///
    /// # Errors
    /// A daemon that does not end within `limit`.
    pub(super) fn end(self, signal: Signal, limit: Duration) -> Result<()> {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, signal)
            .with_context(|| format!("cannot signal {}", self.name))?;
        self.ended(limit)
    }

    /// Waits until it has ended by itself.
    ///
    /// # Errors
    /// A daemon that does not end within `limit`.
    pub(super) fn ended(mut self, limit: Duration) -> Result<()> {
        let end = Instant::now() + limit;
        while self
            .child
            .try_wait()
            .context("cannot wait for it")?
            .is_none()
        {
            if Instant::now() >= end {
                bail!("{} has not ended after {} s", self.name, limit.as_secs());
            }
            thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }

    /// An error that says how the daemon ended and what it wrote last, if it has ended.
    ///
    /// # Errors
    /// The daemon has ended.
    pub(super) fn check_alive(&mut self) -> Result<()> {
        match self.child.try_wait().context("cannot ask for its state")? {
            None => Ok(()),
            Some(status) => bail!("{} ended: {status}; {}", self.name, self.last_words()),
        }
    }

    /// The end of its log.
    #[must_use]
    pub(super) fn last_words(&self) -> String {
        let text = std::fs::read(&self.log).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let lines: Vec<&str> = text.lines().collect();
        let tail = lines[lines.len().saturating_sub(4)..].join(" | ");
        format!("its last lines: {tail:?}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_that_does_not_end_is_given_up() {
        let error = output(Command::new("sleep").arg("600"), Duration::from_millis(50))
            .expect_err("sleeps longer");
        assert!(format!("{error:#}").contains("no end after"), "{error:#}");
    }

    #[test]
    fn a_failing_programs_words_are_in_the_error() {
        let error = output(
            Command::new("sh").args(["-c", "echo why >&2; exit 3"]),
            Duration::from_secs(60),
        )
        .expect_err("exit 3");
        let text = format!("{error:#}");
        assert!(text.contains("why") && text.contains('3'), "{text}");
        let said = output(Command::new("echo").arg("hello"), Duration::from_secs(60));
        assert_eq!(said.expect("echo works"), "hello\n");
    }

    #[test]
    fn waiting_ends_with_the_last_error() {
        let mut calls = 0;
        let value = wait_for("third call", Duration::from_secs(60), || {
            calls += 1;
            Ok((calls == 3).then_some(calls))
        });
        assert_eq!(value.expect("third call"), 3);
        let error =
            wait_for::<()>("never", Duration::ZERO, || bail!("not yet")).expect_err("never comes");
        assert!(format!("{error:#}").contains("not yet"));
    }

    #[test]
    fn a_call_that_hangs_is_left_behind() {
        let error = bounded("hang", Duration::from_millis(20), || {
            thread::sleep(Duration::from_secs(600));
            Ok(())
        })
        .expect_err("hangs");
        assert!(error.to_string().contains("hang: no end"));
    }

    #[test]
    fn a_dead_daemon_is_noticed_with_its_last_words() {
        let logs = tempfile::tempdir().expect("temporary folder");
        let mut command = Command::new("sh");
        command.args(["-c", "echo cannot listen; exit 1"]);
        let mut daemon = Daemon::start("d", &mut command, logs.path()).expect("starts");
        let error = (0..3000).find_map(|_| {
            thread::sleep(Duration::from_millis(10));
            daemon.check_alive().err()
        });
        let text = format!("{:#}", error.expect("it ends"));
        assert!(text.contains("cannot listen"), "{text}");
    }
}
