//! What a backstore of the TCMU runner implements.
//!
//! A [`Handler`] is one *kind* of storage (`file`, `ram`, `rbd`, …): it checks configuration
//! strings and opens images. A [`Backstore`] is one *open image*: it reads and writes bytes. Neither
//! knows of SCSI, of rings, or of the kernel; the same backstore can serve any block protocol. The
//! exception is a device that is no disk: it answers its SCSI commands itself
//! ([`Backstore::handle_cdb`]).
//!
//! # Life cycle
//!
//! ```text
//! Handler::check      any thread, any time: would this configuration open?
//! Handler::open       a worker thread, may block; the result moves to one reactor and stays there
//!   read, write, …    on the reactor, many at once, each a future of the one thread
//!   resize            on the reactor, between two requests of the LUN
//!   resized           on the reactor, as long as the LUN is there: has the image changed by itself?
//!   close             on the reactor, after the last request has finished
//! ```
//!
//! A backstore does its I/O through [`Io`]: operations on files, whatever blocks on a pool of threads,
//! and what a library with threads of its own does, see [`external`].
//!
//! # A complete handler
//!
//! ```
//! use tcmu_handler::*;
//!
//! /// Reads as zeroes, forgets what is written.
//! struct Zero;
//!
//! struct Nothing {
//!     size: u64,
//! }
//!
//! impl Handler for Zero {
//!     type Backstore = Nothing;
//!     fn subtype(&self) -> &str { "zero" }
//!     fn help(&self) -> &str { "zero/: reads as zeroes; takes no options" }
//!     fn check(&self, _config: &Config) -> Result<()> { Ok(()) }
//!     fn open(&self, request: &OpenRequest) -> Result<Nothing> {
//!         Ok(Nothing { size: request.size })
//!     }
//! }
//!
//! impl Backstore for Nothing {
//!     fn capabilities(&self) -> Capabilities { Capabilities::new(self.size) }
//!     async fn read(&self, _io: &Io, buffer: Buffer<'_>, _offset: u64) -> Result<()> {
//!         buffer.fill(0);
//!         Ok(())
//!     }
//!     async fn write(&self, _io: &Io, _buffer: Buffer<'_>, _offset: u64, _: WriteFlags) -> Result<()> {
//!         Ok(())
//!     }
//! }
//! ```
#![deny(missing_docs)]
#![deny(unsafe_code)]

mod allowed_paths;
mod backstore;
mod blocking;
mod buffer;
mod capabilities;
mod cdb;
mod config;
mod error;
pub mod external;
mod handler;
mod io;
#[cfg(feature = "testing")]
pub mod testing;
mod usage;

pub use allowed_paths::AllowedPaths;
pub use backstore::{Backstore, BlockStatus, Comparison, Extent, WriteFlags, ZeroFlags};
pub use blocking::{Blocking, BlockingBackstore};
pub use buffer::{Buffer, Memory, OutOfBounds, OwnedBuffer, Segment};
pub use capabilities::{AtomicWrites, Capabilities, DataAccess, Fua, Unmap};
pub use cdb::CdbAnswer;
pub use config::{Config, ConfigError};
pub use error::{Error, ErrorKind, Result};
pub use external::{Completer, External, ExternalWork};
pub use handler::{Handler, OpenRequest};
pub use io::{Engine, File, Io, IoFuture, Operation, Ticket};
pub use usage::Usage;
