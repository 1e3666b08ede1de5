//! Backstore on a qcow2 image.
//!
//! Reads and writes of clusters that the image owns go from the request's memory straight to the
//! file: nothing is copied, and where they lie in one piece in the file, nothing is allocated.
//! Everything else (new clusters, copy on write, compressed clusters, snapshots, the images below)
//! takes longer, and is as safe.
//!
//! # What a power cut leaves
//! A valid image, whatever the order in which unflushed writes reached the medium; everything that
//! was flushed; and at the worst leaked clusters, which `qemu-img check -r leaks` finds. See
//! `allocate.rs` and `allocator.rs` for the order of things.
//!
//! # What the death of the daemon leaves
//! Every write that was acknowledged: mappings are in the image file, if not on the medium, before
//! a write is.
//!
//! # Who may use an image
//! The image and all files below it are locked in qemu's way, so that qemu and this handler
//! exclude each other; see `lock.rs`.
#![deny(missing_docs)]
#![forbid(unsafe_code)]

mod allocate;
mod allocator;
mod barrier;
mod bitmap;
mod bounds;
mod chain;
mod check;
mod compress;
mod create;
mod disk;
mod entry;
mod fault;
mod grace;
mod header;
mod image;
mod layer;
mod layout;
mod lock;
mod mapping;
mod number_map;
mod open;
mod options;
mod range_lock;
mod refcounts;
mod repair;
mod resize;
mod slices;
mod snapshot;
mod storage;
#[cfg(test)]
mod tests;
mod transfers;
mod write;
mod zero;

pub use image::QcowImage;
pub use snapshot::Snapshot;

use tcmu_handler::{Config, Handler, OpenRequest, Result};

use crate::options::Options;

const HELP: &str = "\
qcow/PATH[;OPTION=VALUE]...

Serves a qcow2 image with the images below it. PATH is absolute, so there are two slashes:
qcow//var/lib/images/disk.qcow2. The image must be at least as large as the LUN. It is locked as
qemu does it: nobody else may be writing to it, or to an image below. Raw images are served by the
handler \"file\".

  readonly=on|off  on: serves the image for reading only, also to several LUNs. The default is off.
  snapshot=NAME    Shows an internal snapshot, by its name or id, for reading only. Where there is none
                   of that name, the message lists those that there are (try snapshot=?).
  create=on|off    on: makes an image as large as the LUN if there is no file. The default is off.

With create=on:

  cluster_size=N   From 512 to 2M. The default is 64k.
  extended_l2=on|off
                   on: 32 subclusters per cluster, which copy on write can be smaller with. The
                   default is off.
  preallocation=off|metadata|falloc|full
                   What is there from the beginning: nothing, all tables, storage too, or storage
                   filled with zeroes. The default is off.
  backing=PATH     The image below; a relative path begins in the image's own folder.
  backing_format=raw|qcow2
                   What the image below is. It is never guessed.

Resizing the LUN makes the image larger where it must, and never smaller.
";

/// The handler `qcow`.
#[derive(Clone, Copy, Debug, Default)]
pub struct QcowHandler;

impl Handler for QcowHandler {
    type Backstore = QcowImage;

    fn subtype(&self) -> &str {
        "qcow"
    }

    fn help(&self) -> &str {
        HELP
    }

    fn check(&self, config: &Config) -> Result<()> {
        open::check(&Options::of(config)?)
    }

    fn open(&self, request: &OpenRequest) -> Result<QcowImage> {
        open::open(&Options::of(&request.config)?, request)
    }
}
