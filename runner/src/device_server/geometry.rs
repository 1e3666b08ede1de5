//! The size of a logical unit.

use std::num::NonZeroU32;

/// How large a logical unit and its transfers are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    /// The size in bytes. Where the image is smaller, the unit is as large as the image; a part of a
    /// block at the end is left out.
    pub size: u64,
    /// The logical block length in bytes; not less than the backstore's.
    pub block_size: NonZeroU32,
    /// MAXIMUM TRANSFER LENGTH in blocks; 0: no limit. Commands that transfer more are refused.
    pub max_transfer_blocks: u32,
}
