//! REPORT SUPPORTED OPERATION CODES parameter data (SPC-4, 6.35).

use zerocopy::big_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// RCTD in [`options`](crate::scsi::cdb::ReportSupportedOpcodes::options): timeouts are asked for.
pub const RCTD: u8 = 0x80;
/// The REPORTING OPTIONS bits in the same byte.
pub const REPORTING_OPTIONS: u8 = 0x07;

/// Command descriptor of the all-commands format, without its timeouts.
#[derive(Clone, Copy, Debug, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned)]
#[repr(C)]
pub struct CommandDescriptor {
    /// OPERATION CODE.
    pub opcode: u8,
    reserved: u8,
    /// SERVICE ACTION, or 0 if the command has none.
    pub service_action: U16,
    reserved4: u8,
    /// [`CTDP`] and [`SERVACTV`].
    pub flags: u8,
    /// CDB LENGTH in bytes.
    pub cdb_length: U16,
}

/// CTDP in [`CommandDescriptor::flags`]: a timeouts descriptor follows.
pub const CTDP: u8 = 0x02;
/// SERVACTV in [`CommandDescriptor::flags`]: the service action means something.
pub const SERVACTV: u8 = 0x01;

impl CommandDescriptor {
    /// The descriptor of a command with a CDB of `cdb_length` bytes.
    pub fn new(opcode: u8, service_action: Option<u16>, timeouts: bool, cdb_length: u16) -> Self {
        let mut flags = 0;
        if timeouts {
            flags |= CTDP;
        }
        if service_action.is_some() {
            flags |= SERVACTV;
        }
        Self {
            opcode,
            reserved: 0,
            service_action: service_action.unwrap_or(0).into(),
            reserved4: 0,
            flags,
            cdb_length: cdb_length.into(),
        }
    }
}

/// What the one-command format begins with; the CDB usage data follow.
#[derive(Clone, Copy, Debug, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned)]
#[repr(C)]
pub struct OneCommandHeader {
    reserved: u8,
    /// [`ONE_COMMAND_CTDP`] and SUPPORT.
    pub support: u8,
    /// CDB SIZE in bytes.
    pub cdb_size: U16,
}

/// CTDP in [`OneCommandHeader::support`].
pub const ONE_COMMAND_CTDP: u8 = 0x80;
/// SUPPORT: the command is not supported.
pub const NOT_SUPPORTED: u8 = 0x01;
/// SUPPORT: the command is supported as a standard defines it.
pub const SUPPORTED: u8 = 0x03;

impl OneCommandHeader {
    /// The header with the given fields.
    pub fn new(support: u8, cdb_size: u16) -> Self {
        Self {
            reserved: 0,
            support,
            cdb_size: cdb_size.into(),
        }
    }
}

/// Command timeouts descriptor.
#[derive(Clone, Copy, Debug, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Timeouts {
    /// DESCRIPTOR LENGTH: the bytes that follow this field.
    pub length: U16,
    reserved: u8,
    /// COMMAND SPECIFIC.
    pub command_specific: u8,
    /// NOMINAL COMMAND PROCESSING TIMEOUT in seconds; 0: not said.
    pub nominal: U32,
    /// RECOMMENDED COMMAND TIMEOUT in seconds; 0: not said.
    pub recommended: U32,
}

impl Timeouts {
    /// The descriptor with the given times in seconds.
    pub fn new(nominal: u32, recommended: u32) -> Self {
        Self {
            length: (size_of::<Self>() as u16 - 2).into(),
            reserved: 0,
            command_specific: 0,
            nominal: nominal.into(),
            recommended: recommended.into(),
        }
    }
}

const _: () = {
    assert!(size_of::<CommandDescriptor>() == 8);
    assert!(size_of::<OneCommandHeader>() == 4);
    assert!(size_of::<Timeouts>() == 12);
};
