//! How large an image is, and in which units it likes to be used.

use std::fs::{self, File};
use std::io::{Seek, SeekFrom};
use std::os::unix::fs::FileExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, FallocateFlags, StatxFlags};
use rustix::io::Errno;
use tcmu_handler::{Error, Result};

use crate::open::no_direct_io;

/// The smallest logical block that there is.
const SECTOR: u32 = 512;
/// The unit of the page cache, and the largest unit in which Linux's file systems keep data whole.
const PAGE: u32 = 4096;

/// What an image is like, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Geometry {
    /// How large it is.
    pub(crate) size: u64,
    /// The smallest unit of requests.
    pub(crate) block_size: u32,
    /// The unit that is written as a whole.
    pub(crate) physical_block_size: u32,
    /// The request size that it likes best, or 0.
    pub(crate) optimal_io_size: u32,
    /// The unit in which [`PUNCH`](crate::image::PUNCH) gives storage back, if it does.
    pub(crate) punch: Option<u64>,
}

impl Geometry {
    /// Of a regular file.
    pub(crate) fn of_file(file: &File, path: &Path, direct: bool, read_only: bool) -> Result<Self> {
        let metadata = file.metadata().map_err(|error| failed(path, error))?;
        let size = metadata.len();
        let block_size = if direct {
            direct_block_size(file, path)?
        } else {
            SECTOR
        };
        let unit = u32::try_from(metadata.blksize()).unwrap_or(0);
        let physical_block_size = match unit {
            unit if unit.is_power_of_two() => unit.min(PAGE).max(block_size),
            _ => block_size,
        };
        let punch = (!read_only && can_punch(file, size)).then(|| unit.max(block_size).into());
        Ok(Self {
            size,
            block_size,
            physical_block_size,
            optimal_io_size: if unit > physical_block_size { unit } else { 0 },
            punch,
        })
    }

    /// Of a block device.
    pub(crate) fn of_device(file: &File, path: &Path) -> Result<Self> {
        let failed = |error| failed(path, error);
        let size = device_size(file).map_err(failed)?;
        let device = file.metadata().map_err(failed)?.rdev();
        let block_size = rustix::fs::ioctl_blksszget(file).map_err(|errno| failed(errno.into()))?;
        let physical = rustix::fs::ioctl_blkpbszget(file).map_err(|errno| failed(errno.into()))?;
        let queue = queue_of(device);
        let limit = |name| limit(&queue, name);
        let gives_back = limit("discard_max_bytes") != 0 && limit("write_zeroes_max_bytes") != 0;
        let granularity = limit("discard_granularity").max(block_size.into());
        Ok(Self {
            size,
            block_size,
            physical_block_size: physical.max(block_size),
            optimal_io_size: u32::try_from(limit("optimal_io_size")).unwrap_or(0),
            punch: gives_back.then_some(granularity),
        })
    }
}

/// How many bytes a block device has.
pub(crate) fn device_size(mut file: &File) -> std::io::Result<u64> {
    file.seek(SeekFrom::End(0))
}

/// The alignment of direct I/O on a regular file; kernels before 6.1 and some file systems do not
/// tell it, so that only trying is left.
fn direct_block_size(file: &File, path: &Path) -> Result<u32> {
    match rustix::fs::statx(file, "", AtFlags::EMPTY_PATH, StatxFlags::DIOALIGN) {
        Ok(found) if found.stx_mask & StatxFlags::DIOALIGN.bits() != 0 => {
            return match found.stx_dio_offset_align {
                0 => Err(no_direct_io(path)),
                align => Ok(align.max(SECTOR)),
            };
        }
        Ok(_) | Err(Errno::NOSYS | Errno::INVAL) => {}
        Err(errno) => return Err(failed(path, errno.into())),
    }
    smallest_direct_read(file).map_err(|error| match error.raw_os_error() {
        Some(code) if code == Errno::INVAL.raw_os_error() => no_direct_io(path),
        _ => failed(path, error),
    })
}

/// The smallest power of two that can be read, at a multiple of itself.
fn smallest_direct_read(file: &File) -> std::io::Result<u32> {
    #[repr(align(4096))]
    struct Aligned([u8; PAGE as usize]);
    let mut buffer = Aligned([0; PAGE as usize]);
    let mut len = SECTOR;
    loop {
        match file.read_at(&mut buffer.0[..len as usize], len.into()) {
            Ok(_) => return Ok(len),
            Err(_) if len < PAGE => len *= 2,
            Err(error) => return Err(error),
        }
    }
}

/// Whether the file system punches holes into this very file: on some it depends on how the file is
/// laid out. Asked for behind the end of the file, it changes no data.
fn can_punch(file: &File, size: u64) -> bool {
    let mode = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    let behind = size.next_multiple_of(PAGE.into());
    rustix::fs::fallocate(file, mode, behind, PAGE.into()).is_ok()
}

/// Whether the kernel refuses writes to a block device; opening it for writing says nothing of it.
pub(crate) fn is_write_protected(device: u64) -> bool {
    limit(&directory_of(device), "ro") != 0
}

/// Where sysfs describes a block device.
fn directory_of(device: u64) -> PathBuf {
    let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
    PathBuf::from(format!("/sys/dev/block/{major}:{minor}"))
}

/// Where sysfs keeps the limits of a block device, or of the disk that it is a partition of.
fn queue_of(device: u64) -> PathBuf {
    let device = directory_of(device);
    if device.join("partition").exists() {
        device.join("../queue")
    } else {
        device.join("queue")
    }
}

/// A number in sysfs; 0, which is its own word for "none", where it cannot be read.
fn limit(directory: &Path, name: &str) -> u64 {
    fs::read_to_string(directory.join(name))
        .ok()
        .and_then(|text| text.trim().parse().ok())
        .unwrap_or(0)
}

fn failed(path: &Path, error: std::io::Error) -> Error {
    Error::os(
        format!("cannot find out what {} is like", path.display()),
        error,
    )
}
