//! Log pages (SPC-4, 7.3).

use zerocopy::big_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Page codes.
pub mod page {
    /// Supported Log Pages; with subpage [`ALL_SUBPAGES`], Supported Log Pages and Subpages.
    pub const SUPPORTED_PAGES: u8 = 0x00;
    /// Logical Block Provisioning.
    pub const LOGICAL_BLOCK_PROVISIONING: u8 = 0x0c;
    /// Informational Exceptions.
    pub const INFORMATIONAL_EXCEPTIONS: u8 = 0x2f;
    /// SUBPAGE CODE of lists of pages and subpages.
    pub const ALL_SUBPAGES: u8 = 0xff;
}

/// SPF in [`Header::page_code`]: the page has the subpage format.
pub const SPF: u8 = 0x40;

/// What every page begins with.
#[derive(Clone, Copy, Debug, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Header {
    /// DS, [`SPF`] and PAGE CODE.
    pub page_code: u8,
    /// SUBPAGE CODE.
    pub subpage_code: u8,
    /// PAGE LENGTH: the bytes that follow this field.
    pub length: U16,
}

/// What every log parameter begins with.
#[derive(Clone, Copy, Debug, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned)]
#[repr(C)]
pub struct ParameterHeader {
    /// PARAMETER CODE.
    pub code: U16,
    /// The parameter control byte.
    pub control: u8,
    /// PARAMETER LENGTH: the bytes that follow this field.
    pub length: u8,
}

/// FORMAT AND LINKING in [`ParameterHeader::control`]: a list in binary.
pub const BINARY_LIST: u8 = 0x03;

/// A parameter of the Logical Block Provisioning page (SBC-3, 6.4.4): a count of resources.
#[derive(Clone, Copy, Debug, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned)]
#[repr(C)]
pub struct ResourceCount {
    /// The parameter's header.
    pub header: ParameterHeader,
    /// RESOURCE COUNT in threshold sets.
    pub count: U32,
    /// SCOPE in bits 1-0.
    pub scope: u8,
    reserved: [u8; 3],
}

/// PARAMETER CODE: available LBA mapping resources.
pub const AVAILABLE_RESOURCES: u16 = 0x0001;
/// PARAMETER CODE: used LBA mapping resources.
pub const USED_RESOURCES: u16 = 0x0002;
/// SCOPE: the resources are the logical unit's alone.
pub const SCOPE_LOGICAL_UNIT: u8 = 0x01;
/// SCOPE: others may use the same resources.
pub const SCOPE_SHARED: u8 = 0x02;

impl ResourceCount {
    /// The parameter with the given fields.
    pub fn new(code: u16, count: u32, scope: u8) -> Self {
        Self {
            header: ParameterHeader {
                code: code.into(),
                control: BINARY_LIST,
                length: (size_of::<Self>() - size_of::<ParameterHeader>()) as u8,
            },
            count: count.into(),
            scope,
            reserved: [0; 3],
        }
    }
}

/// The Informational Exceptions page's only parameter that is not a vendor's.
#[derive(Clone, Copy, Debug, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned)]
#[repr(C)]
pub struct GeneralException {
    /// The parameter's header.
    pub header: ParameterHeader,
    /// INFORMATIONAL EXCEPTION ADDITIONAL SENSE CODE; 0: nothing has happened.
    pub asc: u8,
    /// INFORMATIONAL EXCEPTION ADDITIONAL SENSE CODE QUALIFIER.
    pub ascq: u8,
    /// MOST RECENT TEMPERATURE READING in degrees Celsius, or [`NO_TEMPERATURE`].
    pub temperature: u8,
}

/// There is no temperature to tell.
pub const NO_TEMPERATURE: u8 = 0xff;

impl GeneralException {
    /// The parameter of a unit that has nothing to report.
    pub fn none() -> Self {
        Self {
            header: ParameterHeader {
                code: U16::ZERO,
                control: BINARY_LIST,
                length: (size_of::<Self>() - size_of::<ParameterHeader>()) as u8,
            },
            asc: 0,
            ascq: 0,
            temperature: NO_TEMPERATURE,
        }
    }
}

const _: () = {
    assert!(size_of::<Header>() == 4);
    assert!(size_of::<ParameterHeader>() == 4);
    assert!(size_of::<ResourceCount>() == 12);
    assert!(size_of::<GeneralException>() == 7);
};
