//! LIO's configfs tree: user backstores (TCMU) and how they are exposed.
//!
//! Linux's SCSI target is set up through folders and files below `/sys/kernel/config/target`. This
//! crate creates, lists, resizes and deletes the backstores there that a user-space daemon serves,
//! with a disk of this machine (loopback) or an iSCSI target in front of them; it saves and restores
//! them ([`saved`]), and finds what is wrong with them ([`Tree::examine`]). [`Tree`] is where to
//! begin; `tcmuctl` is the same on the command line.
//!
//! The kernel's side is `drivers/target/target_core_user.c`, `target_core_configfs.c`,
//! `target_core_fabric_configfs.c`, `loopback/tcm_loop.c` and `iscsi/iscsi_target_configfs.c`.
//! Three of its habits shape this crate:
//!
//! - Writing `enable` or `attrib/dev_size`, and removing a backstore, wait for the daemon without
//!   end and without a way to interrupt them, `enable` even when no daemon is there. So a daemon is
//!   looked for first, the wait is made beside the caller and is bounded, and when time is up the
//!   kernel is made to fail the request.
//! - The verdict on `enable` is the daemon's, handed through as an errno. It is put into words.
//! - Nothing is a transaction. Each step that [`Tree::create`] makes carries the step that takes it
//!   back.
#![deny(missing_docs)]
#![forbid(unsafe_code)]

mod backstore;
mod change;
mod create;
mod daemon;
mod delete;
mod disk;
mod doctor;
mod error;
mod export;
mod identity;
mod iscsi;
mod lock;
mod loopback;
mod name;
mod prepare;
mod refusal;
mod resize;
mod roots;
pub mod saved;
mod size;
mod spec;
mod tree;
mod undo;

#[cfg(test)]
mod fake;
#[cfg(test)]
mod tests;

pub use backstore::{Backstore, Details, State};
pub use change::{HELPER_ARGUMENT, helper};
pub use daemon::{HANDLERS_FILE, PID_FILE, PROCESS_NAME, Sign, find as find_daemon};
pub use doctor::{Finding, Severity};
pub use error::{Error, Result};
pub use export::Export;
pub use name::{CONFIG_MAX, ISCSI_PORT, NAME_MAX, SERIAL_MAX, parse_portal};
pub use roots::Roots;
pub use size::{DEFAULT_BLOCK_SIZE, parse_size, show_size};
pub use spec::{
    BackstoreSpec, DEFAULT_COMMAND_TIMEOUT, DEFAULT_DATA_AREA_MB, DEFAULT_RING_MB,
    DEFAULT_TRANSFER, DeleteOptions, IscsiSpec, ResizeOptions,
};
pub use tree::{DEFAULT_TIME_LIMIT, Tree};
