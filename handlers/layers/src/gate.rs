//! Layers that requests pass on their way, without a change to what they do.

use std::future::Future;

use tcmu_handler::{
    Backstore, BlockStatus, Buffer, Capabilities, Comparison, Extent, Io, Result, Usage,
    WriteFlags, ZeroFlags,
};

use crate::AnyBackstore;
use crate::operations::{Operation, Request};

/// What a layer does with requests on their way.
pub(crate) trait Gate: Send + 'static {
    /// What the image does, given what it does below.
    fn capabilities(&self, below: Capabilities) -> Capabilities {
        below
    }

    /// Lets a request pass, or not; `below` executes it.
    async fn pass<T>(
        &self,
        io: &Io,
        request: Request,
        below: impl Future<Output = Result<T>>,
    ) -> Result<T>;
}

/// An image behind a gate. Prefetching, resizing and closing go through unseen.
pub(crate) struct Gated<G> {
    pub(crate) gate: G,
    pub(crate) below: AnyBackstore,
}

fn on(operation: Operation, offset: u64, len: usize) -> Request {
    let len = len as u64;
    Request {
        operation,
        extent: Extent { offset, len },
    }
}

impl<G: Gate> Backstore for Gated<G> {
    fn capabilities(&self) -> Capabilities {
        self.gate.capabilities(self.below.capabilities())
    }

    async fn read(&self, io: &Io, buffer: Buffer<'_>, offset: u64) -> Result<()> {
        let request = on(Operation::Read, offset, buffer.len());
        let below = self.below.read(io, buffer, offset);
        self.gate.pass(io, request, below).await
    }

    async fn write(
        &self,
        io: &Io,
        buffer: Buffer<'_>,
        offset: u64,
        flags: WriteFlags,
    ) -> Result<()> {
        let request = on(Operation::Write, offset, buffer.len());
        let below = self.below.write(io, buffer, offset, flags);
        self.gate.pass(io, request, below).await
    }

    async fn flush(&self, io: &Io) -> Result<()> {
        let request = on(Operation::Flush, 0, 0);
        self.gate.pass(io, request, self.below.flush(io)).await
    }

    async fn unmap(&self, io: &Io, extent: Extent) -> Result<()> {
        let operation = Operation::Unmap;
        let request = Request { operation, extent };
        self.gate
            .pass(io, request, self.below.unmap(io, extent))
            .await
    }

    async fn write_zeroes(&self, io: &Io, extent: Extent, flags: ZeroFlags) -> Result<()> {
        let operation = Operation::Zero;
        let below = self.below.write_zeroes(io, extent, flags);
        self.gate
            .pass(io, Request { operation, extent }, below)
            .await
    }

    async fn compare_and_write(
        &self,
        io: &Io,
        expected: Buffer<'_>,
        new: Buffer<'_>,
        offset: u64,
        flags: WriteFlags,
    ) -> Result<Comparison> {
        let request = on(Operation::Compare, offset, expected.len());
        let below = self
            .below
            .compare_and_write(io, expected, new, offset, flags);
        self.gate.pass(io, request, below).await
    }

    async fn block_status(&self, io: &Io, extent: Extent) -> Result<BlockStatus> {
        let operation = Operation::Status;
        let below = self.below.block_status(io, extent);
        self.gate
            .pass(io, Request { operation, extent }, below)
            .await
    }

    async fn prefetch(&self, io: &Io, extent: Extent) -> Result<()> {
        self.below.prefetch(io, extent).await
    }

    async fn usage(&self, io: &Io) -> Result<Usage> {
        self.below.usage(io).await
    }

    async fn resize(&self, io: &Io, size: u64) -> Result<()> {
        self.below.resize(io, size).await
    }

    async fn resized(&self, io: &Io, known: u64) {
        self.below.resized(io, known).await;
    }

    async fn close(&self, io: &Io) -> Result<()> {
        self.below.close(io).await
    }
}
