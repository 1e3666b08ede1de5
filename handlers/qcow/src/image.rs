//! An open image.

use std::cell::Cell;

use tcmu_handler::{
    Backstore, BlockStatus, Buffer, Capabilities, Error, ErrorKind, Extent, Io, Result, WriteFlags,
    ZeroFlags,
};

use crate::allocator::Allocator;
use crate::disk::Below;
use crate::fault::refused;
use crate::header::Header;
use crate::layer::{self, Backing, Layer, Origin};
use crate::range_lock::RangeLocks;
use crate::snapshot::Snapshot;
use crate::transfers::{self, Way};

/// So many ranges may wait to be counted down before a request flushes the image to do it.
const WAITING: usize = 1024;

/// An open qcow2 image with the images below it.
#[derive(Debug)]
pub struct QcowImage {
    pub(crate) top: Layer,
    pub(crate) backing: Vec<Backing>,
    /// What writing needs; nothing if the image is only read.
    pub(crate) writer: Option<Writer>,
    pub(crate) capabilities: Cell<Capabilities>,
    pub(crate) header: Header,
    pub(crate) snapshots: Vec<Snapshot>,
}

/// What writing needs.
#[derive(Debug)]
pub(crate) struct Writer {
    pub(crate) allocator: Allocator,
    /// Clusters of the guest whose mapping is being changed.
    pub(crate) changing: RangeLocks,
}

impl QcowImage {
    /// The internal snapshots, oldest first.
    pub fn snapshots(&self) -> &[Snapshot] {
        &self.snapshots
    }

    pub(crate) fn writer(&self) -> Result<&Writer> {
        self.writer.as_ref().ok_or_else(|| {
            refused(
                ErrorKind::ReadOnly,
                &self.top.disk.storage.path,
                "the image is open for reading only",
            )
        })
    }

    /// Fills `buffer` with the bytes at `offset`, for a request that is counted already.
    pub(crate) async fn fill(&self, io: &Io, buffer: Buffer<'_>, offset: u64) -> Result<()> {
        layer::read(io, &self.top, &self.backing, buffer, offset).await
    }

    /// Whether an unallocated byte shows what the image below has there.
    pub(crate) fn is_backed(&self, offset: u64) -> bool {
        self.backing
            .first()
            .is_some_and(|image| offset < image.size())
    }

    /// Makes all completed requests durable.
    pub(crate) async fn make_durable(&self, io: &Io) -> Result<()> {
        let Layer { disk, mapping, .. } = &self.top;
        mapping.settle(io, disk).await?;
        disk.pass_barrier(io).await
    }

    /// Counts down what was let go, if that has become much.
    pub(crate) async fn tidy(&self, io: &Io) -> Result<()> {
        let allocator = &self.writer()?.allocator;
        if allocator.waiting() >= WAITING {
            self.make_durable(io).await?;
            self.reclaim(io, allocator).await;
        }
        Ok(())
    }

    async fn reclaim(&self, io: &Io, allocator: &Allocator) {
        self.top.unpacker.forget();
        // What cannot be counted down is leaked, and harms nobody.
        let _ = allocator.reclaim(io, &self.top.disk).await;
    }
}

/// A request's future is moved once, and is as large as the largest kind of request: all but reads and
/// writes within one piece lie in boxes.
impl Backstore for QcowImage {
    fn capabilities(&self) -> Capabilities {
        self.capabilities.get()
    }

    async fn read(&self, io: &Io, buffer: Buffer<'_>, offset: u64) -> Result<()> {
        let _inside = self
            .writer
            .as_ref()
            .map(|writer| writer.allocator.grace.enter());
        let Some(host) = self.top.in_one_piece(offset, buffer.len() as u64) else {
            return Box::pin(self.fill(io, buffer, offset)).await;
        };
        // Most requests lie within one piece: one transfer is all that they need.
        let data = self.top.disk.data();
        let result = transfers::start(io, Way::Read, data, buffer, host).await;
        if transfers::is_whole(&result, &buffer) {
            return Ok(());
        }
        let rest = transfers::complete(io, Way::Read, data, buffer, host, result);
        Box::pin(rest).await
    }

    async fn write(
        &self,
        io: &Io,
        buffer: Buffer<'_>,
        offset: u64,
        flags: WriteFlags,
    ) -> Result<()> {
        self.write_data(io, buffer, offset, flags.fua).await
    }

    async fn flush(&self, io: &Io) -> Result<()> {
        let Some(writer) = &self.writer else {
            return Ok(());
        };
        Box::pin(self.make_durable(io)).await?;
        if writer.allocator.waiting() != 0 {
            Box::pin(self.reclaim(io, &writer.allocator)).await;
        }
        Ok(())
    }

    async fn unmap(&self, io: &Io, extent: Extent) -> Result<()> {
        Box::pin(async {
            self.zero_range(io, extent, Below::Punched).await?;
            self.tidy(io).await
        })
        .await
    }

    async fn write_zeroes(&self, io: &Io, extent: Extent, flags: ZeroFlags) -> Result<()> {
        let below = if flags.may_unmap {
            Below::Punched
        } else {
            Below::Kept
        };
        Box::pin(async {
            self.zero_range(io, extent, below).await?;
            if flags.fua {
                self.make_durable(io).await?;
            }
            self.tidy(io).await
        })
        .await
    }

    async fn block_status(&self, io: &Io, extent: Extent) -> Result<BlockStatus> {
        let Extent { offset, len } = extent;
        let (origin, len) = layer::resolve(io, &self.top, &self.backing, offset, len).await?;
        let mapped = !matches!(origin, Origin::Zero);
        Ok(BlockStatus { len, mapped })
    }

    async fn resize(&self, io: &Io, size: u64) -> Result<()> {
        if size <= self.capabilities.get().size {
            return Ok(());
        }
        Box::pin(self.grow(io, size)).await
    }

    async fn close(&self, io: &Io) -> Result<()> {
        let Some(Writer { allocator, .. }) = &self.writer else {
            return Ok(());
        };
        self.make_durable(io).await?;
        self.reclaim(io, allocator).await;
        allocator.give_back(io, &self.top.disk).await?;
        self.top.disk.pass_barrier(io).await
    }
}

/// An error that says where in the image a request failed.
pub(crate) fn out_of_range(path: &std::path::Path, have: u64, wanted: u64) -> Error {
    refused(
        ErrorKind::OutOfRange,
        path,
        format!("the image has {have} bytes, less than the {wanted} asked for"),
    )
}
