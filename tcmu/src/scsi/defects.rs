//! READ DEFECT DATA parameter data (SBC-3, 5.17 and 5.18).

use zerocopy::big_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// REQ_PLIST, REQ_GLIST and DEFECT LIST FORMAT in a CDB; PLISTV, GLISTV and DEFECT LIST FORMAT in
/// the same bits of the parameter data.
pub const LISTS: u8 = 0x1f;

/// What the parameter data of READ DEFECT DATA (10) begin with.
#[derive(Clone, Copy, Debug, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned)]
#[repr(C)]
pub struct DefectHeader10 {
    reserved: u8,
    /// PLISTV in bit 4, GLISTV in bit 3, DEFECT LIST FORMAT in bits 2-0.
    pub lists: u8,
    /// DEFECT LIST LENGTH: the bytes that follow this field.
    pub length: U16,
}

impl DefectHeader10 {
    /// The header of lists without defects; `lists` as in the CDB.
    pub fn empty(lists: u8) -> Self {
        Self {
            reserved: 0,
            lists: lists & LISTS,
            length: 0.into(),
        }
    }
}

/// What the parameter data of READ DEFECT DATA (12) begin with.
#[derive(Clone, Copy, Debug, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned)]
#[repr(C)]
pub struct DefectHeader12 {
    reserved: u8,
    /// PLISTV in bit 4, GLISTV in bit 3, DEFECT LIST FORMAT in bits 2-0.
    pub lists: u8,
    /// GENERATION CODE; 0: not supported.
    pub generation: U16,
    /// DEFECT LIST LENGTH: the bytes that follow this field.
    pub length: U32,
}

impl DefectHeader12 {
    /// The header of lists without defects; `lists` as in the CDB.
    pub fn empty(lists: u8) -> Self {
        Self {
            reserved: 0,
            lists: lists & LISTS,
            generation: 0.into(),
            length: 0.into(),
        }
    }
}

const _: () = {
    assert!(size_of::<DefectHeader10>() == 4);
    assert!(size_of::<DefectHeader12>() == 8);
};
