//! The whole way of a command on a mock kernel: ring, reactor, io_uring, device server, backstore.
#![allow(clippy::unwrap_used, reason = "this is a test")]

mod aborts;
mod allocations;
mod background;
mod copies;
mod external;
mod faults;
mod lun;
mod model;
mod nbd;
mod recovery;
mod round_trip;
