//! One open file or device.

use std::cell::Cell;
use std::fs;
use std::io;
use std::num::NonZeroU64;
use std::path::PathBuf;
use std::sync::Arc;

use rustix::fs::{Advice, FallocateFlags, SeekFrom};
use rustix::io::Errno;
use tcmu_handler::{
    Backstore, BlockStatus, Buffer, Capabilities, DataAccess, Error, ErrorKind, Extent, File, Fua,
    Io, Result, Unmap, Usage, WriteFlags, ZeroFlags,
};

use crate::geometry::{Geometry, device_size};
use crate::open::Kind;
use crate::options::Options;

/// Zeroes a range and gives its storage back. On block devices: has the device do both, or fails.
pub(crate) const PUNCH: FallocateFlags =
    FallocateFlags::PUNCH_HOLE.union(FallocateFlags::KEEP_SIZE);
/// Zeroes a range and keeps its storage. Block devices that cannot are written to by the kernel.
const ZERO: FallocateFlags = FallocateFlags::ZERO_RANGE.union(FallocateFlags::KEEP_SIZE);
/// Reserves storage and changes no bytes.
const RESERVE: FallocateFlags = FallocateFlags::empty();

/// An open image of the handler `file`.
#[derive(Debug)]
pub struct FileImage {
    file: File,
    kind: Kind,
    path: PathBuf,
    capabilities: Cell<Capabilities>,
    /// The file lies in memory, and io_uring has a worker thread do its writes.
    in_memory: bool,
    /// [`ZERO`] has not turned out to be unsupported. Asking beforehand would change the file.
    zero_range: Cell<bool>,
}

impl FileImage {
    pub(crate) fn new(
        file: fs::File,
        kind: Kind,
        in_memory: bool,
        options: &Options,
        geometry: &Geometry,
    ) -> Self {
        let writable = !options.read_only;
        let capabilities = Capabilities {
            size: geometry.size,
            block_size: geometry.block_size,
            physical_block_size: geometry.physical_block_size,
            optimal_io_size: geometry.optimal_io_size,
            read_only: options.read_only,
            volatile_cache: writable,
            fua: Fua::Native,
            unmap: geometry
                .punch
                .filter(|_| writable)
                .map(|granularity| Unmap {
                    granularity,
                    reads_zeroes: true,
                }),
            write_zeroes: writable && (kind == Kind::Device || geometry.punch.is_some()),
            compare_and_write: 0,
            atomic_writes: None,
            usage: kind == Kind::Regular,
            data_access: DataAccess::FdToFd,
            device_type: None,
        };
        Self {
            file: Arc::new(file.into()),
            kind,
            path: options.path.clone(),
            capabilities: Cell::new(capabilities),
            in_memory,
            zero_range: Cell::new(true),
        }
    }

    #[cfg(test)]
    pub(crate) fn opened(&self) -> &File {
        &self.file
    }

    /// Zeroes a range and gives storage back where the image can.
    async fn punch(&self, io: &Io, extent: Extent) -> Result<()> {
        match self.fallocate(io, PUNCH, extent).await {
            // A disk can take its offer to write zeroes by itself back.
            Err(error) if unsupported(&error) && self.kind == Kind::Device => {
                self.fallocate(io, ZERO, extent).await
            }
            result => result,
        }
        .map_err(|error| self.failed("unmapping", extent, error, ErrorKind::Write))
    }

    /// Zeroes a range and keeps its storage, so that later writes find room.
    async fn zero(&self, io: &Io, extent: Extent) -> Result<()> {
        if self.zero_range.get() {
            match self.fallocate(io, ZERO, extent).await {
                Err(error) if unsupported(&error) && self.kind == Kind::Regular => {
                    self.zero_range.set(false);
                }
                result => return result.map_err(|error| self.zeroing_failed(extent, error)),
            }
        }
        let punched = self.fallocate(io, PUNCH, extent).await;
        punched.map_err(|error| self.zeroing_failed(extent, error))?;
        match self.fallocate(io, RESERVE, extent).await {
            // The bytes are right all the same.
            Err(error) if unsupported(&error) => Ok(()),
            result => result.map_err(|error| self.zeroing_failed(extent, error)),
        }
    }

    async fn fallocate(&self, io: &Io, mode: FallocateFlags, extent: Extent) -> io::Result<()> {
        io.fallocate(&self.file, mode.bits() as i32, extent).await
    }

    async fn sync(&self, io: &Io) -> Result<()> {
        io.sync(&self.file).await.map_err(|error| {
            let context = format!("flushing {}", self.path.display());
            narrowed(Error::os(context, error), ErrorKind::Write)
        })
    }

    fn zeroing_failed(&self, extent: Extent, error: io::Error) -> Error {
        self.failed("zeroing", extent, error, ErrorKind::Write)
    }

    fn failed(&self, what: &str, extent: Extent, error: io::Error, kind: ErrorKind) -> Error {
        let Extent { offset, len } = extent;
        let path = self.path.display();
        narrowed(
            Error::os(format!("{what} {len} bytes at {offset} of {path}"), error),
            kind,
        )
    }
}

impl Backstore for FileImage {
    fn capabilities(&self) -> Capabilities {
        self.capabilities.get()
    }

    async fn read(&self, io: &Io, buffer: Buffer<'_>, offset: u64) -> Result<()> {
        io.read_exact(&self.file, buffer, offset)
            .await
            .map_err(|error| {
                let error = match error.kind() {
                    io::ErrorKind::UnexpectedEof => io::Error::other("the image has shrunk"),
                    _ => error,
                };
                let len = buffer.len() as u64;
                self.failed("reading", Extent { offset, len }, error, ErrorKind::Read)
            })
    }

    async fn write(
        &self,
        io: &Io,
        buffer: Buffer<'_>,
        offset: u64,
        flags: WriteFlags,
    ) -> Result<()> {
        let written = if self.in_memory {
            io.write_all_in_memory(&self.file, buffer, offset, flags.fua)
                .await
        } else {
            io.write_all(&self.file, buffer, offset, flags.fua).await
        };
        written.map_err(|error| {
            let len = buffer.len() as u64;
            self.failed("writing", Extent { offset, len }, error, ErrorKind::Write)
        })
    }

    async fn flush(&self, io: &Io) -> Result<()> {
        self.sync(io).await
    }

    async fn unmap(&self, io: &Io, extent: Extent) -> Result<()> {
        self.punch(io, extent).await
    }

    async fn write_zeroes(&self, io: &Io, extent: Extent, flags: ZeroFlags) -> Result<()> {
        if flags.may_unmap && self.capabilities.get().unmap.is_some() {
            self.punch(io, extent).await?;
        } else {
            self.zero(io, extent).await?;
        }
        if flags.fua {
            self.sync(io).await
        } else {
            Ok(())
        }
    }

    async fn block_status(&self, io: &Io, extent: Extent) -> Result<BlockStatus> {
        if self.kind == Kind::Device {
            // The kernel does not ask disks what they have unmapped.
            return Ok(mapped(extent));
        }
        let file = Arc::clone(&self.file);
        io.blocking(move || holes(&file, extent))
            .await
            .and_then(|status| status)
            .map_err(|error| self.failed("finding holes in", extent, error, ErrorKind::Read))
    }

    async fn prefetch(&self, io: &Io, extent: Extent) -> Result<()> {
        let file = Arc::clone(&self.file);
        let len = NonZeroU64::new(extent.len);
        io.blocking(move || rustix::fs::fadvise(&file, extent.offset, len, Advice::WillNeed))
            .await
            .and_then(|advised| advised.map_err(io::Error::from))
            .map_err(|error| self.failed("reading ahead", extent, error, ErrorKind::Read))
    }

    async fn resize(&self, io: &Io, size: u64) -> Result<()> {
        let mut capabilities = self.capabilities.get();
        let file = Arc::clone(&self.file);
        let grow = self.kind == Kind::Regular && !capabilities.read_only;
        let kind = self.kind;
        let failed = |error| {
            let context = format!("resizing {} to {size} bytes", self.path.display());
            narrowed(Error::os(context, error), ErrorKind::Write)
        };
        capabilities.size = io
            .blocking(move || resized(&file, kind, grow.then_some(size)))
            .await
            .and_then(|size| size)
            .map_err(failed)?;
        self.capabilities.set(capabilities);
        if capabilities.size < size {
            return Err(Error::new(
                ErrorKind::OutOfRange,
                format!(
                    "{} has {} bytes, less than the {size} asked for",
                    self.path.display(),
                    capabilities.size
                ),
            ));
        }
        Ok(())
    }

    fn file(&self) -> Option<File> {
        (self.kind == Kind::Regular).then(|| Arc::clone(&self.file))
    }

    /// The file's blocks, and what its file system has left for ordinary users.
    async fn usage(&self, io: &Io) -> Result<Usage> {
        const STAT_BLOCK: u64 = 512;
        let file = Arc::clone(&self.file);
        let look = move || -> io::Result<Usage> {
            let stat = rustix::fs::fstat(&file)?;
            let system = rustix::fs::fstatvfs(&file)?;
            Ok(Usage {
                used: u64::try_from(stat.st_blocks).unwrap_or(0) * STAT_BLOCK,
                available: system.f_bavail.saturating_mul(system.f_frsize),
            })
        };
        io.blocking(look)
            .await
            .and_then(|usage| usage)
            .map_err(|error| Error::os(format!("looking at {}", self.path.display()), error))
    }

    async fn close(&self, io: &Io) -> Result<()> {
        if self.capabilities.get().read_only {
            Ok(())
        } else {
            self.sync(io).await
        }
    }
}

/// The size of an image, after it was made at least as large as asked for.
fn resized(file: &File, kind: Kind, at_least: Option<u64>) -> io::Result<u64> {
    let file = fs::File::from(file.try_clone()?);
    if kind == Kind::Device {
        return device_size(&file);
    }
    let size = file.metadata()?.len();
    match at_least {
        Some(at_least) if size < at_least => file.set_len(at_least).map(|()| at_least),
        _ => Ok(size),
    }
}

fn mapped(extent: Extent) -> BlockStatus {
    BlockStatus {
        len: extent.len,
        mapped: true,
    }
}

/// How the first bytes of `extent` are kept. The position of the file descriptor, which this moves,
/// means nothing to anybody.
fn holes(file: &File, extent: Extent) -> io::Result<BlockStatus> {
    let seek = |to| match rustix::fs::seek(file, to) {
        Ok(found) => Ok(Some(found.clamp(extent.offset, extent.end()))),
        // There is nothing more up to the end of the file.
        Err(Errno::NXIO) => Ok(None),
        Err(error) => Err(error),
    };
    let data = match seek(SeekFrom::Data(extent.offset)) {
        // A file system without this question.
        Err(Errno::INVAL | Errno::OPNOTSUPP) => return Ok(mapped(extent)),
        data => data?.unwrap_or(extent.end()),
    };
    if data > extent.offset {
        return Ok(BlockStatus {
            len: data - extent.offset,
            mapped: false,
        });
    }
    let hole = seek(SeekFrom::Hole(extent.offset))?.unwrap_or(extent.end());
    Ok(BlockStatus {
        // A hole that was punched since would leave nothing.
        len: (hole - extent.offset).max(1),
        mapped: true,
    })
}

/// Keeps those kinds of errors that mean the same at every request; everything else is a failure to
/// read, or to write.
fn narrowed(error: Error, otherwise: ErrorKind) -> Error {
    match error.kind() {
        ErrorKind::NoSpace
        | ErrorKind::ReadOnly
        | ErrorKind::TimedOut
        | ErrorKind::Gone
        | ErrorKind::Busy => error,
        _ => error.with_kind(otherwise),
    }
}

fn unsupported(error: &io::Error) -> bool {
    let code = error.raw_os_error();
    code == Some(Errno::OPNOTSUPP.raw_os_error()) || code == Some(Errno::NOSYS.raw_os_error())
}
