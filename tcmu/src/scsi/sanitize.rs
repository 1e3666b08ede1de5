//! SANITIZE: its CDB and the parameter list of OVERWRITE (SBC-3, 5.24).

use zerocopy::big_endian::U16;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// SANITIZE.
#[derive(Clone, Copy, Debug, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Sanitize {
    /// OPERATION CODE.
    pub opcode: u8,
    /// [`IMMED`], ZNR, [`AUSE`], SERVICE ACTION in bits 4-0.
    pub flags: u8,
    reserved: [u8; 5],
    /// PARAMETER LIST LENGTH in bytes.
    pub parameter_list_length: U16,
    /// CONTROL.
    pub control: u8,
}

/// IMMED: the command ends when the parameter list was found to be valid.
pub const IMMED: u8 = 0x80;
/// AUSE: EXIT FAILURE MODE may end a failure.
pub const AUSE: u8 = 0x20;

/// The parameter list of OVERWRITE; the pattern follows.
#[derive(Clone, Copy, Debug, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Overwrite {
    /// [`INVERT`], TEST in bits 6-5, OVERWRITE COUNT in bits 4-0.
    pub passes: u8,
    reserved: u8,
    /// INITIALIZATION PATTERN LENGTH in bytes.
    pub pattern_length: U16,
}

/// INVERT: each pass writes the inverse of what the one before it wrote, and the last the pattern.
pub const INVERT: u8 = 0x80;
/// TEST: for vendors' use.
pub const TEST: u8 = 0x60;
/// OVERWRITE COUNT.
pub const OVERWRITE_COUNT: u8 = 0x1f;

const _: () = {
    assert!(size_of::<Sanitize>() == 10);
    assert!(size_of::<Overwrite>() == 4);
};
