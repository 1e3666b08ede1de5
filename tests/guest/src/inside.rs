//! The guest's side: runs the tests that the host names, each in a process of its own.

use std::fs;
use std::io;
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, ExitCode, ExitStatus};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal};

use crate::events::{Event, Outcome};
use crate::evidence;
use crate::lun;
use crate::registry::{GuestTest, Skipped};

/// First argument: run the tests named by the others.
pub(crate) const RUN_ALL: &str = "--inside-run-all";
/// First argument: be the process of the one test named next.
pub(crate) const RUN_ONE: &str = "--inside-run-one";

/// Exit code of a skipped test's process (as automake has it).
const SKIPPED: u8 = 77;
/// Where a skipped test's process leaves its reason.
const SKIP_REASON: &str = "/run/guest-test-skipped";

/// Runs tests until one does not pass: what it left behind must not spoil the next one, so the host
/// gives the others a fresh guest.
pub(crate) fn run_all(names: impl Iterator<Item = String>) -> ExitCode {
    let tests = GuestTest::all();
    for name in names {
        Event::Started { test: name.clone() }.send();
        let outcome = match tests.iter().find(|t| t.name() == name) {
            Some(test) => supervise(test)
                .unwrap_or_else(|e| Outcome::Failed(format!("its process could not be run: {e}"))),
            None => Outcome::Failed("this binary has no such test".into()),
        };
        let failed = matches!(outcome, Outcome::Failed(_));
        Event::Ended {
            test: name,
            outcome,
        }
        .send();
        if failed {
            return ExitCode::FAILURE;
        }
    }
    ExitCode::SUCCESS
}

fn supervise(test: &GuestTest) -> io::Result<Outcome> {
    let mut child = Command::new(std::env::current_exe()?)
        .args([RUN_ONE, test.name()])
        .process_group(0)
        .spawn()?;
    let ended = wait(&mut child, test.limit)?;
    if ended.is_none() {
        evidence::show(child.id());
    }
    // What the test started and left running goes with it.
    if let Some(group) = i32::try_from(child.id()).ok().and_then(Pid::from_raw) {
        let _ = rustix::process::kill_process_group(group, Signal::KILL);
    }
    Ok(match ended {
        None => Outcome::Failed(format!("still running after {} s", test.limit.as_secs())),
        Some(status) if status.success() => Outcome::Passed,
        Some(status) if status.code() == Some(SKIPPED.into()) => {
            Outcome::Skipped(fs::read_to_string(SKIP_REASON)?)
        }
        Some(status) if status.code() == Some(1) => Outcome::Failed(String::new()),
        Some(status) => Outcome::Failed(format!("its process ended with {status}")),
    })
}

/// Waits for a process; `None` if it is still there when the time is up.
fn wait(child: &mut Child, limit: Duration) -> io::Result<Option<ExitStatus>> {
    let deadline = Instant::now() + limit;
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        if Instant::now() >= deadline {
            return Ok(None);
        }
        thread::sleep(Duration::from_millis(5));
    }
}

/// The process of one test. A panic ends it with Rust's own exit code, 101.
pub(crate) fn run_one(name: &str) -> ExitCode {
    let Some(test) = GuestTest::all().into_iter().find(|t| t.name() == name) else {
        eprintln!("this binary has no test {name}");
        return ExitCode::FAILURE;
    };
    lun::begin();
    match (test.run)() {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => match e.downcast_ref::<Skipped>() {
            Some(Skipped(reason)) if fs::write(SKIP_REASON, reason).is_ok() => {
                ExitCode::from(SKIPPED)
            }
            _ => {
                eprintln!("Error: {e:?}");
                ExitCode::FAILURE
            }
        },
    }
}
