//! Backstore on a regular file or a block device.
#![deny(missing_docs)]
