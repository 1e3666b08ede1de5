//! What can be wrong with a ring.

/// An invariant of the ring that the shared memory breaks.
///
/// Offsets called `offset` count from the start of the command ring, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RingError {
    /// The mapping cannot hold a mailbox.
    #[error("the mapping has {len} bytes, too few for a mailbox: map the whole of map0")]
    NoMailbox {
        /// Size of the mapping in bytes.
        len: usize,
    },
    /// The kernel speaks another version of the interface.
    #[error("the mailbox has version {version}, only version 2 is supported")]
    Version {
        /// The version that the mailbox states.
        version: u16,
    },
    /// The command ring is not where one can be.
    #[error(
        "the command ring ({size} bytes at offset {start} of the mapping) overlaps the mailbox, \
         leaves the mapping or is not aligned to 8 bytes"
    )]
    Layout {
        /// The ring's offset from the start of the mapping.
        start: u32,
        /// The ring's size in bytes.
        size: u32,
    },
    /// `cmd_head` is no place where an entry can start.
    #[error("cmd_head {head} is outside the command ring or not aligned to 8 bytes")]
    Head {
        /// The value found.
        head: u32,
    },
    /// `cmd_tail` is no place where an entry can start.
    #[error("cmd_tail {tail} is outside the command ring or not aligned to 8 bytes")]
    Tail {
        /// The value found.
        tail: u32,
    },
    /// Someone else moved head or tail: the ring was reset, or another process serves it.
    #[error(
        "the ring was reset or is served by someone else: cmd_head {head}, cmd_tail {tail}, \
         but fetched up to {fetched} and published {published}"
    )]
    Moved {
        /// `cmd_head` as found.
        head: u32,
        /// `cmd_tail` as found.
        tail: u32,
        /// Up to where entries were fetched.
        fetched: u32,
        /// The last `cmd_tail` published by this process.
        published: u32,
    },
    /// An entry of length 0.
    #[error("the entry at offset {offset} has length 0")]
    EmptyEntry {
        /// Where the entry starts.
        offset: u32,
    },
    /// An entry too short for what it claims to be.
    #[error("the entry at offset {offset} has {len} bytes, too few for its kind")]
    ShortEntry {
        /// Where the entry starts.
        offset: u32,
        /// Its length in bytes.
        len: u32,
    },
    /// An entry that goes on after `cmd_head`, or after the end of the ring.
    #[error("the entry at offset {offset} has {len} bytes, but only {available} are there")]
    EntryTooLong {
        /// Where the entry starts.
        offset: u32,
        /// Its length in bytes.
        len: u32,
        /// Bytes up to `cmd_head` or the end of the ring.
        available: u32,
    },
    /// A command without an id.
    #[error("the command at offset {offset} has id 0")]
    NoCommandId {
        /// Where the entry starts.
        offset: u32,
    },
    /// A command with the id of another that is not completed yet.
    #[error("the command at offset {offset} has id {id}, which is in flight already")]
    DuplicateCommandId {
        /// Where the entry starts.
        offset: u32,
        /// The id.
        id: u16,
    },
}
