//! The folder for what is made once and kept: kernels.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use rustix::fs::FlockOperation;

use crate::error::{Context as _, Error};

/// `$XDG_CACHE_HOME/tcmu-runner`, or `~/.cache/tcmu-runner`.
fn root() -> Result<PathBuf, Error> {
    let absolute = |var| {
        std::env::var_os(var)
            .map(PathBuf::from)
            .filter(|p| p.is_absolute())
    };
    absolute("XDG_CACHE_HOME")
        .or_else(|| absolute("HOME").map(|home| home.join(".cache")))
        .map(|cache| cache.join("tcmu-runner"))
        .ok_or_else(|| Error::missing("a cache folder", "set HOME or XDG_CACHE_HOME"))
}

/// The folder that holds one folder per kernel, named by its key.
pub(crate) fn kernels() -> Result<PathBuf, Error> {
    Ok(root()?.join("kernels"))
}

/// The newest complete kernel whose key has this beginning and end.
pub(crate) fn newest(beginning: &str, end: &str) -> Result<Option<PathBuf>, Error> {
    let Ok(entries) = fs::read_dir(kernels()?) else {
        return Ok(None);
    };
    Ok(entries
        .flatten()
        .filter(|entry| {
            let name = entry.file_name();
            name.to_str()
                .is_some_and(|n| n.starts_with(beginning) && n.ends_with(end))
        })
        .max_by_key(|entry| entry.metadata().and_then(|m| m.modified()).ok())
        .map(|entry| entry.path()))
}

/// A lock that lasts until the file is dropped or its process ends; waits for another holder.
pub(crate) fn lock(waiting: impl FnOnce()) -> Result<File, Error> {
    let dir = kernels()?;
    fs::create_dir_all(&dir).path_context("create", &dir)?;
    let path = dir.join("lock");
    let file = File::create(&path).path_context("create", &path)?;
    if rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
        waiting();
        rustix::fs::flock(&file, FlockOperation::LockExclusive).path_context("lock", &path)?;
    }
    Ok(file)
}

const UNFINISHED: &str = ".making-";

/// Removes what a killed build left. Only for whoever holds the lock.
pub(crate) fn sweep() -> Result<(), Error> {
    let dir = kernels()?;
    for entry in fs::read_dir(&dir).path_context("read", &dir)?.flatten() {
        if entry.file_name().to_string_lossy().starts_with(UNFINISHED) {
            let path = entry.path();
            fs::remove_dir_all(&path).path_context("remove", &path)?;
        }
    }
    Ok(())
}

/// A folder being made; becomes an entry of the cache in one step when complete, and is removed if
/// it never is.
pub(crate) struct Entry(tempfile::TempDir);

impl Entry {
    pub(crate) fn new() -> Result<Self, Error> {
        let dir = kernels()?;
        fs::create_dir_all(&dir).path_context("create", &dir)?;
        tempfile::Builder::new()
            .prefix(UNFINISHED)
            .tempdir_in(&dir)
            .map(Entry)
            .path_context("create a folder in", &dir)
    }

    pub(crate) fn path(&self) -> &Path {
        self.0.path()
    }

    pub(crate) fn complete(self, key: &str) -> Result<PathBuf, Error> {
        let to = kernels()?.join(key);
        if to.exists() {
            fs::remove_dir_all(&to).path_context("replace", &to)?;
        }
        fs::rename(self.0.path(), &to).path_context("put in place", &to)?;
        Ok(to)
    }
}

/// FNV-1a: names a recipe by its content, the same in every build of this program.
pub(crate) fn fingerprint(parts: &[&str]) -> String {
    let bytes = parts.iter().flat_map(|part| part.bytes().chain([0]));
    let hash = bytes.fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    format!("{hash:016x}")
}

#[cfg(test)]
mod tests {
    use super::fingerprint;

    #[test]
    fn a_fingerprint_tells_parts_apart() {
        assert_eq!(fingerprint(&["a", "b"]), fingerprint(&["a", "b"]));
        assert_ne!(fingerprint(&["a", "b"]), fingerprint(&["ab", ""]));
        assert_ne!(
            fingerprint(&["CONFIG_SMP=y"]),
            fingerprint(&["CONFIG_SMP=n"])
        );
    }
}
