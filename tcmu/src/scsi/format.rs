//! FORMAT UNIT: its CDB and parameter list (SBC-3, 5.3).

use zerocopy::big_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// FORMAT UNIT.
#[derive(Clone, Copy, Debug, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned)]
#[repr(C)]
pub struct FormatUnit {
    /// OPERATION CODE.
    pub opcode: u8,
    /// FMTPINFO in bits 7-6, [`LONGLIST`], [`FMTDATA`], [`CMPLST`], DEFECT LIST FORMAT in bits 2-0.
    pub flags: u8,
    /// Vendor specific.
    pub vendor: u8,
    obsolete: U16,
    /// CONTROL.
    pub control: u8,
}

/// LONGLIST: the parameter list begins with a [`LongHeader`].
pub const LONGLIST: u8 = 0x20;
/// FMTDATA: there is a parameter list.
pub const FMTDATA: u8 = 0x10;
/// CMPLST: the defect list is complete.
pub const CMPLST: u8 = 0x08;

/// Short parameter list header.
#[derive(Clone, Copy, Debug, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned)]
#[repr(C)]
pub struct ShortHeader {
    /// PROTECTION FIELD USAGE in bits 2-0.
    pub protection: u8,
    /// [`FOV`], [`DPRY`], [`DCRT`], [`STPF`], [`IP`], [`IMMED`].
    pub options: u8,
    /// DEFECT LIST LENGTH in bytes.
    pub defect_list_length: U16,
}

/// Long parameter list header.
#[derive(Clone, Copy, Debug, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned)]
#[repr(C)]
pub struct LongHeader {
    /// PROTECTION FIELD USAGE in bits 2-0.
    pub protection: u8,
    /// As in [`ShortHeader::options`].
    pub options: u8,
    reserved: u8,
    /// P_I_INFORMATION in bits 7-4, PROTECTION INTERVAL EXPONENT in bits 3-0.
    pub interval: u8,
    /// DEFECT LIST LENGTH in bytes.
    pub defect_list_length: U32,
}

/// FOV: the four options that follow it mean something.
pub const FOV: u8 = 0x80;
/// DPRY: the primary defect list is not used.
pub const DPRY: u8 = 0x40;
/// DCRT: the medium is not certified.
pub const DCRT: u8 = 0x20;
/// STPF: a defect list that cannot be found stops the format.
pub const STPF: u8 = 0x10;
/// IP: an [`InitializationPattern`] follows the header.
pub const IP: u8 = 0x08;
/// IMMED: the command ends when the parameter list was found to be valid.
pub const IMMED: u8 = 0x02;

/// Initialization pattern descriptor; the pattern follows.
#[derive(Clone, Copy, Debug, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned)]
#[repr(C)]
pub struct InitializationPattern {
    /// [`SI`] and an obsolete field in bits 7-6.
    pub flags: u8,
    /// INITIALIZATION PATTERN TYPE.
    pub pattern_type: u8,
    /// INITIALIZATION PATTERN LENGTH in bytes.
    pub length: U16,
}

/// SI, security initialize: every block is written to.
pub const SI: u8 = 0x20;
/// INITIALIZATION PATTERN TYPE: the device server's own pattern.
pub const DEFAULT_PATTERN: u8 = 0x00;
/// INITIALIZATION PATTERN TYPE: the pattern is repeated in each block.
pub const REPEATED_PATTERN: u8 = 0x01;

const _: () = {
    assert!(size_of::<FormatUnit>() == 6);
    assert!(size_of::<ShortHeader>() == 4);
    assert!(size_of::<LongHeader>() == 8);
    assert!(size_of::<InitializationPattern>() == 4);
};
