//! What serves a LUN that is taken offline.

use tcmu_handler::{Backstore, Buffer, Capabilities, Error, ErrorKind, Io, Result, WriteFlags};

/// Nothing: the image is not opened. All commands that need it are refused before they come here,
/// see [`LogicalUnit::take_offline`](crate::device_server::LogicalUnit::take_offline).
#[derive(Debug)]
pub(crate) struct Offline {
    size: u64,
}

impl Offline {
    /// In place of an image of `size` bytes.
    pub(crate) fn new(size: u64) -> Self {
        Self { size }
    }
}

fn offline() -> Error {
    Error::new(ErrorKind::Gone, "the LUN is offline")
}

impl Backstore for Offline {
    fn capabilities(&self) -> Capabilities {
        Capabilities::new(self.size)
    }

    async fn read(&self, _: &Io, _: Buffer<'_>, _: u64) -> Result<()> {
        Err(offline())
    }

    async fn write(&self, _: &Io, _: Buffer<'_>, _: u64, _: WriteFlags) -> Result<()> {
        Err(offline())
    }
}
