//! REPORT and SET TARGET PORT GROUPS parameter data (SPC-4, 6.37 and 6.45).

use zerocopy::big_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// ASYMMETRIC ACCESS STATE (SPC-4, 6.37.2).
pub mod access_state {
    /// Active/optimized.
    pub const ACTIVE_OPTIMIZED: u8 = 0x0;
    /// Active/non-optimized.
    pub const ACTIVE_NON_OPTIMIZED: u8 = 0x1;
    /// Standby.
    pub const STANDBY: u8 = 0x2;
    /// Unavailable.
    pub const UNAVAILABLE: u8 = 0x3;
    /// Logical block dependent.
    pub const LBA_DEPENDENT: u8 = 0x4;
    /// Offline: a state of single ports.
    pub const OFFLINE: u8 = 0xe;
    /// Transitioning between states.
    pub const TRANSITIONING: u8 = 0xf;
}

/// PARAMETER DATA FORMAT in byte 1 of the CDB: the header has [`ExtendedHeader`]'s bytes too.
pub const EXTENDED_HEADER_FORMAT: u8 = 0x20;

/// What the parameter data of REPORT TARGET PORT GROUPS begin with.
#[derive(Clone, Copy, Debug, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned)]
#[repr(C)]
pub struct ExtendedHeader {
    /// RETURN DATA LENGTH: the bytes that follow this field.
    pub length: U32,
    /// FORMAT TYPE in bits 6-4.
    pub format: u8,
    /// IMPLICIT TRANSITION TIME in seconds; 0: not said.
    pub transition_time: u8,
    reserved: [u8; 2],
}

impl ExtendedHeader {
    /// The header with the given fields.
    pub fn new(length: u32, transition_time: u8) -> Self {
        const EXTENDED: u8 = 0x10;
        Self {
            length: length.into(),
            format: EXTENDED,
            transition_time,
            reserved: [0; 2],
        }
    }
}

/// Target port group descriptor; its ports' descriptors follow.
#[derive(Clone, Copy, Debug, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned)]
#[repr(C)]
pub struct GroupDescriptor {
    /// [`PREF`] and ASYMMETRIC ACCESS STATE in bits 3-0.
    pub state: u8,
    /// The states that there are, one bit each.
    pub supported_states: u8,
    /// TARGET PORT GROUP.
    pub group: U16,
    reserved: u8,
    /// STATUS CODE: who changed the state last.
    pub status: u8,
    vendor_specific: u8,
    /// TARGET PORT COUNT.
    pub port_count: u8,
}

/// PREF in [`GroupDescriptor::state`].
pub const PREF: u8 = 0x80;

impl GroupDescriptor {
    /// The descriptor with the given fields.
    pub fn new(state: u8, supported_states: u8, group: u16, status: u8, port_count: u8) -> Self {
        Self {
            state,
            supported_states,
            group: group.into(),
            reserved: 0,
            status,
            vendor_specific: 0,
            port_count,
        }
    }
}

/// Target port descriptor.
#[derive(Clone, Copy, Debug, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned)]
#[repr(C)]
pub struct PortDescriptor {
    obsolete: U16,
    /// RELATIVE TARGET PORT IDENTIFIER.
    pub relative_id: U16,
}

impl PortDescriptor {
    /// The descriptor of a port.
    pub fn new(relative_id: u16) -> Self {
        Self {
            obsolete: U16::ZERO,
            relative_id: relative_id.into(),
        }
    }
}

/// Set target port group descriptor; 4 reserved bytes go before the first.
#[derive(Clone, Copy, Debug, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned)]
#[repr(C)]
pub struct SetDescriptor {
    /// ASYMMETRIC ACCESS STATE in bits 3-0.
    pub state: u8,
    reserved: u8,
    /// TARGET PORT GROUP OR TARGET PORT.
    pub group: U16,
}

/// The reserved bytes that a SET TARGET PORT GROUPS parameter list begins with.
pub const SET_HEADER_LEN: usize = 4;

const _: () = {
    assert!(size_of::<ExtendedHeader>() == 8);
    assert!(size_of::<GroupDescriptor>() == 8);
    assert!(size_of::<PortDescriptor>() == 4);
    assert!(size_of::<SetDescriptor>() == 4);
};
