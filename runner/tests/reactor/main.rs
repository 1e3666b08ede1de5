//! The whole way of a command on a mock kernel: ring, reactor, io_uring, device server, backstore.

mod allocations;
mod faults;
mod lun;
mod round_trip;
