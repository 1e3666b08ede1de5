//! The interfaces of Linux's target_core_user: command ring, UIO, generic netlink, SCSI formats.
#![deny(missing_docs)]

pub mod scsi;
