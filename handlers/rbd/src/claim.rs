//! What a killed daemon leaves: the exclusive lock of a client that is no more.
//!
//! The cluster believes a client alive until it has not heard of it for half a minute, and keeps its
//! lock as long; commands would wait meanwhile. So each daemon notes the addresses of its clients in a
//! file, one for each image, which it holds locked. A file that can be locked is that of a dead daemon,
//! or of one that has closed the image: the clients that it names will never write again, and their lock
//! may be broken at once. (Breaking it puts them on the blocklist first, so that nothing of theirs
//! arrives late.)

use std::fs::{self, File};
use std::io::{self, Read as _, Seek as _, Write as _};
use std::path::Path;
use std::sync::{Mutex, PoisonError};

/// More than the addresses of a client are long.
const LONGEST_NOTE: u64 = 4096;

/// A file that says which client has an image open; locked as long as this lives.
#[derive(Debug)]
pub(crate) struct Claim {
    file: Mutex<File>,
}

impl Claim {
    /// Claims the image of this name, which holds no slash. Returns the addresses of the client that
    /// had it before, perhaps none. `None` where another claim lives.
    pub(crate) fn new(folder: &Path, name: &str) -> io::Result<Option<(Self, String)>> {
        fs::create_dir_all(folder)?;
        let mut file = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(folder.join(name))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(fs::TryLockError::WouldBlock) => return Ok(None),
            Err(fs::TryLockError::Error(error)) => return Err(error),
        }
        let mut before = Vec::new();
        (&mut file).take(LONGEST_NOTE).read_to_end(&mut before)?;
        let claim = Self {
            file: Mutex::new(file),
        };
        Ok(Some((claim, String::from_utf8_lossy(&before).into_owned())))
    }

    /// Notes the addresses of the client that has the image open now.
    pub(crate) fn note(&self, addresses: &str) -> io::Result<()> {
        let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        file.set_len(0)?;
        file.rewind()?;
        file.write_all(addresses.as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_next_learns_of_the_last_only_when_that_is_gone() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path().join("made");
        let (claim, before) = Claim::new(&folder, "image").unwrap().unwrap();
        assert_eq!(before, "");
        claim.note("a long address").unwrap();
        claim.note("short").unwrap();
        assert!(Claim::new(&folder, "image").unwrap().is_none());
        assert!(Claim::new(&folder, "other").unwrap().is_some());
        drop(claim);
        let (_, before) = Claim::new(&folder, "image").unwrap().unwrap();
        assert_eq!(before, "short");
    }
}
