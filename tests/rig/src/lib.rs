//! Boots a real kernel and runs a program in it.
//!
//! TCMU needs a kernel with `target_core_user`, and most development machines have none. This crate
//! boots one as a process ([`Kernel`] lists the kinds), runs one program in it, relays what it
//! prints, brings back how it ended and what it left in a results folder, and always ends: the
//! guest has a watchdog, the host a deadline, and a guest dies with the process that started it.
//!
//! In the guest, the whole tree of the host is there at the same paths, so any program of the host
//! can be run. What the guest writes stays in its memory and is gone with it, except in the results
//! folder. `/run` and `/dev/shm` are tmpfs: the place for images. Modules for LIO, its fabrics and
//! SCSI disks are loaded, configfs is mounted, the loopback network is up.
//!
//! With [`Guest::systemd_root`] it is another Debian tree instead, booted by its own systemd.
//!
//! The guest's pid 1 is the executable that uses this crate: its `main()` must call [`enter`] first.
//! [`Guest`] has an example.
#![deny(missing_docs)]
#![forbid(unsafe_code)]

mod apt;
mod built;
mod cache;
mod command;
mod console;
mod debian_image;
mod error;
mod foreign;
mod guard;
mod guest;
mod guest_root;
mod host;
mod init;
mod kernel;
mod launch;
mod protocol;
mod qemu;
mod systemd;
mod uml;

pub use error::Error;
pub use foreign::ForeignPackage;
pub use guest::{End, Guest, HOST_TREE, Outcome};
pub use init::enter;
pub use kernel::{KERNEL_VAR, Kernel};
