//! Reactors: threads that own an io_uring and a share of the LUNs.
//!
//! One turn: hand the kernel all that has been queued and wait (one system call); step the tasks
//! whose I/O has finished; fetch the new commands of the LUNs that something happened to; publish
//! what was completed, one store and one kick per LUN. The kicks go to the kernel with the next
//! turn's system call.

mod age;
mod blocking;
mod clock;
mod detour;
mod engine;
mod hold;
mod local;
mod lun;
mod memory;
mod message;
mod pace;
mod ready;
mod recovery;
mod slots;
mod tally;
mod tasks;
mod thread;
mod ticks;
mod turn;

pub(crate) use blocking::BlockingPool;
pub use engine::Counters;
pub use local::LocalReactor;
pub(crate) use lun::{Done, lun};
pub(crate) use message::{LunId, Mailer, MakeLun, Message, Notice};
pub(crate) use recovery::{Recovered, Recovery};
pub(crate) use thread::ReactorHandle;
