//! Backstore on an image of a Ceph cluster: RADOS block devices.
//!
//! The image is reached through Ceph's own libraries, librbd and librados, which are loaded when the
//! first image is opened: the daemon runs without Ceph installed, and says what is missing where an
//! image of a cluster is asked for. Everything that touches the libraries is in the module `ffi`.
//!
//! # Data
//!
//! Reads and writes are librbd's asynchronous ones, on the segments of the request's own memory. The
//! cache of librbd is switched off, as the C tcmu-runner does it, so that a write that has completed is
//! on all replicas; where the image's own settings switch it on (`rbd config image set … rbd_cache
//! true`), the LUN has a volatile cache that initiators flush.
//!
//! # Time limits
//!
//! `osd_op_timeout` (seconds, 30 unless told) ends what the cluster does not answer, with an error that
//! initiators repeat; no request and no opening hangs. A write that has timed out may still reach the
//! disk, as with any disk whose cable is pulled. librbd copies what it writes before it is sent
//! (`rbd_disable_zero_copy_writes`, which this handler insists on), so a message that is sent late holds
//! the bytes of its own request, whatever the memory is used for by then.
//!
//! # Who may write
//!
//! With the feature `exclusive-lock` (Ceph's default), librbd takes the image's lock before the first
//! write, and hands it over to another client that asks for it: `lock=write`. With `lock=open`, the
//! image is locked when it is opened, and others that want to write are refused until it is closed.
//!
//! A client that loses its lock by force is put on the cluster's blocklist. Its requests fail from
//! then on, those under way too; nothing is repeated here, because somebody else may have written since.
//! For the requests that come later, the image is opened again, if nobody else holds the lock; the LUN
//! stays in error as long as somebody does. An image without the feature is not opened again: nothing
//! would show that it is safe.
//!
//! The lock of a daemon that was killed is broken by its successor at once: see the module `claim`.
#![deny(missing_docs)]

mod backstore;
mod claim;
mod connection;
mod errors;
mod fence;
#[allow(unsafe_code)]
mod ffi;
mod options;

use std::path::PathBuf;

use tcmu_handler::{Config, Handler, OpenRequest, Result};

pub use backstore::RbdImage;

use connection::{Access, Connection};
use options::Options;

/// The handler `rbd`.
#[derive(Clone, Debug)]
pub struct RbdHandler {
    claims: PathBuf,
}

impl RbdHandler {
    /// The handler, which notes in files below `folder` which images it has open, for a successor after
    /// a crash. The folder is made where there is none; it must not outlive the machine's uptime.
    pub fn new(folder: impl Into<PathBuf>) -> Self {
        Self {
            claims: folder.into(),
        }
    }
}

impl Default for RbdHandler {
    fn default() -> Self {
        Self::new("/run/tcmu-runner/rbd")
    }
}

impl Handler for RbdHandler {
    type Backstore = RbdImage;

    fn subtype(&self) -> &str {
        "rbd"
    }

    fn help(&self) -> &str {
        options::HELP
    }

    fn check(&self, config: &Config) -> Result<()> {
        let options = Options::new(config)?;
        Connection::open(&options, Access::Look)?.close();
        Ok(())
    }

    fn open(&self, request: &OpenRequest) -> Result<RbdImage> {
        RbdImage::open(Options::new(&request.config)?, request, &self.claims)
    }
}
