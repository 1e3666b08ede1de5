//! Files that live in memory, where nothing ever waits for a device.

use std::fs::File;

use rustix::fs::OFlags;

/// TMPFS_MAGIC and RAMFS_MAGIC of include/uapi/linux/magic.h.
const FILE_SYSTEMS: [i64; 2] = [0x0102_1994, 0x8584_58f6];

/// Who does the writes that io_uring is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Writes {
    /// Whoever the file system wants; it is none in memory, or the kernel does them at once.
    AsEver,
    /// A worker thread, though the file lies in memory.
    ByWorkers,
}

/// Has io_uring do reads and writes of a file in memory at once, and says whether it will.
///
/// tmpfs does not say that it never waits (FMODE_NOWAIT), so io_uring hands every request to a
/// worker thread, unless the file is open with O_NONBLOCK; and it does that with every buffered
/// write (io_write in io_uring/rw.c), so that O_DIRECT is worth having although it changes nothing
/// else here. Kernels before 6.6 refuse it on tmpfs.
///
/// This is only about speed: that it cannot be done is no error.
pub(crate) fn do_not_wait(file: &File) -> Writes {
    let in_memory = rustix::fs::fstatfs(file).is_ok_and(|stat| FILE_SYSTEMS.contains(&stat.f_type));
    if !in_memory {
        return Writes::AsEver;
    }
    let Ok(flags) = rustix::fs::fcntl_getfl(file) else {
        return Writes::ByWorkers;
    };
    let flags = flags | OFlags::NONBLOCK;
    if rustix::fs::fcntl_setfl(file, flags | OFlags::DIRECT).is_ok() {
        return Writes::AsEver;
    }
    let _ = rustix::fs::fcntl_setfl(file, flags);
    Writes::ByWorkers
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flags(file: &File) -> OFlags {
        rustix::fs::fcntl_getfl(file).unwrap()
    }

    #[test]
    fn concerns_files_in_memory_only() {
        let memory =
            File::from(rustix::fs::memfd_create("image", rustix::fs::MemfdFlags::CLOEXEC).unwrap());
        let writes = do_not_wait(&memory);
        assert!(flags(&memory).contains(OFlags::NONBLOCK));
        let direct = flags(&memory).contains(OFlags::DIRECT);
        assert_eq!(writes == Writes::AsEver, direct, "as the kernel allows");

        let disk = tempfile::tempfile_in(env!("CARGO_MANIFEST_DIR")).unwrap();
        let on_disk = !FILE_SYSTEMS.contains(&rustix::fs::fstatfs(&disk).unwrap().f_type);
        assert!(on_disk, "the sources stand in a file system in memory");
        assert_eq!(do_not_wait(&disk), Writes::AsEver);
        assert!(!flags(&disk).contains(OFlags::NONBLOCK));
    }
}
