//! Serves TCMU LUNs: reactors, the SCSI device server, the daemon.
//!
//! [`main`] is the whole program; a custom handler needs no more than
//!
//! ```no_run
//! # use tcmu_handler_null::NullHandler as MyHandler;
//! fn main() -> std::process::ExitCode {
//!     let mut handlers = tcmu_runner::Registry::new();
//!     handlers.add(MyHandler);
//!     tcmu_runner::main(handlers)
//! }
//! ```
#![deny(missing_docs)]

mod config;
mod copy;
mod daemon;
mod dbus;
pub mod device_server;
mod guardian;
mod identity;
mod journal;
mod journal_log;
mod log;
mod meter;
mod metrics;
mod program;
mod reactor;
mod recovery;
mod refusals;
mod registry;
mod run_dir;
mod service_manager;
mod slow_log;
mod target_core;

pub use config::{Config, HandlerConfig, MetricsConfig};
pub use copy::{Access as CopyAccess, Directory as CopyDirectory};
pub use metrics::Listen;
pub use program::main;
pub use reactor::{Counters, LocalReactor};
pub use registry::Registry;

/// The README's examples are tests.
#[cfg(doctest)]
#[doc = include_str!("../../README.md")]
struct Readme;
