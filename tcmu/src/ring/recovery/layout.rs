//! Where things are in a table's file.
//!
//! A page of header; then one record per command id; then, for commands that do not fit into their
//! record, a stretch per id. The file is sparse: what is used is allocated before it is touched, so
//! that a full file system is an error and not SIGBUS.

use std::mem::size_of;

use crate::abi;

/// The first word. Wiped when the table is given up.
pub(super) const MAGIC: u64 = u64::from_le_bytes(*b"tcmu-ift");
/// Changes with the layout; a table of another version is not read.
pub(super) const VERSION: u32 = 1;

pub(super) const PAGE: usize = 4096;

/// Offsets in the header.
pub(super) mod header {
    /// u64: [`MAGIC`](super::MAGIC).
    pub(in super::super) const MAGIC: usize = 0;
    /// u32: [`VERSION`](super::VERSION).
    pub(in super::super) const VERSION: usize = 8;
    /// u32: for how many ids there are records that may be touched.
    pub(in super::super) const CAPACITY: usize = 12;
    /// u64: length of the device's mapping in bytes.
    pub(in super::super) const MAPPING_LEN: usize = 16;
    /// u64: where its ring starts, and in the upper half the ring's length, in bytes.
    pub(in super::super) const RING: usize = 24;
    /// [`Owner`](super::super::Owner).
    pub(in super::super) const OWNER: usize = 32;
    /// u64: the number of the last publication that was begun.
    pub(in super::super) const PUBLICATION: usize = 64;
    /// u32, twice: `cmd_tail` after the publications with even and with odd numbers.
    pub(in super::super) const TAILS: usize = 72;
    /// u64, [`NOTES`](super::NOTES) times.
    pub(in super::super) const NOTES: usize = 128;
}

/// How many words the table's owner has for itself.
pub(super) const NOTES: usize = 16;

/// Where the records start.
pub(super) const RECORDS: usize = PAGE;
/// Size of a record in bytes.
pub(super) const RECORD: usize = 256;

/// Offsets in a record.
pub(super) mod record {
    /// u64: 0, `IN_FLIGHT`, or the number of the publication that ends the command.
    pub(in super::super) const STATE: usize = 0;
    /// u64: commands are fetched in the order of these numbers.
    pub(in super::super) const SERIAL: usize = 8;
    /// u64: how far the command has come, in words of whoever executes it.
    pub(in super::super) const PHASE: usize = 16;
    /// u32: how often the command was found by a successor.
    pub(in super::super) const RUNS: usize = 24;
    /// u16: length of the CDB; 0 for a malformed command.
    pub(in super::super) const CDB_LEN: usize = 28;
    /// u16: 1 if CDB and segments lie in the id's stretch.
    pub(in super::super) const SPILLED: usize = 30;
    /// u32: how many segments the data buffer has.
    pub(in super::super) const DATA: usize = 32;
    /// u32: how many segments the data-in buffer of a bidirectional command has.
    pub(in super::super) const BIDI_IN: usize = 36;
    /// The CDB, then the segments.
    pub(in super::super) const BODY: usize = 40;
}

/// A record's state: the command is not completed. 0, as in a fresh file: there is no command.
pub(super) const IN_FLIGHT: u64 = u64::MAX;

/// Room for a CDB in a record.
pub(super) const CDB: usize = 32;
/// Size of a segment in the file.
pub(super) const SEGMENT: usize = size_of::<abi::IoVec>();
/// How many segments a record has room for.
pub(super) const SEGMENTS: usize = (RECORD - record::BODY - CDB) / SEGMENT;
/// Room for a CDB in a stretch: the longest has 263 bytes.
pub(super) const LONG_CDB: usize = 272;
/// Length of an id's stretch: enough for a transfer of 32 MiB of which no two pages are neighbours.
pub(super) const STRETCH: usize = 33 * PAGE;
/// How many segments a stretch has room for.
pub(super) const LONG_SEGMENTS: usize = (STRETCH - LONG_CDB) / SEGMENT;

/// How many ids a ring of so many bytes can have in use: each needs an entry that has room for a
/// response. The kernel hands out the lowest free id.
pub(super) fn most_ids(ring_size: u32) -> usize {
    (ring_size as usize / size_of::<abi::CommandResponse>() + 2).min(1 << 16)
}

/// Where the record of `id` is.
#[inline]
pub(super) fn record_at(id: u16) -> usize {
    RECORDS + usize::from(id) * RECORD
}

/// Where the stretch of `id` is, if there are records for `most` ids.
pub(super) fn stretch_at(most: usize, id: u16) -> usize {
    (RECORDS + most * RECORD).next_multiple_of(PAGE) + usize::from(id) * STRETCH
}

/// Length of the whole file.
pub(super) fn file_len(most: usize) -> usize {
    (RECORDS + most * RECORD).next_multiple_of(PAGE) + most * STRETCH
}
