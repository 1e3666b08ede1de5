#![doc = include_str!("book.md")]
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
mod yielding;

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
pub use yielding::yield_now;
