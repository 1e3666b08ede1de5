//! The guardian: another process, which sees to it that a daemon that was killed can end.
//!
//! A thread that waits for a lock of configfs, or for the answer to a change of its own, cannot be
//! killed, and the kernel holds such locks while it waits for the daemon's answer (see
//! [`tcmu::configfs`]). A daemon that is killed at such a moment can neither answer nor end. It stays
//! a zombie whose netlink socket is open, so that the kernel goes on waiting for it, and whose lock
//! is held; and whoever started it is not told that it has ended.
//!
//! Nothing that the daemon does can rule that out. Attributes are never kept in the directory cache
//! (fs/configfs/mount.c), so that RESOLVE_CACHED of openat2(2) finds none; opening and reading one
//! waits for `frag_sem` whatever the flags (fs/configfs/file.c); and what configfs says of a LUN is
//! said nowhere else. But another process can end the kernel's waits, and with them all of the rest.
//!
//! The guardian sleeps until the daemon's main thread has ended. Usually the daemon is gone then, and
//! so is the guardian. It holds a lock as long as it lives, and the next daemon waits for that: nobody
//! else switches TCMU's netlink interface at the same time.

use std::fs::{self, File};
use std::io::{self, Write};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::Context;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fd::OwnedFd;
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal};
use signal_hook::consts::{SIGABRT, SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1};
use signal_hook::iterator::Signals;
use tcmu::discovery::Sysfs;
use tcmu::module::Module;

/// What a daemon has to end that nothing holds up.
const GRACE: Duration = Duration::from_millis(100);

/// What it has to end once the kernel waits for nobody.
pub(crate) const UNBLOCKING: Duration = Duration::from_secs(1);

/// When the kernel's waits are ended again: new ones may have begun, since a zombie's socket seems to
/// be a listener.
const PAUSE: Duration = Duration::from_secs(10);

/// Starts this process's guardian, which keeps `lock` as long as it lives.
///
/// The calling thread is the one whose end the guardian hears of.
pub(crate) fn start(lock: File) -> io::Result<()> {
    let guardian = Command::new("/proc/self/exe")
        .arg("--guard")
        .arg(std::process::id().to_string())
        .stdin(lock)
        .stdout(Stdio::null())
        .spawn()?;
    tracing::debug!(process = guardian.id(), "guarded");
    Ok(())
}

/// Is the guardian of the daemon with this process id, which has started it.
pub(crate) fn run(daemon: i32) -> anyhow::Result<()> {
    // Whoever looks for daemons by their name does not mean this process.
    rustix::thread::set_name(c"tcmu-guardian").context("taking a name")?;
    // What is sent to all of a unit, or to all of a terminal's job, is for the daemon, and the guardian
    // ends after that.
    let others = [SIGABRT, SIGHUP, SIGINT, SIGQUIT, SIGTERM];
    let mut signals = Signals::new(others.iter().chain([&SIGUSR1])).context("hearing signals")?;
    rustix::process::set_parent_process_death_signal(Some(Signal::USR1))
        .context("waiting for the daemon's end")?;
    let Some(pid) = Pid::from_raw(daemon) else {
        anyhow::bail!("{daemon} is no process id");
    };
    let process = match rustix::process::pidfd_open(pid, PidfdFlags::empty()) {
        Err(Errno::SRCH) => return Ok(()),
        process => process.context("waiting for the daemon's end")?,
    };
    if rustix::process::getppid() != Some(pid) {
        return Ok(()); // It has ended, and its number may be somebody else's.
    }
    if !is_zombie(pid) {
        // A zombie's threads take over its children, so that `getppid` would not tell.
        signals.forever().find(|signal| *signal == SIGUSR1);
    }
    if has_ended(&process, GRACE)? {
        return Ok(());
    }
    let module = Sysfs::system().module();
    loop {
        let ended = end_waits(&module, || has_ended(&process, UNBLOCKING))??;
        let outcome = if ended { "it has" } else { "it has not yet" };
        // The log comes second, and nobody may be there to read it.
        let _ = writeln!(
            io::stderr(),
            "tcmu-runner: process {daemon} was to end, and threads of it waited in the kernel; the \
             kernel's waits for daemons' answers were ended, and {outcome}"
        );
        if ended || has_ended(&process, PAUSE)? {
            return Ok(());
        }
    }
}

/// Ends every wait of the kernel's for a daemon's answer, and lets none begin as long as `action`
/// takes.
pub(crate) fn end_waits<T>(module: &Module, action: impl FnOnce() -> T) -> io::Result<T> {
    if !module.is_loaded() {
        return Ok(action());
    }
    module.block_netlink(true)?;
    let result = module.reset_netlink().map(|()| action());
    module.block_netlink(false)?;
    result
}

/// Whether a process's main thread has ended, and other threads of it have not, or nobody has waited
/// for it.
pub(crate) fn is_zombie(pid: Pid) -> bool {
    let stat = format!("/proc/{}/stat", pid.as_raw_nonzero());
    fs::read_to_string(stat).is_ok_and(|stat| state(&stat) == Some('Z'))
}

/// The state in a line of proc_pid_stat(5). The name before it, in brackets, may hold any characters.
fn state(stat: &str) -> Option<char> {
    stat.rsplit_once(") ")?.1.chars().next()
}

/// Whether all threads of a process end within this time.
fn has_ended(process: &OwnedFd, within: Duration) -> anyhow::Result<bool> {
    let timeout = Timespec::try_from(within).ok();
    loop {
        let mut watched = [PollFd::new(process, PollFlags::IN)];
        match poll(&mut watched, timeout.as_ref()) {
            Ok(ready) => return Ok(ready > 0),
            Err(Errno::INTR) => {}
            Err(error) => return Err(error).context("waiting for the daemon's end"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_that_has_ended_is_told_from_one_that_has_not() {
        let mut child = Command::new("sleep").arg("1000").spawn().unwrap();
        let pid = Pid::from_child(&child);
        let process = rustix::process::pidfd_open(pid, PidfdFlags::empty()).unwrap();
        assert!(!is_zombie(pid));
        assert!(!has_ended(&process, Duration::ZERO).unwrap());
        child.kill().unwrap();
        assert!(has_ended(&process, Duration::from_secs(3600)).unwrap());
        assert!(is_zombie(pid), "nobody has waited for it");
        child.wait().unwrap();
        assert!(!is_zombie(pid));
    }

    #[test]
    fn a_name_does_not_look_like_a_state() {
        assert_eq!(state("12 (tcmu-runner) S 1 12 12"), Some('S'));
        assert_eq!(state("12 (a) Z 9 (b) D 1 12 12"), Some('D'));
        assert_eq!(state(""), None);
    }

    #[test]
    fn netlink_is_blocked_only_meanwhile() {
        let root = tempfile::tempdir().unwrap();
        let parameters = root.path().join("sys/module/target_core_user/parameters");
        fs::create_dir_all(&parameters).unwrap();
        let (block, reset) = (
            parameters.join("block_netlink"),
            parameters.join("reset_netlink"),
        );
        fs::write(&block, "0").unwrap();
        fs::write(&reset, "").unwrap();
        let module = Sysfs::at(root.path()).module();
        let meanwhile = end_waits(&module, || fs::read_to_string(&block)).unwrap();
        assert_eq!(meanwhile.unwrap(), "1");
        assert_eq!(fs::read_to_string(&reset).unwrap(), "1");
        assert_eq!(fs::read_to_string(&block).unwrap(), "0");
        // Also if they could not be ended.
        fs::remove_file(&reset).unwrap();
        end_waits(&module, || ()).unwrap_err();
        assert_eq!(fs::read_to_string(&block).unwrap(), "0");
    }
}
