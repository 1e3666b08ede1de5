//! Persistent bitmaps: which of them stop being true when the disk is written to.
//!
//! A bitmap that is to follow all changes, and does not, is worse than none. So before an image is
//! written to, each of those is marked as in use, which every program takes for inconsistent
//! until somebody removes it. Bitmaps that are disabled stay as they are.

use tcmu_handler::Result;

use crate::fault::invalid;
use crate::header::{Bitmaps, Fields, Header};
use crate::storage::Storage;

/// Bytes of an entry of the directory without its variable parts.
const FIXED: usize = 24;
const IN_USE: u32 = 1;
const AUTO: u32 = 1 << 1;

/// An entry of the directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Bitmap {
    /// Where its table lies, and how many entries that has.
    pub(crate) table_offset: u64,
    pub(crate) table_size: u32,
    flags: u32,
    /// Where the flags lie in the file.
    flags_at: u64,
}

impl Bitmap {
    /// What to write where so that nobody trusts the bitmap; nothing if nobody has to.
    pub(crate) fn distrust(&self) -> Option<(u64, [u8; 4])> {
        let stale = self.flags & AUTO != 0 && self.flags & IN_USE == 0;
        stale.then(|| (self.flags_at, (self.flags | IN_USE).to_be_bytes()))
    }
}

/// Reads the directory.
pub(crate) fn read(storage: &Storage, header: &Header) -> Result<Vec<Bitmap>> {
    let Some(Bitmaps {
        count,
        offset,
        size,
    }) = header.bitmaps
    else {
        return Ok(Vec::new());
    };
    let bytes = storage.read(size as usize, offset)?;
    let mut bitmaps = Vec::new();
    let mut at = 0;
    for _ in 0..count {
        let Some(entry) = bytes.get(at..at + FIXED) else {
            return Err(invalid(
                &storage.path,
                "the directory of the bitmaps ends too early",
            ));
        };
        let fields = Fields(entry);
        bitmaps.push(Bitmap {
            table_offset: fields.u64(0),
            table_size: fields.u32(8),
            flags: fields.u32(12),
            flags_at: offset + at as u64 + 12,
        });
        let name = usize::from(fields.u16(18));
        let extra = fields.u32(20) as usize;
        at = (at + FIXED + name)
            .saturating_add(extra)
            .next_multiple_of(8);
    }
    Ok(bitmaps)
}
