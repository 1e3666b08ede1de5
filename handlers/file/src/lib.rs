//! Backstore on a regular file or a block device.
//!
//! Reads and writes go from the request's memory straight to the file: one operation of the I/O
//! engine each, no copy and nothing allocated.
//!
//! # Who may use an image
//! A writable LUN holds its image alone, a read-only one shares it with other read-only ones:
//!
//! - regular files by an advisory lock (flock(2)), exclusive or shared, which other programs only
//!   notice if they ask for it;
//! - block devices by an exclusive open (`O_EXCL`), which also fails while the device is mounted or
//!   part of another device. A read-only LUN claims nothing, so that it can show a device that
//!   something else uses.
//!
//! The kernel keeps both until the last operation on the image has ended, also after the daemon was
//! killed. So an open waits for a moment before it gives up: the writes of a predecessor can not
//! land after those of its successor.
//!
//! # Space
//! Unmapping punches holes into regular files, where the file system can do that for this file
//! (which is tried beyond the file's end, where nothing is lost). On block devices it has the device
//! write zeroes and give the storage back, and is only offered if the device does both; plain
//! discarding would not say what is read afterwards.
#![deny(missing_docs)]
#![forbid(unsafe_code)]

mod claim;
mod geometry;
mod image;
mod in_memory;
mod open;
mod options;
#[cfg(test)]
mod tests;

pub use image::FileImage;

use tcmu_handler::{Config, Handler, OpenRequest, Result};

use crate::options::Options;

const HELP: &str = "\
file/PATH[;OPTION=VALUE]...

Serves a regular file or a block device. PATH is absolute, so there are two slashes:
file//var/lib/images/disk.img. The image must be at least as large as the LUN. Nobody else may be
using it: a second LUN, or a mounted device, is refused.

  direct=on|off    Whether to go around the page cache. The default is off for regular files and on
                   for block devices. The LUN's blocks cannot be smaller than those that direct I/O
                   takes.
  create=on|off    on: a file that does not exist, or is empty, is made as large as the LUN, and
                   takes up space as it is written to. Any other file is left as it is. The default
                   is off.
  readonly=on|off  on: serves the image for reading only, also to several LUNs. The default is off.

Resizing the LUN makes a regular file larger where it must, and never smaller.
";

/// The handler `file`.
#[derive(Clone, Copy, Debug, Default)]
pub struct FileHandler;

impl Handler for FileHandler {
    type Backstore = FileImage;

    fn subtype(&self) -> &str {
        "file"
    }

    fn help(&self) -> &str {
        HELP
    }

    fn check(&self, config: &Config) -> Result<()> {
        open::check(&Options::of(config)?)
    }

    fn open(&self, request: &OpenRequest) -> Result<FileImage> {
        open::open(&Options::of(&request.config)?, request)
    }
}
