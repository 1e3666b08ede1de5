//! The device server, called with plain buffers over a disk in memory.
#![allow(clippy::unwrap_used, reason = "this is a test")]

mod block_io;
mod cache;
mod capacity;
mod disk;
mod errors;
mod hostile;
mod inquiry;
mod mode;
mod model;
mod opcodes;
mod target;
mod unit_attention;
mod unmap;
mod write_same;
