//! The device server, called with plain buffers over a disk in memory.
#![allow(clippy::unwrap_used, reason = "this is a test")]

mod again;
mod block_io;
mod cache;
mod capacity;
mod compare_and_write;
mod defects;
mod diagnostic;
mod disk;
mod errors;
mod extended_copy;
mod format_unit;
mod hostile;
mod inquiry;
mod lba_status;
mod log;
mod mode;
mod model;
mod opcodes;
mod or_write;
mod ordering;
mod own_type;
mod ports;
mod prefetch;
mod sanitize;
mod target;
mod thresholds;
mod unit_attention;
mod unmap;
mod verify;
mod write_atomic;
mod write_same;
