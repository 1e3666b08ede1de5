//! `tcmuctl drain`.

use std::io::{self, Write};
use std::os::fd::AsFd;
use std::process::{Command, ExitStatus};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use clap::Args;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde_json::json;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use zbus::OwnedFd;

use super::client::{Client, Lun};
use super::error::Error;
use crate::output;

pub(super) const EXAMPLES: &str = "\
Examples:
  A snapshot of the volume below a LUN, in which nothing is half done:
      tcmuctl drain disk0 -- lvcreate --snapshot --name before-upgrade --size 5G vg0/disk0

  Know that everything written so far is durable, on all LUNs:
      tcmuctl drain --all";

#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// The LUNs
    #[arg(value_name = "NAME", required_unless_present = "all")]
    names: Vec<String>,

    /// All LUNs that are served
    #[arg(long, conflicts_with = "names")]
    all: bool,

    /// Their HBA user_N, if several have a LUN of such a name
    #[arg(long, value_name = "N", requires = "names")]
    hba: Option<u32>,

    /// Serve the LUNs again after this time in any case, also if commands are still in flight
    #[arg(long, value_name = "SECONDS", default_value_t = 30, value_parser = clap::value_parser!(u32).range(1..=3600))]
    limit: u32,

    /// Hold the LUNs until this is interrupted (Ctrl-C), or --limit is over
    #[arg(long, conflicts_with = "command")]
    hold: bool,

    /// Run this while the LUNs are held
    #[arg(value_name = "COMMAND", last = true)]
    command: Vec<String>,
}

/// Beyond its own limit, the daemon needs a moment to answer.
const GRACE: Duration = Duration::from_secs(10);

impl Arguments {
    /// How long the daemon may take to answer.
    pub(super) fn patience(&self) -> Duration {
        Duration::from_secs(self.limit.into()) + GRACE
    }
}

pub(super) fn run(client: &Client, arguments: &Arguments, as_json: bool) -> Result<(), Error> {
    let interrupted = Arc::new(AtomicBool::new(false));
    if arguments.hold {
        for signal in [SIGINT, SIGTERM, SIGHUP] {
            signal_hook::flag::register(signal, Arc::clone(&interrupted))?;
        }
    }
    let wanted = client.find(&arguments.names, arguments.hba)?;
    let ids: Vec<u32> = wanted.iter().map(|lun| lun.id).collect();
    let (hold, drained) = client.drain(&ids, arguments.limit)?;
    let luns = client.luns()?;
    tell(&luns, &drained, as_json)?;
    if let Some((program, rest)) = arguments.command.split_first() {
        let status = Command::new(program).args(rest).status();
        let in_time = is_held(&hold)?;
        drop(hold);
        let status = status.map_err(|error| Error::Refused(format!("{program}: {error}")))?;
        if !in_time {
            return Err(too_late(arguments.limit, "when the command ended"));
        }
        return ended(status);
    }
    while arguments.hold && !interrupted.load(Ordering::Relaxed) {
        if !is_held(&hold)? {
            return Err(too_late(arguments.limit, "before they were released"));
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    Ok(())
}

fn too_late(limit: u32, when: &str) -> Error {
    Error::Refused(format!(
        "the LUNs were not held any more {when}: the limit of {limit} s was over, or tcmu-runner or a LUN \
         has gone"
    ))
}

fn tell(luns: &[Lun], drained: &[u32], as_json: bool) -> Result<(), Error> {
    let names = luns.iter().filter(|lun| drained.contains(&lun.id));
    let names: Vec<&str> = names.map(|lun| lun.name.as_str()).collect();
    let mut out = io::stdout().lock();
    if as_json {
        output::json(&json!({ "drained": names }))?;
    } else {
        for name in names {
            writeln!(out, "{name}: nothing is in flight, and all is durable")?;
        }
    }
    Ok(out.flush()?)
}

/// Whether the daemon still holds the LUNs: it has not closed its end.
fn is_held(hold: &OwnedFd) -> Result<bool, Error> {
    let hold = hold.as_fd();
    let mut watched = [PollFd::from_borrowed_fd(hold, PollFlags::empty())];
    poll(&mut watched, Some(&Timespec::default())).map_err(io::Error::from)?;
    let released = PollFlags::HUP | PollFlags::ERR;
    Ok(!watched[0].revents().intersects(released))
}

fn ended(status: ExitStatus) -> Result<(), Error> {
    if status.success() {
        return Ok(());
    }
    // A signal's number has no place in an exit status: as shells do.
    let signal =
        || std::os::unix::process::ExitStatusExt::signal(&status).map(|signal| 128 + signal);
    let code = status.code().or_else(signal);
    Err(Error::Command(
        code.and_then(|code| u8::try_from(code).ok()).unwrap_or(1),
    ))
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;
    use std::os::unix::process::ExitStatusExt;

    use super::*;

    #[test]
    fn a_hold_ends_with_the_other_end() {
        let (ours, theirs) = UnixStream::pair().expect("a pair");
        let hold = OwnedFd::from(std::os::fd::OwnedFd::from(ours));
        assert!(is_held(&hold).expect("known"));
        drop(theirs);
        assert!(!is_held(&hold).expect("known"));
    }

    #[test]
    fn the_exit_status_is_the_commands() {
        let code = |raw| match ended(ExitStatus::from_raw(raw)) {
            Ok(()) => 0,
            Err(Error::Command(code)) => code,
            Err(other) => panic!("{other}"),
        };
        assert_eq!(code(0), 0);
        assert_eq!(code(7 << 8), 7);
        assert_eq!(code(9), 137, "killed");
    }
}
