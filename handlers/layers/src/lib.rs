//! Layers that stack over any backstore, by configuration.
//!
//! ```text
//! delay/ms=5/file//var/lib/x.img;direct=on
//! fault/op=write/nth=100/error=ENOSPC/delay/us=200/qcow//x.qcow2
//! verify/file//x.img;mirror=file//mirror.img
//! ```
//!
//! A layer is a handler like any other, whose configuration goes on with that of what lies below: its
//! own options stand between slashes, then comes `SUBTYPE/...` as it would stand alone, whose options
//! follow at the end as ever. So layers lie over layers too.
//!
//! | layer | does |
//! |---|---|
//! | `fault` | lets requests fail |
//! | `delay` | lets requests take longer |
//! | `throttle` | limits requests and bytes per second |
//! | `log` | logs requests |
//! | `readonly` | refuses changes |
//! | `volatile` | loses what was not flushed |
//! | `verify` | compares with a mirror |
//!
//! # In a program
//! ```
//! use std::sync::Arc;
//! use tcmu_handler::{Backstore, Handler, OpenRequest};
//! use tcmu_handler_layers::{Handlers, Layer};
//! use tcmu_handler_ram::RamHandler;
//!
//! # fn main() -> tcmu_handler::Result<()> {
//! let handlers = Arc::new(Handlers::new());
//! handlers.add(Arc::new(RamHandler));
//! for layer in Layer::all(&handlers) {
//!     handlers.add(Arc::new(layer));
//! }
//! let image = handlers.open(
//!     "readonly",
//!     &OpenRequest { config: "log/ram/x".parse()?, size: 1 << 20, block_size: 512 },
//! )?;
//! assert!(image.capabilities().read_only);
//! # Ok(())
//! # }
//! ```
//! The runner's `Registry` does the same with `add_layers`.
//!
//! # Cost
//! A LUN without layers pays nothing. Each layer allocates a future per request, for it does not know
//! what kind of backstore lies below.
#![deny(missing_docs)]
#![forbid(unsafe_code)]

mod any;
mod delay;
mod fault;
mod gate;
mod handlers;
mod layer;
mod log;
mod operations;
mod options;
mod range_lock;
mod ranges;
mod read_only;
#[cfg(test)]
mod tests;
mod throttle;
mod verify;
mod volatile;

pub use any::AnyBackstore;
pub use handlers::Handlers;
pub use layer::Layer;
