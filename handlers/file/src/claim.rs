//! Keeps others from using an image at the same time.

use std::os::fd::AsFd;
use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, flock};
use rustix::io::{Errno, retry_on_intr};
use tcmu_handler::{Error, ErrorKind, Result};

/// How long an image may still be held by a predecessor's last operations.
const PATIENCE: Duration = Duration::from_secs(1);
const PAUSE: Duration = Duration::from_millis(20);

/// Locks a regular file.
pub(crate) fn lock(file: impl AsFd, path: &Path, read_only: bool) -> Result<()> {
    let operation = if read_only {
        FlockOperation::NonBlockingLockShared
    } else {
        FlockOperation::NonBlockingLockExclusive
    };
    patiently(|| flock(&file, operation)).map_err(|errno| match errno {
        Errno::WOULDBLOCK => Error::new(
            ErrorKind::InUse,
            format!(
                "{} is locked: another LUN or program uses it",
                path.display()
            ),
        ),
        errno => Error::os(format!("locking {}", path.display()), errno.into()),
    })
}

/// Repeats what fails because somebody else holds the image, for a moment.
pub(crate) fn patiently<T>(
    mut attempt: impl FnMut() -> rustix::io::Result<T>,
) -> rustix::io::Result<T> {
    let start = Instant::now();
    loop {
        match retry_on_intr(&mut attempt) {
            Err(Errno::BUSY | Errno::WOULDBLOCK) if start.elapsed() < PATIENCE => sleep(PAUSE),
            result => return result,
        }
    }
}
