//! The formats of SCSI: command descriptor blocks, status, sense data and parameter data.
//!
//! Only bytes and their names, from SAM-5, SPC-4 and SBC-3. What a logical unit answers, and when,
//! is the device server's business.
//!
//! Structures are laid over bytes by zerocopy: all are unaligned and big-endian, none has padding,
//! and every bit pattern is a value, so bytes of an initiator can be looked at safely.

pub mod capacity;
pub mod cdb;
pub mod copy;
pub mod defects;
pub mod diagnostic;
pub mod format;
pub mod inquiry;
pub mod lba_status;
pub mod log;
pub mod mode;
pub mod opcode;
pub mod report_opcodes;
pub mod sanitize;
pub mod sense;
pub mod status;
pub mod target_port_groups;
pub mod task_management;
pub mod unmap;
pub mod vpd;

pub use sense::{AdditionalSense, FieldPointer, Sense, SenseKey};
pub use status::Status;
