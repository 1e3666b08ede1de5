//! Fuzz targets: what arbitrary bytes do to each of our parsers.
//!
//! A target takes any bytes and panics if something is wrong. `targets/` makes a program of each for
//! cargo-fuzz, which works with a stable compiler if no sanitizer is asked for:
//!
//! ```text
//! cargo fuzz run --fuzz-dir tests/fuzz --sanitizer none --features libfuzzer cdb -- -max_total_time=60
//! ```
//!
//! `seeds/` has the bytes to begin with, and those that once found something. The tests run all of
//! them, and variations, through the targets: so `cargo test` sees what was found before.
#![forbid(unsafe_code)]

mod commands;
mod input;
mod names;
mod qcow;
mod ring;

pub use commands::{cdb, mode_select, unmap, xcopy};
pub use names::{config, netlink};
pub use qcow::qcow;
pub use ring::ring;
pub use tcmu_handler_nbd::testing::{handshake as nbd_handshake, replies as nbd_replies};

/// What takes any bytes.
pub type Target = fn(&[u8]);

/// All targets, by name.
pub const TARGETS: &[(&str, Target)] = &[
    ("ring", ring),
    ("cdb", cdb),
    ("unmap", unmap),
    ("xcopy", xcopy),
    ("mode_select", mode_select),
    ("netlink", netlink),
    ("config", config),
    ("nbd_handshake", nbd_handshake),
    ("nbd_replies", nbd_replies),
    ("qcow", qcow),
];
