//! A file that holds an image, or a part of one.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{FileType, Mode, OFlags, SeekFrom, fcntl_setfl, fstat, seek};
use rustix::io::{Errno, pread, pwrite, retry_on_intr};
use tcmu_handler::{Error, ErrorKind, File, Result};

use crate::fault::{failed, refused};
use crate::lock::{Claim, lock};

/// An open and locked regular file or block device.
#[derive(Debug)]
pub(crate) struct Storage {
    pub(crate) file: File,
    pub(crate) path: PathBuf,
    /// A block device: it cannot grow, and what was never written to it is not zero.
    pub(crate) is_device: bool,
    /// Device and inode, to recognise the same file in a chain.
    pub(crate) identity: (u64, u64),
}

impl Storage {
    /// Opens what is at `path`, and claims it.
    pub(crate) fn open(path: &Path, claim: Claim) -> Result<Self> {
        let flags = match claim {
            Claim::Read => OFlags::RDONLY,
            Claim::Write => OFlags::RDWR,
        };
        // Without O_NONBLOCK a FIFO would keep the open waiting for ever.
        let flags = flags | OFlags::CLOEXEC | OFlags::NOCTTY | OFlags::NONBLOCK;
        let file = retry_on_intr(|| rustix::fs::open(path, flags, Mode::empty()))
            .map_err(|errno| cannot_open(path, errno))?;
        let storage = Self::new(file, path)?;
        // io_uring takes it for the wish not to wait for the storage either.
        fcntl_setfl(&*storage.file, flags & !OFlags::NONBLOCK)
            .map_err(|errno| cannot_open(path, errno))?;
        lock(&*storage.file, path, claim)?;
        Ok(storage)
    }

    /// Takes over an open file.
    pub(crate) fn new(file: OwnedFd, path: &Path) -> Result<Self> {
        let stat = fstat(&file).map_err(|errno| cannot_open(path, errno))?;
        let is_device = match FileType::from_raw_mode(stat.st_mode) {
            FileType::RegularFile => false,
            FileType::BlockDevice => true,
            _ => {
                return Err(refused(
                    ErrorKind::InvalidConfig,
                    path,
                    "this is neither a regular file nor a block device",
                ));
            }
        };
        Ok(Self {
            file: Arc::new(file),
            path: path.to_owned(),
            is_device,
            identity: (stat.st_dev, stat.st_ino),
        })
    }

    /// How many bytes there are. May block.
    pub(crate) fn len(&self) -> Result<u64> {
        let end = if self.is_device {
            seek(&*self.file, SeekFrom::End(0))
        } else {
            fstat(&*self.file).map(|stat| stat.st_size as u64)
        };
        end.map_err(|errno| {
            failed(
                ErrorKind::Read,
                "finding the size of",
                &self.path,
                errno.into(),
            )
        })
    }

    /// Reads as much of `buffer` as there is. Blocks; for opening an image only.
    pub(crate) fn read_some(&self, buffer: &mut [u8], offset: u64) -> Result<usize> {
        let mut done = 0;
        while done < buffer.len() {
            let at = offset.saturating_add(done as u64);
            match retry_on_intr(|| pread(&*self.file, &mut buffer[done..], at)) {
                Ok(0) => break,
                Ok(count) => done += count,
                Err(errno) => {
                    return Err(failed(ErrorKind::Read, "reading", &self.path, errno.into()));
                }
            }
        }
        Ok(done)
    }

    /// Reads `len` bytes; what lies beyond the end of the file is zero. Blocks.
    pub(crate) fn read(&self, len: usize, offset: u64) -> Result<Vec<u8>> {
        let mut bytes = vec![0; len];
        self.read_some(&mut bytes, offset)?;
        Ok(bytes)
    }

    /// Writes all of `bytes`. Blocks; for opening and making images only.
    pub(crate) fn write(&self, bytes: &[u8], offset: u64) -> Result<()> {
        let mut done = 0;
        while done < bytes.len() {
            let at = offset.saturating_add(done as u64);
            match retry_on_intr(|| pwrite(&*self.file, &bytes[done..], at)) {
                Ok(count) => done += count,
                Err(errno) => {
                    return Err(failed(
                        ErrorKind::Write,
                        "writing",
                        &self.path,
                        errno.into(),
                    ));
                }
            }
        }
        Ok(())
    }

    /// Makes what was written durable. Blocks.
    pub(crate) fn sync(&self) -> Result<()> {
        retry_on_intr(|| rustix::fs::fdatasync(&*self.file))
            .map_err(|errno| failed(ErrorKind::Write, "flushing", &self.path, errno.into()))
    }
}

/// The error of an open(2).
pub(crate) fn cannot_open(path: &Path, errno: Errno) -> Error {
    Error::os(format!("cannot open {}", path.display()), errno.into())
}
