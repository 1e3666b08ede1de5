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
    /// MAXIMUM TRANSFER LENGTH in blocks, LIO's `attrib/hw_max_sectors`; 0: no limit. Longer
    /// transfers are served all the same, since some initiators do not ask (ESXi before 6.0), and
    /// the kernel's default is as short as 64 KiB.
    pub max_transfer_blocks: u32,
}
