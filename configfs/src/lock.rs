//! Locks between programs that use this crate at the same time.

use std::fs::{self, File};
use std::io;

use rustix::fs::{FlockOperation, flock};

use crate::error::{Error, Result};
use crate::tree::Tree;

/// A lock on one name, held until dropped.
pub(crate) struct Lock {
    _file: File,
}

impl Tree {
    /// Locks a backstore's name.
    pub(crate) fn lock_backstore(&self, name: &str) -> Result<Lock> {
        self.lock("backstore", name)
    }

    /// Locks a target, which several backstores may share.
    pub(crate) fn lock_target(&self, name: &str) -> Result<Lock> {
        self.lock("target", name)
    }

    /// Names hold no '/', so each is a file of its own below `/run/tcmuctl`; the files stay, since
    /// removing a lock file races with the next one to lock it.
    fn lock(&self, kind: &str, name: &str) -> Result<Lock> {
        let folder = self.roots.state.join("lock").join(kind);
        let path = folder.join(name);
        let failed = |e: io::Error| Error::kernel(format!("lock {}", path.display()), e);
        fs::create_dir_all(&folder).map_err(failed)?;
        let file = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&path)
            .map_err(failed)?;
        let locked = self.poll(
            &format!("another program that works on {name}"),
            self.time_limit,
            || match flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => Ok(Some(())),
                Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
                Err(e) => Err(failed(e.into())),
            },
        )?;
        match locked {
            Some(()) => Ok(Lock { _file: file }),
            None => Err(Error::TimedOut {
                what: format!("waiting for {name}"),
                seconds: self.time_limit.as_secs(),
                note: format!("another program that works on it holds {}", path.display()),
            }),
        }
    }
}
