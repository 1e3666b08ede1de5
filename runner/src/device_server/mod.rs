//! The device server of one logical unit: a disk as SPC-4 and SBC-3 define it, on a backstore.
//!
//! It knows no transport. A [`Request`] is a CDB and the buffer for its data, a [`Response`] is a
//! status; tests call it with memory from the heap. The way of a command:
//!
//! 1. The table in `opcode_table` says which commands there are, which bits of their CDBs mean
//!    something, and what they need of the backstore. REPORT SUPPORTED OPERATION CODES reads it out.
//! 2. [`LogicalUnit::execute`] looks the command up, reports a pending unit attention, checks the
//!    bits and write protection.
//! 3. The command runs: `block_io` for reads and writes, one file each for the others.
//!
//! What the unit claims about itself (VPD, mode pages, READ CAPACITY) follows from the backstore's
//! capabilities alone.
//!
//! # What the kernel does before
//! Linux's target core answers REPORT LUNS, PERSISTENT RESERVE and RESERVE/RELEASE itself
//! (`passthrough_parse_cdb` in target_core_device.c), and checks reservations and its own unit
//! attentions before a command gets here, and refuses commands where the state of the target port
//! group does not allow them. It does not compare the CDB's transfer length with the
//! buffer's, so this is done here.

mod abort;
mod background;
mod block_io;
mod compare_and_write;
mod copy_end;
mod copy_list;
mod copy_results;
mod defects;
mod diagnostic;
mod error_log;
mod extended_copy;
mod format_unit;
mod geometry;
mod identity;
mod inquiry;
mod journal;
mod lba_status;
mod log_sense;
mod logical_unit;
mod mode_pages;
mod mode_select;
mod mode_sense;
mod neighbours;
mod offline;
mod opcode;
mod opcode_table;
mod operation;
mod or_write;
mod own_type;
mod prefetch;
mod progress;
mod range_lock;
mod read_capacity;
mod reply;
mod report_opcodes;
mod report_task_management;
mod sanitize;
mod scratch;
mod sense_of_error;
mod target_core;
mod target_port_groups;
mod third_party_copy;
mod thresholds;
mod unit;
mod unit_attention;
mod unmap;
mod verify;
mod vpd;
mod write_atomic;
mod write_same;

pub use geometry::Geometry;
pub use identity::Identity;
pub use journal::Journal;
pub use logical_unit::{LogicalUnit, Request};
pub(crate) use neighbours::{CopyFailure, CopyRequest, CopyResult, Local, Neighbour, Neighbours};
pub use progress::{OnlyOnce, Progress};
pub use reply::Response;
pub use target_core::{Surroundings, TargetCore, Told};
