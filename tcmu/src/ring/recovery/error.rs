//! Why a table cannot be used to go on.

use std::io;

use crate::ring::RingError;

/// Why an in-flight table and a ring do not belong together, or cannot be used.
///
/// The ring has to be [reset](crate::configfs::BackstoreDir::reset_ring) if anything is in it, and
/// gets a new table.
#[derive(Debug, thiserror::Error)]
pub enum Mismatch {
    /// The file cannot be opened, sized or mapped.
    #[error("the table's file cannot be used")]
    Io(#[from] io::Error),
    /// The file was never finished, was given up, or is something else.
    #[error("the table was given up or never begun")]
    NoTable,
    /// Another version of this program wrote it.
    #[error("the table has the format {version} of another version of this program")]
    Version {
        /// The version found.
        version: u32,
    },
    /// It is about another device, or one with the same name that is gone.
    #[error("the table is about another device")]
    OtherDevice,
    /// The ring is not as large or not where it was.
    #[error("the table is about a ring of another size")]
    OtherRing,
    /// The file is shorter or longer than it has to be.
    #[error("the table's file has {len} bytes instead of {expected}")]
    Length {
        /// Its length in bytes.
        len: u64,
        /// What it should be.
        expected: u64,
    },
    /// Somebody else moved `cmd_tail`.
    #[error("cmd_tail is {tail}, but the table expects {before} or {after}")]
    Tail {
        /// The value in the mailbox.
        tail: u32,
        /// The value before the last publication that the table knows.
        before: u32,
        /// The value after it.
        after: u32,
    },
    /// A record contradicts itself.
    #[error("the record of command {id} is damaged")]
    Record {
        /// The command's id.
        id: u16,
    },
    /// There are fewer commands in the ring than in the table.
    #[error("the table has {outstanding} commands, but the ring only {entries}")]
    Entries {
        /// Commands in the table.
        outstanding: usize,
        /// Commands in the ring.
        entries: usize,
    },
    /// The kernel does not take completions in any order, so that there is nothing to go by.
    #[error("the kernel does not offer out-of-order completion")]
    InOrder,
    /// The ring itself cannot be used.
    #[error(transparent)]
    Ring(#[from] RingError),
}
