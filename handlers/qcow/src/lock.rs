//! Keeps qemu and others of its kind from using an image at the same time.
//!
//! qemu holds open file description locks on single bytes: byte 100 + *n* says "I use permission
//! *n*", byte 200 + *n* says "nobody else may use it". All are shared locks; who wants to know
//! whether the other side holds one asks whether an exclusive lock would be refused. The same bytes
//! are used here, so that qemu-img, qemu-nbd and virtual machines see a LUN and are seen by it
//! (docs/system/qemu-block-drivers, "Disk image file locking").

use std::os::fd::AsFd;
use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;
use tcmu_handler::{Error, ErrorKind, Result};

use crate::fault::refused;

/// How long a predecessor's last operations may still hold the image.
const PATIENCE: Duration = Duration::from_secs(1);
const PAUSE: Duration = Duration::from_millis(20);

const USED: i64 = 100;
const NOT_SHARED: i64 = 200;

const CONSISTENT_READ: i64 = 0;
const WRITE: i64 = 1;
const RESIZE: i64 = 3;

/// What one holder of an image does, and what it cannot have others do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Claim {
    /// Reads, together with other readers, while nobody writes.
    Read,
    /// Reads and writes, alone but for those who only look at the header.
    Write,
}

impl Claim {
    fn used(self) -> &'static [i64] {
        match self {
            Self::Read => &[CONSISTENT_READ],
            Self::Write => &[CONSISTENT_READ, WRITE, RESIZE],
        }
    }

    fn not_shared(self) -> &'static [i64] {
        &[WRITE, RESIZE]
    }
}

/// Locks an open file as `claim` says, until its last descriptor is closed.
pub(crate) fn lock(file: impl AsFd, path: &Path, claim: Claim) -> Result<()> {
    let start = Instant::now();
    loop {
        match attempt(&file, claim) {
            Ok(true) => return Ok(()),
            Ok(false) if start.elapsed() < PATIENCE => sleep(PAUSE),
            Ok(false) => {
                return Err(refused(
                    ErrorKind::InUse,
                    path,
                    "another program or LUN uses the image (lsof or fuser tells which)",
                ));
            }
            Err(errno) => {
                return Err(Error::os(
                    format!("locking {}", path.display()),
                    errno.into(),
                ));
            }
        }
    }
}

/// Takes all locks, or none; says whether it did.
fn attempt(file: &impl AsFd, claim: Claim) -> nix::Result<bool> {
    let own = claim
        .used()
        .iter()
        .map(|bit| USED + bit)
        .chain(claim.not_shared().iter().map(|bit| NOT_SHARED + bit));
    for byte in own {
        let lock = of(byte, libc::F_RDLCK);
        match fcntl(file, FcntlArg::F_OFD_SETLK(&lock)) {
            Ok(_) => {}
            Err(Errno::EAGAIN | Errno::EACCES) => return release(file),
            Err(errno) => return Err(errno),
        }
    }
    let others = claim
        .used()
        .iter()
        .map(|bit| NOT_SHARED + bit)
        .chain(claim.not_shared().iter().map(|bit| USED + bit));
    for byte in others {
        let mut lock = of(byte, libc::F_WRLCK);
        fcntl(file, FcntlArg::F_OFD_GETLK(&mut lock))?;
        if i32::from(lock.l_type) != libc::F_UNLCK {
            return release(file);
        }
    }
    Ok(true)
}

fn release(file: &impl AsFd) -> nix::Result<bool> {
    let mut all = of(USED, libc::F_UNLCK);
    all.l_len = 200;
    fcntl(file, FcntlArg::F_OFD_SETLK(&all))?;
    Ok(false)
}

fn of(byte: i64, kind: i32) -> libc::flock {
    libc::flock {
        l_type: kind as i16,
        l_whence: libc::SEEK_SET as i16,
        l_start: byte,
        l_len: 1,
        l_pid: 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;

    #[test]
    fn readers_share_and_a_writer_is_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("image");
        File::create(&path).unwrap();
        let open = || File::options().read(true).write(true).open(&path).unwrap();
        let (first, second, third) = (open(), open(), open());
        assert_eq!(attempt(&first, Claim::Read), Ok(true));
        assert_eq!(attempt(&second, Claim::Read), Ok(true));
        assert_eq!(attempt(&third, Claim::Write), Ok(false));
        drop((first, second));
        assert_eq!(attempt(&third, Claim::Write), Ok(true));
        let fourth = open();
        assert_eq!(attempt(&fourth, Claim::Write), Ok(false));
        assert_eq!(attempt(&fourth, Claim::Read), Ok(false));
        let error = lock(&fourth, &path, Claim::Read).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InUse);
        drop(third);
        assert_eq!(attempt(&fourth, Claim::Read), Ok(true));
    }
}
