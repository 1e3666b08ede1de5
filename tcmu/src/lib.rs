//! The interfaces of Linux's target_core_user: command ring, UIO, generic netlink, SCSI formats.
#![deny(missing_docs)]

pub mod abi;
mod attribute;
pub mod cdb;
pub mod configfs;
pub mod discovery;
pub mod doorbell;
#[cfg(feature = "kill-points")]
mod kill_points;
pub mod mapping;
#[cfg(feature = "mock")]
pub mod mock;
pub mod module;
pub mod netlink;
pub mod ring;
pub mod scsi;
pub mod uio;
