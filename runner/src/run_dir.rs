//! What the daemon leaves under `/run`: its lock, and what its successor goes on with.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context;
use rustix::fs::FlockOperation;
use rustix::io::Errno;
use rustix::process::Pid;
use tcmu::module::Module;

use crate::guardian;
use crate::recovery::Tables;
use crate::refusals::Refusals;

/// The daemon's folder in `/run`.
const PATH: &str = "/run/tcmu-runner";

/// The folder in it with the in-flight tables.
const TABLES: &str = "in-flight";

/// How long a predecessor that is dead may keep its lock: as long as its guardian takes to notice, to end
/// the kernel's waits, and some.
const PATIENCE: Duration = Duration::from_secs(10);

/// How often a lock is tried.
const POLL: Duration = Duration::from_millis(5);

/// The locked folder of the one daemon of this machine.
///
/// The lock lives as long as the process, so a dead predecessor does not stand in the way for long.
#[derive(Debug)]
pub(crate) struct RunDir {
    path: PathBuf,
    /// Holds the lock.
    _pid_file: File,
}

impl RunDir {
    /// Takes the lock of `tcmu-runner.pid` and writes the process id into it.
    ///
    /// Waits for a predecessor that is a zombie, and helps it to end if its guardian is gone.
    pub(crate) fn lock(module: &Module) -> anyhow::Result<Self> {
        Self::lock_at(PathBuf::from(PATH), module)
    }

    fn lock_at(path: PathBuf, module: &Module) -> anyhow::Result<Self> {
        let mut builder = fs::DirBuilder::new();
        builder
            .recursive(true)
            .mode(0o755)
            .create(path.join(TABLES))
            .with_context(|| format!("creating {}", path.display()))?;
        let pid_path = path.join("tcmu-runner.pid");
        let mut pid_file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&pid_path)
            .with_context(|| format!("opening {}", pid_path.display()))?;
        await_lock(&mut pid_file, &pid_path, &path, module)?;
        // The lock is what counts.
        let noted = pid_file
            .set_len(0)
            .and_then(|()| pid_file.rewind())
            .and_then(|()| writeln!(pid_file, "{}", std::process::id()));
        if let Err(error) = noted {
            let path = pid_path.display();
            tracing::warn!(%error, "{path} does not tell the process id: is /run full?");
        }
        Ok(Self {
            path,
            _pid_file: pid_file,
        })
    }

    /// Takes the lock that this daemon's guardian is to hold, as soon as a predecessor's guardian has
    /// ended.
    pub(crate) fn guard(&self) -> anyhow::Result<File> {
        let since = Instant::now();
        loop {
            if let Some(lock) = try_guard(&self.path)? {
                return Ok(lock);
            }
            anyhow::ensure!(
                since.elapsed() < PATIENCE,
                "that of an earlier tcmu-runner is still there (a process named tcmu-guardian)"
            );
            thread::sleep(POLL);
        }
    }

    /// Names the subtypes that this daemon serves, so that nobody waits in vain for another's.
    pub(crate) fn note_handlers<'a>(
        &self,
        subtypes: impl Iterator<Item = &'a str>,
    ) -> io::Result<()> {
        let lines: String = subtypes.flat_map(|subtype| [subtype, "\n"]).collect();
        fs::write(self.path.join("handlers"), lines)
    }

    /// Where refusals are noted.
    pub(crate) fn refusals(&self) -> Refusals {
        Refusals::at(self.path.join("refusals"))
    }

    /// The in-flight tables.
    pub(crate) fn tables(&self) -> Tables {
        Tables::at(self.path.join(TABLES))
    }
}

/// Takes the lock of the pid file, from a predecessor that cannot end too.
fn await_lock(
    pid_file: &mut File,
    pid_path: &Path,
    folder: &Path,
    module: &Module,
) -> anyhow::Result<()> {
    let is_ours = |pid_file: &File| {
        try_lock(pid_file).with_context(|| format!("locking {}", pid_path.display()))
    };
    let since = Instant::now();
    while !is_ours(pid_file)? {
        let holder = holder(pid_file);
        let is_dead = holder
            .and_then(Pid::from_raw)
            .is_some_and(guardian::is_zombie);
        let holder = holder.map_or("unknown".to_owned(), |pid| pid.to_string());
        anyhow::ensure!(
            is_dead,
            "another tcmu-runner is running (process {holder}): it holds the lock on {}",
            pid_path.display()
        );
        anyhow::ensure!(
            since.elapsed() < PATIENCE,
            "process {holder} was tcmu-runner, and cannot end: threads of it wait in the kernel (`cat \
             /proc/{holder}/task/*/stack` shows for what), and so it keeps the lock on {}",
            pid_path.display()
        );
        if let Some(_nobody_else_does_it) = try_guard(folder)? {
            tracing::warn!(
                process = holder,
                "an earlier tcmu-runner was to end, and cannot: ending the kernel's waits for daemons' \
                 answers"
            );
            let unblocking = Instant::now();
            guardian::end_waits(module, || {
                while !is_ours(pid_file)? && unblocking.elapsed() < guardian::UNBLOCKING {
                    thread::sleep(POLL);
                }
                anyhow::Ok(())
            })
            .context("ending the kernel's waits for daemons' answers")??;
        }
        thread::sleep(POLL);
    }
    Ok(())
}

/// Whether a file's lock is ours now.
fn try_lock(file: &File) -> io::Result<bool> {
    match rustix::fs::flock(file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(true),
        Err(Errno::WOULDBLOCK) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// The process id in the pid file, unless whoever locked it has not written it yet.
fn holder(pid_file: &mut File) -> Option<i32> {
    let mut pid = String::new();
    pid_file.rewind().ok()?;
    pid_file.read_to_string(&mut pid).ok()?;
    pid.trim().parse().ok().filter(|pid| *pid > 0)
}

/// The guardian's lock in a folder, if nobody holds it.
fn try_guard(folder: &Path) -> anyhow::Result<Option<File>> {
    let path = folder.join("guardian.lock");
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(&path);
    let file = file.with_context(|| format!("opening {}", path.display()))?;
    let is_ours = try_lock(&file).with_context(|| format!("locking {}", path.display()))?;
    Ok(is_ours.then_some(file))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;
    use tcmu::discovery::Sysfs;

    fn lock(folder: &tempfile::TempDir) -> anyhow::Result<RunDir> {
        let module = Sysfs::at(folder.path()).module();
        RunDir::lock_at(folder.path().to_owned(), &module)
    }

    #[test]
    fn there_is_one_daemon() {
        let folder = tempfile::tempdir().unwrap();
        let first = lock(&folder).unwrap();
        let error = lock(&folder).unwrap_err().to_string();
        assert!(error.contains(&std::process::id().to_string()), "{error}");
        drop(first);
        // A process that another test is just starting has the lock, too, until it runs its program.
        let since = Instant::now();
        while let Err(error) = lock(&folder) {
            assert!(since.elapsed() < PATIENCE, "{error:#}");
            thread::sleep(POLL);
        }
    }

    #[test]
    fn a_daemon_that_is_dead_is_waited_for() {
        let folder = tempfile::tempdir().unwrap();
        let parameters = folder.path().join("sys/module/target_core_user/parameters");
        fs::create_dir_all(&parameters).unwrap();
        fs::write(parameters.join("block_netlink"), "").unwrap();
        let reset = parameters.join("reset_netlink");
        fs::write(&reset, "").unwrap();
        let first = lock(&folder).unwrap();
        let mut zombie = Command::new("true").spawn().unwrap();
        while !guardian::is_zombie(Pid::from_child(&zombie)) {
            thread::sleep(POLL);
        }
        fs::write(
            folder.path().join("tcmu-runner.pid"),
            format!("{}\n", zombie.id()),
        )
        .unwrap();
        let guard = first.guard().unwrap();
        thread::scope(|scope| {
            let second = scope.spawn(|| lock(&folder).unwrap());
            // Its guardian is there to help it.
            thread::sleep(20 * POLL);
            assert_eq!(fs::read_to_string(&reset).unwrap(), "");
            assert!(!second.is_finished());
            // Nobody is, and it ends once it has been helped.
            drop(guard);
            while fs::read_to_string(&reset).unwrap() != "1" {
                thread::sleep(POLL);
            }
            drop(first);
            let second = second.join().unwrap();
            second.guard().unwrap();
        });
        zombie.wait().unwrap();
    }

    #[test]
    fn a_guardian_is_waited_for() {
        let folder = tempfile::tempdir().unwrap();
        let run_dir = lock(&folder).unwrap();
        let first = run_dir.guard().unwrap();
        thread::scope(|scope| {
            let second = scope.spawn(|| run_dir.guard().unwrap());
            thread::sleep(20 * POLL);
            assert!(!second.is_finished());
            drop(first);
            second.join().unwrap();
        });
    }
}
