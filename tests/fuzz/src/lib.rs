//! Fuzz targets: what arbitrary bytes do to each of our parsers.
//!
//! A target takes any bytes and panics if something is wrong. `targets/` makes a program of each, in
//! which libFuzzer looks for bytes that lead to new code. With cargo-fuzz, by a stable compiler if no
//! sanitizer is asked for:
//!
//! ```text
//! cargo fuzz run --fuzz-dir tests/fuzz --sanitizer none --features libfuzzer cdb -- -max_total_time=60
//! ```
//!
//! Without it, by the same means; all that it takes is a C++ compiler. `--target` keeps the
//! instrumentation away from build scripts:
//!
//! ```text
//! export CARGO_TARGET_DIR=target/fuzz CARGO_PROFILE_RELEASE_LTO=off \
//!     CARGO_PROFILE_RELEASE_DEBUG_ASSERTIONS=true CARGO_PROFILE_RELEASE_OVERFLOW_CHECKS=true
//! RUSTFLAGS="-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
//!     -Cllvm-args=-sanitizer-coverage-inline-8bit-counters \
//!     -Cllvm-args=-sanitizer-coverage-pc-table -Cllvm-args=-sanitizer-coverage-trace-compares" \
//!     cargo build --release --target x86_64-unknown-linux-gnu -p tcmu-fuzz --features libfuzzer --bins
//! mkdir -p target/fuzz/corpus/cdb
//! target/fuzz/x86_64-unknown-linux-gnu/release/cdb -max_total_time=180 \
//!     target/fuzz/corpus/cdb tests/fuzz/seeds/cdb
//! ```
//!
//! What it finds is written to a file `crash-...`; that becomes a seed once the mistake is mended.
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
