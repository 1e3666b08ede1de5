//! An image as the tests use it: opened by the handler, driven by an engine that only waits.

use std::path::Path;

use anyhow::{Context as _, ensure};
use tcmu_handler::testing::{block_on, buffer, contents, io, scattered};
use tcmu_handler::{
    Backstore, Comparison, ErrorKind, Extent, Handler, Io, OpenRequest, WriteFlags, ZeroFlags,
};
use tcmu_handler_rbd::{RbdHandler, RbdImage};

pub(crate) const KIB: u64 = 1 << 10;
pub(crate) const MIB: u64 = 1 << 20;

/// An open image.
pub(crate) struct Opened {
    pub(crate) image: RbdImage,
    pub(crate) io: Io,
}

pub(crate) fn handler() -> RbdHandler {
    RbdHandler::new(Path::new(env!("CARGO_TARGET_TMPDIR")).join("rbd-claims"))
}

pub(crate) fn try_open(config: &str, size: u64) -> tcmu_handler::Result<Opened> {
    let image = handler().open(&OpenRequest {
        config: config.parse()?,
        size,
        block_size: 512,
    })?;
    Ok(Opened { image, io: io() })
}

pub(crate) fn open(config: &str, size: u64) -> anyhow::Result<Opened> {
    try_open(config, size).with_context(|| format!("cannot open {config}"))
}

/// The error of what must not open.
pub(crate) fn refused(config: &str, size: u64) -> anyhow::Result<tcmu_handler::Error> {
    match try_open(config, size) {
        Ok(_) => anyhow::bail!("{config} opened"),
        Err(error) => Ok(error),
    }
}

impl Opened {
    pub(crate) async fn write_bytes(&self, offset: u64, bytes: &[u8]) -> tcmu_handler::Result<()> {
        // In pieces that are no block long, and not in order.
        let source = scattered(bytes, 1536);
        let flags = WriteFlags::default();
        self.image
            .write(&self.io, source.view(), offset, flags)
            .await
    }

    pub(crate) async fn read_bytes(
        &self,
        offset: u64,
        len: usize,
    ) -> tcmu_handler::Result<Vec<u8>> {
        let target = scattered(&vec![0xee; len], 2560);
        self.image.read(&self.io, target.view(), offset).await?;
        Ok(contents(&target))
    }

    /// Writes 4 KiB of one byte value.
    pub(crate) fn write(&self, offset: u64, value: u8) -> tcmu_handler::Result<()> {
        block_on(self.write_bytes(offset, &[value; 4096]))
    }

    /// Whether the 4 KiB at an offset have this byte value.
    pub(crate) fn holds(&self, offset: u64, value: u8) -> tcmu_handler::Result<bool> {
        let target = buffer(4096);
        block_on(self.image.read(&self.io, target.view(), offset))?;
        Ok(contents(&target).iter().all(|&byte| byte == value))
    }

    pub(crate) async fn zero(&self, extent: Extent, may_unmap: bool) -> tcmu_handler::Result<()> {
        let flags = ZeroFlags {
            fua: false,
            may_unmap,
        };
        self.image.write_zeroes(&self.io, extent, flags).await
    }

    pub(crate) async fn swap(
        &self,
        offset: u64,
        expected: &[u8],
        new: &[u8],
    ) -> tcmu_handler::Result<Comparison> {
        let (expected, new) = (scattered(expected, 100), scattered(new, 200));
        let flags = WriteFlags::default();
        let (expected, new) = (expected.view(), new.view());
        self.image
            .compare_and_write(&self.io, expected, new, offset, flags)
            .await
    }

    pub(crate) fn close(self) -> anyhow::Result<()> {
        block_on(self.image.close(&self.io)).context("the image does not close")
    }
}

/// What an error must be, and say.
pub(crate) fn is(error: &tcmu_handler::Error, kind: ErrorKind, says: &str) -> anyhow::Result<()> {
    ensure!(
        error.kind() == kind,
        "{:?}, not {kind:?}: {error}",
        error.kind()
    );
    ensure!(
        error.to_string().contains(says),
        "it does not say \"{says}\": {error}"
    );
    Ok(())
}
