//! GET LBA STATUS parameter data (SBC-3, 5.6).

use zerocopy::big_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// What the parameter data begin with.
#[derive(Clone, Copy, Debug, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned)]
#[repr(C)]
pub struct LbaStatusHeader {
    /// PARAMETER DATA LENGTH: the bytes that follow this field.
    pub length: U32,
    reserved: [u8; 4],
}

impl LbaStatusHeader {
    /// The header of so many descriptors.
    pub fn new(descriptors: u32) -> Self {
        let len = size_of::<LbaStatusDescriptor>() as u32;
        Self {
            length: descriptors.saturating_mul(len).saturating_add(4).into(),
            reserved: [0; 4],
        }
    }
}

/// LBA status descriptor.
#[derive(Clone, Copy, Debug, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned)]
#[repr(C)]
pub struct LbaStatusDescriptor {
    /// LBA STATUS LOGICAL BLOCK ADDRESS: the first block.
    pub lba: U64,
    /// NUMBER OF LOGICAL BLOCKS.
    pub blocks: U32,
    /// PROVISIONING STATUS in bits 3-0.
    pub status: u8,
    reserved: [u8; 3],
}

/// PROVISIONING STATUS: mapped, or unknown.
pub const MAPPED: u8 = 0;
/// PROVISIONING STATUS: deallocated.
pub const DEALLOCATED: u8 = 1;

impl LbaStatusDescriptor {
    /// The descriptor of blocks that have the same PROVISIONING STATUS.
    pub fn new(lba: u64, blocks: u32, status: u8) -> Self {
        Self {
            lba: lba.into(),
            blocks: blocks.into(),
            status: status & 0x0f,
            reserved: [0; 3],
        }
    }
}

const _: () = {
    assert!(size_of::<LbaStatusHeader>() == 8);
    assert!(size_of::<LbaStatusDescriptor>() == 16);
};
