//! SEND DIAGNOSTIC and diagnostic pages (SPC-4, 6.42 and 7.2).

use zerocopy::big_endian::U16;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// PF in the flags of SEND DIAGNOSTIC: the parameter list is a diagnostic page.
pub const PF: u8 = 0x10;
/// SELFTEST in the flags of SEND DIAGNOSTIC: the default self-test.
pub const SELFTEST: u8 = 0x04;
/// SELF-TEST CODE, in bits 7-5 of the flags: a short self-test that the command waits for.
pub const FOREGROUND_SHORT: u8 = 0b101;
/// SELF-TEST CODE: an extended self-test that the command waits for.
pub const FOREGROUND_EXTENDED: u8 = 0b110;
/// PCV in the flags of RECEIVE DIAGNOSTIC RESULTS: the PAGE CODE means something.
pub const PCV: u8 = 0x01;
/// PAGE CODE: Supported Diagnostic Pages.
pub const SUPPORTED_PAGES: u8 = 0x00;

/// What every diagnostic page begins with.
#[derive(Clone, Copy, Debug, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Header {
    /// PAGE CODE.
    pub page_code: u8,
    /// The page's own.
    pub specific: u8,
    /// PAGE LENGTH: the bytes that follow this field.
    pub length: U16,
}

const _: () = assert!(size_of::<Header>() == 4);
