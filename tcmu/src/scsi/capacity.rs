//! READ CAPACITY parameter data (SBC-3, 5.15 and 5.16).

use zerocopy::big_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// READ CAPACITY (10) parameter data.
#[derive(Clone, Copy, Debug, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Capacity10 {
    /// RETURNED LOGICAL BLOCK ADDRESS: the last block's, or [`u32::MAX`] if it does not fit.
    pub last_lba: U32,
    /// BLOCK LENGTH in bytes.
    pub block_len: U32,
}

/// READ CAPACITY (16) parameter data.
#[derive(Clone, Copy, Debug, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Capacity16 {
    /// RETURNED LOGICAL BLOCK ADDRESS: the last block's.
    pub last_lba: U64,
    /// BLOCK LENGTH in bytes.
    pub block_len: U32,
    /// RC BASIS, P_TYPE and PROT_EN.
    pub protection: u8,
    /// P_I_EXPONENT in bits 7-4, LOGICAL BLOCKS PER PHYSICAL BLOCK EXPONENT in bits 3-0.
    pub exponents: u8,
    /// [`LBPME`], [`LBPRZ`], and the upper 6 bits of LOWEST ALIGNED LOGICAL BLOCK ADDRESS.
    pub provisioning: u8,
    /// The lower byte of LOWEST ALIGNED LOGICAL BLOCK ADDRESS.
    pub lowest_aligned_lba: u8,
    reserved: [u8; 16],
}

/// Logical block provisioning management enabled: blocks can be unmapped.
pub const LBPME: u8 = 0x80;
/// Unmapped blocks read as zeroes.
pub const LBPRZ: u8 = 0x40;

impl Capacity16 {
    /// The data of a logical unit without protection information, aligned at block 0.
    pub fn new(last_lba: u64, block_len: u32, physical_exponent: u8, provisioning: u8) -> Self {
        Self {
            last_lba: last_lba.into(),
            block_len: block_len.into(),
            protection: 0,
            exponents: physical_exponent & 0x0f,
            provisioning: provisioning & (LBPME | LBPRZ),
            lowest_aligned_lba: 0,
            reserved: [0; 16],
        }
    }
}

const _: () = {
    assert!(size_of::<Capacity10>() == 8);
    assert!(size_of::<Capacity16>() == 32);
};
