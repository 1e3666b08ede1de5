//! Backstores with plain functions: they run on the reactor's bounded pool of threads.

use std::io;
use std::sync::Arc;

use crate::{
    Backstore, BlockStatus, Buffer, Capabilities, CdbAnswer, Comparison, Error, ErrorKind, Extent,
    Io, OwnedBuffer, Result, Usage, WriteFlags, ZeroFlags,
};

/// [`Backstore`] with functions that may block.
///
/// Requests run on several threads at once, hence `Sync`. The methods mean what those of
/// [`Backstore`] mean. [`Blocking`] makes a `Backstore` of it.
pub trait BlockingBackstore: Send + Sync + 'static {
    /// See [`Backstore::capabilities`].
    fn capabilities(&self) -> Capabilities;

    /// See [`Backstore::read`].
    ///
    /// # Errors
    /// As there.
    fn read(&self, buffer: Buffer<'_>, offset: u64) -> Result<()>;

    /// See [`Backstore::write`].
    ///
    /// # Errors
    /// As there.
    fn write(&self, buffer: Buffer<'_>, offset: u64, flags: WriteFlags) -> Result<()>;

    /// See [`Backstore::flush`].
    ///
    /// # Errors
    /// As there.
    fn flush(&self) -> Result<()> {
        Err(Error::new(
            ErrorKind::Unsupported,
            "this backstore does not do flush",
        ))
    }

    /// See [`Backstore::unmap`].
    ///
    /// # Errors
    /// As there.
    fn unmap(&self, extent: Extent) -> Result<()> {
        let _ = extent;
        Err(Error::new(
            ErrorKind::Unsupported,
            "this backstore does not do unmap",
        ))
    }

    /// See [`Backstore::write_zeroes`].
    ///
    /// # Errors
    /// As there.
    fn write_zeroes(&self, extent: Extent, flags: ZeroFlags) -> Result<()> {
        let _ = (extent, flags);
        Err(Error::new(
            ErrorKind::Unsupported,
            "this backstore does not do write_zeroes",
        ))
    }

    /// See [`Backstore::compare_and_write`].
    ///
    /// # Errors
    /// As there.
    fn compare_and_write(
        &self,
        expected: Buffer<'_>,
        new: Buffer<'_>,
        offset: u64,
        flags: WriteFlags,
    ) -> Result<Comparison> {
        let _ = (expected, new, offset, flags);
        Err(Error::new(
            ErrorKind::Unsupported,
            "this backstore does not do compare_and_write",
        ))
    }

    /// See [`Backstore::block_status`].
    ///
    /// # Errors
    /// As there.
    fn block_status(&self, extent: Extent) -> Result<BlockStatus> {
        Ok(BlockStatus {
            len: extent.len,
            mapped: true,
        })
    }

    /// See [`Backstore::prefetch`].
    ///
    /// # Errors
    /// As there.
    fn prefetch(&self, extent: Extent) -> Result<()> {
        let _ = extent;
        Ok(())
    }

    /// See [`Backstore::usage`].
    ///
    /// # Errors
    /// As there.
    fn usage(&self) -> Result<Usage> {
        Err(Error::new(
            ErrorKind::Unsupported,
            "this backstore does not do usage",
        ))
    }

    /// See [`Backstore::handle_cdb`].
    fn handle_cdb(&self, cdb: &[u8], data: Buffer<'_>) -> Option<CdbAnswer> {
        let _ = (cdb, data);
        None
    }

    /// See [`Backstore::close`].
    ///
    /// # Errors
    /// As there.
    fn close(&self) -> Result<()> {
        Ok(())
    }
}

/// Makes a [`Backstore`] of a [`BlockingBackstore`].
#[derive(Debug)]
pub struct Blocking<B>(Arc<B>);

impl<B: BlockingBackstore> Blocking<B> {
    /// Wraps `backstore`.
    pub fn new(backstore: B) -> Self {
        Self(Arc::new(backstore))
    }

    async fn run<T: Send + 'static>(
        &self,
        io: &Io,
        request: impl FnOnce(&B) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let backstore = Arc::clone(&self.0);
        io.blocking(move || request(&backstore))
            .await
            .map_err(panicked)?
    }
}

fn panicked(error: io::Error) -> Error {
    Error::os("the backstore failed", error).with_kind(ErrorKind::Internal)
}

impl<B: BlockingBackstore> Backstore for Blocking<B> {
    fn capabilities(&self) -> Capabilities {
        self.0.capabilities()
    }

    async fn read(&self, io: &Io, buffer: Buffer<'_>, offset: u64) -> Result<()> {
        let buffer: OwnedBuffer = buffer.to_owned();
        self.run(io, move |backstore| backstore.read(buffer.view(), offset))
            .await
    }

    async fn write(
        &self,
        io: &Io,
        buffer: Buffer<'_>,
        offset: u64,
        flags: WriteFlags,
    ) -> Result<()> {
        let buffer: OwnedBuffer = buffer.to_owned();
        self.run(io, move |backstore| {
            backstore.write(buffer.view(), offset, flags)
        })
        .await
    }

    async fn flush(&self, io: &Io) -> Result<()> {
        self.run(io, B::flush).await
    }

    async fn unmap(&self, io: &Io, extent: Extent) -> Result<()> {
        self.run(io, move |backstore| backstore.unmap(extent)).await
    }

    async fn write_zeroes(&self, io: &Io, extent: Extent, flags: ZeroFlags) -> Result<()> {
        self.run(io, move |backstore| backstore.write_zeroes(extent, flags))
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
        let (expected, new) = (expected.to_owned(), new.to_owned());
        self.run(io, move |backstore| {
            backstore.compare_and_write(expected.view(), new.view(), offset, flags)
        })
        .await
    }

    async fn block_status(&self, io: &Io, extent: Extent) -> Result<BlockStatus> {
        self.run(io, move |backstore| backstore.block_status(extent))
            .await
    }

    async fn prefetch(&self, io: &Io, extent: Extent) -> Result<()> {
        self.run(io, move |backstore| backstore.prefetch(extent))
            .await
    }

    async fn usage(&self, io: &Io) -> Result<Usage> {
        self.run(io, B::usage).await
    }

    async fn handle_cdb(&self, io: &Io, cdb: &[u8], data: Buffer<'_>) -> Option<CdbAnswer> {
        /// INTERNAL TARGET FAILURE.
        const FAILED: CdbAnswer = CdbAnswer::CheckCondition {
            key: 0x4,
            asc: 0x44,
            ascq: 0x00,
        };
        let (backstore, cdb, data) = (Arc::clone(&self.0), cdb.to_vec(), data.to_owned());
        io.blocking(move || backstore.handle_cdb(&cdb, data.view()))
            .await
            .unwrap_or(Some(FAILED))
    }

    async fn close(&self, io: &Io) -> Result<()> {
        self.run(io, B::close).await
    }
}
