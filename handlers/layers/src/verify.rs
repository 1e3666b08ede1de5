//! `verify`: an image beside a mirror that has to hold the same.

use std::cell::RefCell;

use tcmu_handler::{
    Backstore, BlockStatus, Buffer, Capabilities, DataAccess, Error, ErrorKind, Extent, Io, Result,
    Usage, WriteFlags, ZeroFlags,
};

use crate::AnyBackstore;
use crate::options::{Options, invalid};
use crate::range_lock::RangeLock;
use crate::ranges::Ranges;

pub(crate) const OPTIONS: [&str; 1] = ["compare"];

/// The option at the end of the configuration that says what the mirror is.
pub(crate) const MIRROR: &str = "mirror";
pub(crate) const DEFAULT_MIRROR: &str = "ram/";

pub(crate) const HELP: &str = "\
verify/[compare=all/]SUBTYPE/CONFIG[;mirror=SUBTYPE/CONFIG]

Writes everything to a second image too, and compares what is read with it. A read that returns
something else fails, and the log says where. Reads are the image's own, at its own speed and the
mirror's.

  mirror=SUBTYPE/CONFIG
               The second image: any handler and configuration, at the end, with \\; for its own
               semicolons. The default is ram/, which takes memory for all that is written or read.
  compare=all  The mirror holds the same from the beginning. Otherwise what neither was written nor
               read since the LUN was opened is not known, and is believed when it is read first.

Example: verify/qcow//x.qcow2;mirror=file//mirror.img\\;create=on
";

/// Zeroes are written to the mirror in pieces of at most this many bytes.
const ZEROES: u64 = 1 << 20;

/// An image and its mirror.
#[derive(Debug)]
pub(crate) struct Verify {
    image: AnyBackstore,
    mirror: AnyBackstore,
    /// Where the mirror has to hold the same.
    known: RefCell<Ranges>,
    /// Requests that overlap would reach the two in different orders.
    ranges: RangeLock,
}

/// What the options say: whether the mirror holds the same from the beginning.
pub(crate) fn parse(options: &Options) -> Result<bool> {
    let compare = options.parsed("compare", "all", |text| (text == "all").then_some(true))?;
    Ok(compare.unwrap_or(false))
}

/// The subtype of the mirror and what stands behind it.
pub(crate) fn split_mirror(mirror: &str) -> Result<(&str, &str)> {
    mirror.split_once('/').ok_or_else(|| {
        invalid(format!(
            "the mirror \"{mirror}\" is no SUBTYPE/CONFIG, such as file//path"
        ))
    })
}

impl Verify {
    pub(crate) fn new(image: AnyBackstore, mirror: AnyBackstore, trusted: bool) -> Self {
        let mut known = Ranges::default();
        if trusted {
            known.insert(Extent {
                offset: 0,
                len: image.capabilities().size,
            });
        }
        Self {
            image,
            mirror,
            known: RefCell::new(known),
            ranges: RangeLock::default(),
        }
    }

    /// Has the mirror hold zeroes.
    async fn zero_mirror(&self, io: &Io, extent: Extent) -> Result<()> {
        if self.mirror.capabilities().write_zeroes {
            let zeroed = self.mirror.write_zeroes(io, extent, ZeroFlags::default());
            return zeroed.await.map_err(mirror_failed);
        }
        let zeroes = allocate(io, extent.len.min(ZEROES))?;
        let mut offset = extent.offset;
        while offset < extent.end() {
            let len = (extent.end() - offset).min(ZEROES);
            let part = zeroes.view().slice(0..len as usize).map_err(internal)?;
            let written = self.mirror.write(io, part, offset, WriteFlags::default());
            written.await.map_err(mirror_failed)?;
            offset += len;
        }
        Ok(())
    }

    /// Nobody knows what is there until it was read.
    fn forget(&self, extent: Extent) {
        self.known.borrow_mut().remove(extent);
    }

    fn know(&self, extent: Extent) {
        self.known.borrow_mut().insert(extent);
    }

    /// Compares a part of what was read with the mirror.
    async fn compare(&self, io: &Io, is: Buffer<'_>, extent: Extent) -> Result<()> {
        let should = allocate(io, extent.len)?;
        let read = self.mirror.read(io, should.view(), extent.offset);
        read.await.map_err(mirror_failed_reading)?;
        let Some(at) = is.difference_from(should.view()) else {
            return Ok(());
        };
        let (mut one, mut other) = ([0], [0]);
        is.copy_to(at, &mut one);
        should.view().copy_to(at, &mut other);
        let byte = extent.offset + at as u64;
        let (is, should) = (one[0], other[0]);
        tracing::error!(byte, is, should, "the image differs from its mirror");
        Err(Error::new(
            ErrorKind::Read,
            format!("byte {byte} is {is:#04x}, and the mirror has {should:#04x}"),
        ))
    }

    async fn check(&self, io: &Io, buffer: Buffer<'_>, extent: Extent) -> Result<()> {
        let parts = self.known.borrow().parts(extent);
        for (part, known) in parts {
            let start = (part.offset - extent.offset) as usize;
            let bytes = buffer
                .slice(start..start + part.len as usize)
                .map_err(internal)?;
            if known {
                self.compare(io, bytes, part).await?;
            } else {
                let flags = WriteFlags::default();
                let copied = self.mirror.write(io, bytes, part.offset, flags).await;
                copied.map_err(mirror_failed_reading)?;
                self.know(part);
            }
        }
        Ok(())
    }
}

fn mirror_failed(error: Error) -> Error {
    Error::new(error.kind(), "the mirror failed").with_source(error)
}

/// What fails of the mirror during a read is a read that fails.
fn mirror_failed_reading(error: Error) -> Error {
    mirror_failed(error).with_kind(ErrorKind::Read)
}

fn internal(error: impl std::error::Error + Send + Sync + 'static) -> Error {
    Error::new(ErrorKind::Internal, "a part of a request").with_source(error)
}

fn allocate(io: &Io, len: u64) -> Result<tcmu_handler::OwnedBuffer> {
    io.allocate(len as usize)
        .map_err(|error| Error::os("no memory to compare in", error).with_kind(ErrorKind::Busy))
}

fn of(buffer: &Buffer<'_>, offset: u64) -> Extent {
    let len = buffer.len() as u64;
    Extent { offset, len }
}

impl Backstore for Verify {
    fn capabilities(&self) -> Capabilities {
        let (image, mirror) = (self.image.capabilities(), self.mirror.capabilities());
        Capabilities {
            size: image.size.min(mirror.size),
            block_size: image.block_size.max(mirror.block_size),
            physical_block_size: image.physical_block_size.max(mirror.block_size),
            // The runner's own way goes through reads and writes, which are compared.
            compare_and_write: 0,
            data_access: DataAccess::Bytes,
            ..image
        }
    }

    async fn read(&self, io: &Io, buffer: Buffer<'_>, offset: u64) -> Result<()> {
        let extent = of(&buffer, offset);
        let _held = self.ranges.take(extent).await;
        self.image.read(io, buffer, offset).await?;
        self.check(io, buffer, extent).await
    }

    async fn write(
        &self,
        io: &Io,
        buffer: Buffer<'_>,
        offset: u64,
        flags: WriteFlags,
    ) -> Result<()> {
        let extent = of(&buffer, offset);
        let _held = self.ranges.take(extent).await;
        // Until both have it.
        self.forget(extent);
        self.image.write(io, buffer, offset, flags).await?;
        let flags = WriteFlags::default();
        let mirrored = self.mirror.write(io, buffer, offset, flags).await;
        mirrored.map_err(mirror_failed)?;
        self.know(extent);
        Ok(())
    }

    async fn flush(&self, io: &Io) -> Result<()> {
        self.image.flush(io).await?;
        if self.mirror.capabilities().volatile_cache {
            self.mirror.flush(io).await.map_err(mirror_failed)?;
        }
        Ok(())
    }

    async fn unmap(&self, io: &Io, extent: Extent) -> Result<()> {
        let _held = self.ranges.take(extent).await;
        self.forget(extent);
        self.image.unmap(io, extent).await?;
        // Whole units are zero now if the image says so, others may be as they were.
        let unmap = self.image.capabilities().unmap;
        let Some(unmap) = unmap.filter(|unmap| unmap.reads_zeroes) else {
            return Ok(());
        };
        let unit = unmap.granularity.max(1);
        let Some(offset) = extent.offset.checked_next_multiple_of(unit) else {
            return Ok(());
        };
        let end = extent.end() / unit * unit;
        if offset < end {
            let len = end - offset;
            self.zero_mirror(io, Extent { offset, len }).await?;
            self.know(Extent { offset, len });
        }
        Ok(())
    }

    async fn write_zeroes(&self, io: &Io, extent: Extent, flags: ZeroFlags) -> Result<()> {
        let _held = self.ranges.take(extent).await;
        self.forget(extent);
        self.image.write_zeroes(io, extent, flags).await?;
        self.zero_mirror(io, extent).await?;
        self.know(extent);
        Ok(())
    }

    async fn block_status(&self, io: &Io, extent: Extent) -> Result<BlockStatus> {
        self.image.block_status(io, extent).await
    }

    async fn prefetch(&self, io: &Io, extent: Extent) -> Result<()> {
        self.image.prefetch(io, extent).await
    }

    async fn usage(&self, io: &Io) -> Result<Usage> {
        self.image.usage(io).await
    }

    async fn resize(&self, io: &Io, size: u64) -> Result<()> {
        self.mirror.resize(io, size).await.map_err(|error| {
            let kind = error.kind();
            Error::new(kind, "the mirror cannot have that size").with_source(error)
        })?;
        self.image.resize(io, size).await?;
        // What lies behind the end now may come back as anything.
        self.forget(Extent {
            offset: size,
            len: u64::MAX - size,
        });
        Ok(())
    }

    async fn close(&self, io: &Io) -> Result<()> {
        let closed = self.image.close(io).await;
        self.mirror.close(io).await.map_err(mirror_failed)?;
        closed
    }
}
