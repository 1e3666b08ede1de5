//! One open image.

use crate::{Buffer, Capabilities, CdbAnswer, Error, ErrorKind, File, Io, Result, Usage};

/// A range of an image, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// Where it begins.
    pub offset: u64,
    /// How long it is.
    pub len: u64,
}

impl Extent {
    /// The first byte behind the range. The runner never asks for a range whose end overflows.
    pub const fn end(&self) -> u64 {
        self.offset.saturating_add(self.len)
    }
}

/// How a write is to be done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WriteFlags {
    /// The data are durable before the write completes. Only set where the backstore's
    /// [`Capabilities::fua`] is native.
    pub fua: bool,
}

/// How zeroes are to be written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ZeroFlags {
    /// As in [`WriteFlags::fua`].
    pub fua: bool,
    /// The storage may be given back, as long as it reads as zeroes.
    pub may_unmap: bool,
}

/// How an image keeps the first bytes of a range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockStatus {
    /// How many bytes are kept alike: at least 1, at most the range's length.
    pub len: u64,
    /// They have storage. Where [`Unmap::reads_zeroes`](crate::Unmap::reads_zeroes) is set, those
    /// that have none read as zeroes.
    pub mapped: bool,
}

/// How a compare-and-write ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Comparison {
    /// All bytes were as expected, and the new ones are written.
    Equal,
    /// Nothing is written: this byte of the range is the first that is not as expected.
    DiffersAt(usize),
}

/// One open image: bytes at offsets.
///
/// All requests run on one thread, the image's reactor, many at once; interior state needs no locks
/// (`Cell`, `RefCell`), but must be in order at every `await`. What blocks goes through
/// [`Io::blocking`], or the whole image implements [`BlockingBackstore`](crate::BlockingBackstore)
/// instead.
///
/// The runner promises: offsets and lengths are multiples of the LUN's block size, lie within the
/// size of [`Capabilities`], and lengths are not 0. Overlapping requests may run at the same time;
/// as on a disk, the result is then either's.
///
/// A backstore promises: `Ok` means *all of the request* is done; a flush that succeeds covers every
/// write that had completed before the flush began; an error leaves the bytes of the request
/// undefined, and no others.
#[allow(async_fn_in_trait)] // The futures stay on their reactor's thread: no bound is missing.
pub trait Backstore: Send + 'static {
    /// What this image does. Asked when the LUN starts and after each resize.
    fn capabilities(&self) -> Capabilities;

    /// Fills `buffer` with the bytes at `offset`.
    async fn read(&self, io: &Io, buffer: Buffer<'_>, offset: u64) -> Result<()>;

    /// Stores `buffer` at `offset`.
    async fn write(
        &self,
        io: &Io,
        buffer: Buffer<'_>,
        offset: u64,
        flags: WriteFlags,
    ) -> Result<()>;

    /// Makes all completed writes durable. Called only if [`Capabilities::volatile_cache`] is set.
    async fn flush(&self, io: &Io) -> Result<()> {
        let _ = io;
        Err(unsupported("flush"))
    }

    /// Gives storage back where it can. Called only if [`Capabilities::unmap`] is set.
    async fn unmap(&self, io: &Io, extent: Extent) -> Result<()> {
        let _ = (io, extent);
        Err(unsupported("unmap"))
    }

    /// Makes a range read as zeroes. Called only if [`Capabilities::write_zeroes`] is set.
    async fn write_zeroes(&self, io: &Io, extent: Extent, flags: ZeroFlags) -> Result<()> {
        let _ = (io, extent, flags);
        Err(unsupported("write_zeroes"))
    }

    /// Compares the bytes at `offset` with `expected` and, if they are the same, writes `new`, which is
    /// as long; nobody sees or changes the bytes in between. Called only for lengths up to
    /// [`Capabilities::compare_and_write`].
    async fn compare_and_write(
        &self,
        io: &Io,
        expected: Buffer<'_>,
        new: Buffer<'_>,
        offset: u64,
        flags: WriteFlags,
    ) -> Result<Comparison> {
        let _ = (io, expected, new, offset, flags);
        Err(unsupported("compare_and_write"))
    }

    /// Says how the first bytes of a range are kept. Called only if [`Capabilities::unmap`] is set.
    ///
    /// The default: all of them have storage.
    async fn block_status(&self, io: &Io, extent: Extent) -> Result<BlockStatus> {
        let _ = io;
        Ok(BlockStatus {
            len: extent.len,
            mapped: true,
        })
    }

    /// A hint that a range will be read soon. Returns once it is passed on, not when it is followed.
    ///
    /// The default does nothing.
    async fn prefetch(&self, io: &Io, extent: Extent) -> Result<()> {
        let _ = (io, extent);
        Ok(())
    }

    /// How much storage the image takes. Called only if [`Capabilities::usage`] is set.
    async fn usage(&self, io: &Io) -> Result<Usage> {
        let _ = io;
        Err(unsupported("usage"))
    }

    /// Answers a SCSI command of a device that is no disk. Called only if
    /// [`Capabilities::device_type`] is set, then for every command that reaches the runner.
    ///
    /// `cdb` is as long as its operation code says; `data` is the memory for the command's data, in or
    /// out, as long as the initiator said, and may hold anything before. With `None` the runner
    /// answers what all device types have in common (INQUIRY, REQUEST SENSE, TEST UNIT READY, REPORT
    /// SUPPORTED OPERATION CODES and others) and refuses the rest.
    async fn handle_cdb(&self, io: &Io, cdb: &[u8], data: Buffer<'_>) -> Option<CdbAnswer> {
        let _ = (io, cdb, data);
        None
    }

    /// Prepares for a LUN of `size` bytes: grows the image where that is the handler's business, or
    /// says why the image cannot be so large. No request of the LUN reaches beyond the smaller of
    /// the old and the new size meanwhile.
    ///
    /// The default looks whether the image already has that size.
    async fn resize(&self, io: &Io, size: u64) -> Result<()> {
        let _ = io;
        let have = self.capabilities().size;
        if size <= have {
            Ok(())
        } else {
            Err(Error::new(
                ErrorKind::OutOfRange,
                format!("the image has {have} bytes, less than the {size} asked for"),
            ))
        }
    }

    /// Waits until somebody else has given the image another size than `known` bytes, as can happen to
    /// images that live on a network. [`capabilities`](Self::capabilities) has the new size by then.
    /// Requests may reach beyond the end of an image that became smaller, until this returns.
    ///
    /// The runner then changes the LUN's size, and calls again. It drops the future when the LUN
    /// leaves, so nothing may be under way that must not be given up.
    ///
    /// The default waits for ever.
    async fn resized(&self, io: &Io, known: u64) {
        let _ = (io, known);
        std::future::pending().await
    }

    /// The regular file that holds the image byte by byte, at the same offsets, if there is one: the
    /// kernel can then copy between two images by itself (copy_file_range(2)), and share their
    /// storage where the file system does that. Such a copy counts as a write: it comes only where
    /// the image can be written to, and needs a flush to be durable.
    fn file(&self) -> Option<File> {
        None
    }

    /// Ends the image's use: what is buffered becomes durable, locks are let go. No request is
    /// running, and none follows.
    async fn close(&self, io: &Io) -> Result<()> {
        let _ = io;
        Ok(())
    }
}

fn unsupported(what: &str) -> Error {
    Error::new(
        ErrorKind::Unsupported,
        format!("this backstore does not do {what}"),
    )
}
