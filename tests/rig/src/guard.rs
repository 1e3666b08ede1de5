//! A process that ends a guest when the process that started it is gone, however that ended.
//!
//! User-mode Linux leaves helper processes behind when its main process is killed, so it is the
//! whole process group that has to go.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use rustix::process::{Pid, Signal};

/// Environment variable that makes this executable a guard: the process group to end.
const GROUP_VAR: &str = "TCMU_RIG_GUARD_GROUP";
/// The folder to remove then.
const FOLDER_VAR: &str = "TCMU_RIG_GUARD_FOLDER";

/// The guard's process, dismissed when dropped.
pub(crate) struct Guard {
    process: Child,
    /// Its closing is the guard's signal; the kernel closes it if this process is killed.
    alive: Option<OwnedFd>,
}

impl Guard {
    /// Sets a guard over a process group and the folder that its run uses.
    pub(crate) fn over(group: Pid, folder: &Path) -> io::Result<Self> {
        let (watched, alive) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
        let process = Command::new(std::env::current_exe()?)
            .env(GROUP_VAR, group.as_raw_nonzero().to_string())
            .env(FOLDER_VAR, folder)
            .stdin(watched)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            // Ctrl-C on the terminal is for the process that the guard watches.
            .process_group(0)
            .spawn()?;
        Ok(Guard {
            process,
            alive: Some(alive),
        })
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        self.alive.take();
    }
}

/// Is the guard, if this process was started as one.
pub(crate) fn enter() {
    let Ok(group) = std::env::var(GROUP_VAR) else {
        return;
    };
    let Some(group) = group.parse().ok().and_then(Pid::from_raw) else {
        return;
    };
    // Returns at the end of input: the write end was closed.
    let _ = io::copy(&mut io::stdin(), &mut io::sink());
    let _ = rustix::process::kill_process_group(group, Signal::KILL);
    if let Some(folder) = std::env::var_os(FOLDER_VAR).map(PathBuf::from) {
        let _ = std::fs::remove_dir_all(folder);
    }
    std::process::exit(0)
}
