//! Backstores whose type is not known.

use std::future::Future;
use std::pin::Pin;

use tcmu_handler::{
    Backstore, BlockStatus, Buffer, Capabilities, CdbAnswer, Comparison, Extent, File, Io, Result,
    Usage, WriteFlags, ZeroFlags,
};

/// An open image of any handler. Each request allocates a future.
pub struct AnyBackstore(Box<dyn Erased>);

type Boxed<'a, T> = Pin<Box<dyn Future<Output = T> + 'a>>;

/// [`Backstore`] as a trait that objects can have.
trait Erased: Send {
    fn capabilities(&self) -> Capabilities;
    fn read<'a>(&'a self, io: &'a Io, to: Buffer<'a>, offset: u64) -> Boxed<'a, Result<()>>;
    fn write<'a>(
        &'a self,
        io: &'a Io,
        from: Buffer<'a>,
        offset: u64,
        flags: WriteFlags,
    ) -> Boxed<'a, Result<()>>;
    fn flush<'a>(&'a self, io: &'a Io) -> Boxed<'a, Result<()>>;
    fn unmap<'a>(&'a self, io: &'a Io, extent: Extent) -> Boxed<'a, Result<()>>;
    fn write_zeroes<'a>(
        &'a self,
        io: &'a Io,
        extent: Extent,
        flags: ZeroFlags,
    ) -> Boxed<'a, Result<()>>;
    fn compare_and_write<'a>(
        &'a self,
        io: &'a Io,
        expected: Buffer<'a>,
        new: Buffer<'a>,
        offset: u64,
        flags: WriteFlags,
    ) -> Boxed<'a, Result<Comparison>>;
    fn block_status<'a>(&'a self, io: &'a Io, extent: Extent) -> Boxed<'a, Result<BlockStatus>>;
    fn prefetch<'a>(&'a self, io: &'a Io, extent: Extent) -> Boxed<'a, Result<()>>;
    fn usage<'a>(&'a self, io: &'a Io) -> Boxed<'a, Result<Usage>>;
    fn handle_cdb<'a>(
        &'a self,
        io: &'a Io,
        cdb: &'a [u8],
        data: Buffer<'a>,
    ) -> Boxed<'a, Option<CdbAnswer>>;
    fn resize<'a>(&'a self, io: &'a Io, size: u64) -> Boxed<'a, Result<()>>;
    fn resized<'a>(&'a self, io: &'a Io, known: u64) -> Boxed<'a, ()>;
    fn file(&self) -> Option<File>;
    fn close<'a>(&'a self, io: &'a Io) -> Boxed<'a, Result<()>>;
}

impl<B: Backstore> Erased for B {
    fn capabilities(&self) -> Capabilities {
        Backstore::capabilities(self)
    }

    fn read<'a>(&'a self, io: &'a Io, to: Buffer<'a>, offset: u64) -> Boxed<'a, Result<()>> {
        Box::pin(Backstore::read(self, io, to, offset))
    }

    fn write<'a>(
        &'a self,
        io: &'a Io,
        from: Buffer<'a>,
        offset: u64,
        flags: WriteFlags,
    ) -> Boxed<'a, Result<()>> {
        Box::pin(Backstore::write(self, io, from, offset, flags))
    }

    fn flush<'a>(&'a self, io: &'a Io) -> Boxed<'a, Result<()>> {
        Box::pin(Backstore::flush(self, io))
    }

    fn unmap<'a>(&'a self, io: &'a Io, extent: Extent) -> Boxed<'a, Result<()>> {
        Box::pin(Backstore::unmap(self, io, extent))
    }

    fn write_zeroes<'a>(
        &'a self,
        io: &'a Io,
        extent: Extent,
        flags: ZeroFlags,
    ) -> Boxed<'a, Result<()>> {
        Box::pin(Backstore::write_zeroes(self, io, extent, flags))
    }

    fn compare_and_write<'a>(
        &'a self,
        io: &'a Io,
        expected: Buffer<'a>,
        new: Buffer<'a>,
        offset: u64,
        flags: WriteFlags,
    ) -> Boxed<'a, Result<Comparison>> {
        Box::pin(Backstore::compare_and_write(
            self, io, expected, new, offset, flags,
        ))
    }

    fn block_status<'a>(&'a self, io: &'a Io, extent: Extent) -> Boxed<'a, Result<BlockStatus>> {
        Box::pin(Backstore::block_status(self, io, extent))
    }

    fn prefetch<'a>(&'a self, io: &'a Io, extent: Extent) -> Boxed<'a, Result<()>> {
        Box::pin(Backstore::prefetch(self, io, extent))
    }

    fn usage<'a>(&'a self, io: &'a Io) -> Boxed<'a, Result<Usage>> {
        Box::pin(Backstore::usage(self, io))
    }

    fn handle_cdb<'a>(
        &'a self,
        io: &'a Io,
        cdb: &'a [u8],
        data: Buffer<'a>,
    ) -> Boxed<'a, Option<CdbAnswer>> {
        Box::pin(Backstore::handle_cdb(self, io, cdb, data))
    }

    fn resize<'a>(&'a self, io: &'a Io, size: u64) -> Boxed<'a, Result<()>> {
        Box::pin(Backstore::resize(self, io, size))
    }

    fn resized<'a>(&'a self, io: &'a Io, known: u64) -> Boxed<'a, ()> {
        Box::pin(Backstore::resized(self, io, known))
    }

    fn file(&self) -> Option<File> {
        Backstore::file(self)
    }

    fn close<'a>(&'a self, io: &'a Io) -> Boxed<'a, Result<()>> {
        Box::pin(Backstore::close(self, io))
    }
}

impl AnyBackstore {
    /// Forgets what kind of backstore it is.
    pub fn new(backstore: impl Backstore) -> Self {
        Self(Box::new(backstore))
    }
}

impl Backstore for AnyBackstore {
    fn capabilities(&self) -> Capabilities {
        self.0.capabilities()
    }

    async fn read(&self, io: &Io, buffer: Buffer<'_>, offset: u64) -> Result<()> {
        self.0.read(io, buffer, offset).await
    }

    async fn write(
        &self,
        io: &Io,
        buffer: Buffer<'_>,
        offset: u64,
        flags: WriteFlags,
    ) -> Result<()> {
        self.0.write(io, buffer, offset, flags).await
    }

    async fn flush(&self, io: &Io) -> Result<()> {
        self.0.flush(io).await
    }

    async fn unmap(&self, io: &Io, extent: Extent) -> Result<()> {
        self.0.unmap(io, extent).await
    }

    async fn write_zeroes(&self, io: &Io, extent: Extent, flags: ZeroFlags) -> Result<()> {
        self.0.write_zeroes(io, extent, flags).await
    }

    async fn compare_and_write(
        &self,
        io: &Io,
        expected: Buffer<'_>,
        new: Buffer<'_>,
        offset: u64,
        flags: WriteFlags,
    ) -> Result<Comparison> {
        self.0
            .compare_and_write(io, expected, new, offset, flags)
            .await
    }

    async fn block_status(&self, io: &Io, extent: Extent) -> Result<BlockStatus> {
        self.0.block_status(io, extent).await
    }

    async fn prefetch(&self, io: &Io, extent: Extent) -> Result<()> {
        self.0.prefetch(io, extent).await
    }

    async fn usage(&self, io: &Io) -> Result<Usage> {
        self.0.usage(io).await
    }

    async fn handle_cdb(&self, io: &Io, cdb: &[u8], data: Buffer<'_>) -> Option<CdbAnswer> {
        self.0.handle_cdb(io, cdb, data).await
    }

    async fn resize(&self, io: &Io, size: u64) -> Result<()> {
        self.0.resize(io, size).await
    }

    async fn resized(&self, io: &Io, known: u64) {
        self.0.resized(io, known).await;
    }

    fn file(&self) -> Option<File> {
        self.0.file()
    }

    async fn close(&self, io: &Io) -> Result<()> {
        self.0.close(io).await
    }
}

impl std::fmt::Debug for AnyBackstore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AnyBackstore")
            .field("capabilities", &self.0.capabilities())
            .finish_non_exhaustive()
    }
}
