//! What the daemon leaves under `/run`: its lock, and what its successor goes on with.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::PathBuf;

use anyhow::Context;
use rustix::fs::FlockOperation;

use crate::recovery::Tables;
use crate::refusals::Refusals;

/// The daemon's folder in `/run`.
const PATH: &str = "/run/tcmu-runner";

/// The folder in it with the in-flight tables.
const TABLES: &str = "in-flight";

/// The locked folder of the one daemon of this machine.
///
/// The lock lives as long as the process, so a dead predecessor never stands in the way.
#[derive(Debug)]
pub(crate) struct RunDir {
    path: PathBuf,
    /// Holds the lock.
    _pid_file: File,
}

impl RunDir {
    /// Takes the lock of `tcmu-runner.pid` and writes the process id into it.
    pub(crate) fn lock() -> anyhow::Result<Self> {
        Self::lock_at(PathBuf::from(PATH))
    }

    fn lock_at(path: PathBuf) -> anyhow::Result<Self> {
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
        match rustix::fs::flock(&pid_file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => {
                let mut pid = String::new();
                pid_file.read_to_string(&mut pid).ok();
                anyhow::bail!(
                    "another tcmu-runner is running (process {}): it holds the lock on {}",
                    pid.trim(),
                    pid_path.display()
                );
            }
            Err(error) => {
                return Err(error).with_context(|| format!("locking {}", pid_path.display()));
            }
        }
        // The lock is what counts.
        let noted = pid_file
            .set_len(0)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_is_one_daemon() {
        let folder = tempfile::tempdir().unwrap();
        let first = RunDir::lock_at(folder.path().to_owned()).unwrap();
        let error = RunDir::lock_at(folder.path().to_owned())
            .unwrap_err()
            .to_string();
        assert!(error.contains(&std::process::id().to_string()), "{error}");
        drop(first);
        RunDir::lock_at(folder.path().to_owned()).unwrap();
    }
}
