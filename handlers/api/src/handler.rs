//! One kind of storage.

use crate::{Backstore, Config, Result};

/// What is to be opened, and what the LUN on top of it will be.
#[derive(Clone, Debug)]
pub struct OpenRequest {
    /// The configuration string, taken apart.
    pub config: Config,
    /// The LUN's size in bytes, as set in the kernel.
    pub size: u64,
    /// The LUN's logical block size in bytes, as set in the kernel.
    pub block_size: u32,
}

/// One kind of storage: checks configurations and opens images.
pub trait Handler: Send + Sync + 'static {
    /// The open images of this handler.
    type Backstore: Backstore;

    /// The word before the first `/` of a configuration string.
    fn subtype(&self) -> &str;

    /// What the configuration string looks like and which options there are; shown to people.
    fn help(&self) -> &str;

    /// Says whether `config` would open, without changing anything. May block.
    ///
    /// # Errors
    /// Why it would not open.
    fn check(&self, config: &Config) -> Result<()>;

    /// Opens an image. Runs on a worker thread and may block; several opens run at once.
    ///
    /// # Errors
    /// Why the image cannot serve such a LUN. The LUN then does not come up, and whoever sets it up
    /// is told [`Error::errno`](crate::Error::errno).
    fn open(&self, request: &OpenRequest) -> Result<Self::Backstore>;
}
