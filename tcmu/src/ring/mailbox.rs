//! The mailbox: the ring's geometry, and the two positions that the sides tell each other.
//!
//! Acquire and release happen here and nowhere else: what the kernel wrote before it moved
//! `cmd_head` is seen after [`Mailbox::head`], and what was written before [`Mailbox::publish`] is
//! seen by the kernel that sees the new `cmd_tail`.

use std::mem::{offset_of, size_of};
use std::ops::Range;
use std::sync::Arc;

use super::RingError;
use crate::abi;
use crate::mapping::Mapping;

#[derive(Debug)]
pub(super) struct Mailbox {
    mapping: Arc<Mapping>,
    start: u32,
    size: u32,
    flags: u16,
}

/// Cannot fail: `Mailbox::new` has checked that the mailbox and the ring are in the mapping.
const CHECKED: &str = "the mailbox lies in the mapping";

impl Mailbox {
    pub(super) fn new(mapping: Arc<Mapping>) -> Result<Self, RingError> {
        let len = mapping.len();
        mapping
            .check(0, size_of::<abi::Mailbox>())
            .map_err(|_| RingError::NoMailbox { len })?;
        let version = mapping
            .load_u16(offset_of!(abi::Mailbox, version))
            .expect(CHECKED);
        let flags = mapping
            .load_u16(offset_of!(abi::Mailbox, flags))
            .expect(CHECKED);
        let start = mapping
            .load_u32(offset_of!(abi::Mailbox, cmdr_off))
            .expect(CHECKED);
        let size = mapping
            .load_u32(offset_of!(abi::Mailbox, cmdr_size))
            .expect(CHECKED);
        if version != abi::MAILBOX_VERSION {
            return Err(RingError::Version { version });
        }
        if (start as usize) < size_of::<abi::Mailbox>()
            || size == 0
            || !start.is_multiple_of(abi::OP_ALIGN)
            || !size.is_multiple_of(abi::OP_ALIGN)
            || mapping.check(start as usize, size as usize).is_err()
        {
            return Err(RingError::Layout { start, size });
        }
        Ok(Self {
            mapping,
            start,
            size,
            flags,
        })
    }

    pub(super) fn mapping(&self) -> &Arc<Mapping> {
        &self.mapping
    }

    pub(super) fn offers(&self, flag: u16) -> bool {
        self.flags & flag != 0
    }

    /// Size of the command ring in bytes.
    pub(super) fn size(&self) -> u32 {
        self.size
    }

    /// The command ring as a range of the mapping.
    pub(super) fn ring(&self) -> Range<usize> {
        let start = self.start as usize;
        start..start + self.size as usize
    }

    /// Where the ring's `offset` is in the mapping.
    pub(super) fn at(&self, offset: u32) -> usize {
        self.start as usize + offset as usize
    }

    /// Bytes from `from` forward to `to`, both positions in the ring.
    pub(super) fn distance(&self, from: u32, to: u32) -> u32 {
        if to >= from {
            to - from
        } else {
            self.size - from + to
        }
    }

    /// The position `len` bytes after `offset`.
    pub(super) fn advance(&self, offset: u32, len: u32) -> u32 {
        let to_end = self.size - offset;
        if len >= to_end {
            len - to_end
        } else {
            offset + len
        }
    }

    /// `cmd_head` as it is, whether valid or not.
    pub(super) fn head(&self) -> u32 {
        self.mapping
            .load_acquire_u32(offset_of!(abi::Mailbox, cmd_head))
            .expect(CHECKED)
    }

    /// `cmd_tail` as it is, whether valid or not. Only this side writes it, save for a reset.
    pub(super) fn tail(&self) -> u32 {
        self.mapping
            .load_u32(offset_of!(abi::Mailbox, cmd_tail))
            .expect(CHECKED)
    }

    pub(super) fn publish(&self, tail: u32) {
        self.mapping
            .store_release_u32(offset_of!(abi::Mailbox, cmd_tail), tail)
            .expect(CHECKED);
    }

    /// Whether an entry can start at `offset`.
    pub(super) fn is_position(&self, offset: u32) -> bool {
        offset < self.size && offset.is_multiple_of(abi::OP_ALIGN)
    }
}
