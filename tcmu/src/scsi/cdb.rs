//! Command descriptor blocks (SPC-4, 4.2): where the fields of each command lie.
//!
//! Every structure is a view of the first bytes of a CDB; [`zerocopy::FromBytes::ref_from_prefix`]
//! gives it, or an error where the CDB is shorter.

use zerocopy::big_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// The longest CDB that a command defined here has.
pub const LONGEST_CDB: usize = 32;

/// DPO, disable page out, in the flags byte of a read or write.
pub const DPO: u8 = 0x10;
/// FUA, force unit access, in the flags byte of a read or write.
pub const FUA: u8 = 0x08;

/// READ and WRITE (6): SBC-3, 5.10 and 5.28.
#[derive(Clone, Copy, Debug, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Block6 {
    /// OPERATION CODE.
    pub opcode: u8,
    /// LOGICAL BLOCK ADDRESS, 21 bits.
    pub lba: [u8; 3],
    /// TRANSFER LENGTH in blocks; 0 means 256.
    pub length: u8,
    /// CONTROL.
    pub control: u8,
}

impl Block6 {
    /// LOGICAL BLOCK ADDRESS.
    pub fn lba(&self) -> u64 {
        let [high, middle, low] = self.lba;
        u64::from(u32::from_be_bytes([0, high & 0x1f, middle, low]))
    }

    /// TRANSFER LENGTH in blocks, from 1 to 256.
    pub fn blocks(&self) -> u32 {
        match self.length {
            0 => 256,
            length => length.into(),
        }
    }
}

/// READ, WRITE, VERIFY, WRITE SAME and others (10): SBC-3, 5.11 and others.
#[derive(Clone, Copy, Debug, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Block10 {
    /// OPERATION CODE.
    pub opcode: u8,
    /// Flags of the command.
    pub flags: u8,
    /// LOGICAL BLOCK ADDRESS.
    pub lba: U32,
    /// GROUP NUMBER.
    pub group: u8,
    /// Number of blocks.
    pub length: U16,
    /// CONTROL.
    pub control: u8,
}

/// READ, WRITE, VERIFY, WRITE AND VERIFY (12): SBC-3, 5.12 and others.
#[derive(Clone, Copy, Debug, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Block12 {
    /// OPERATION CODE.
    pub opcode: u8,
    /// Flags of the command.
    pub flags: u8,
    /// LOGICAL BLOCK ADDRESS.
    pub lba: U32,
    /// Number of blocks.
    pub length: U32,
    /// GROUP NUMBER.
    pub group: u8,
    /// CONTROL.
    pub control: u8,
}

/// READ, WRITE, VERIFY, COMPARE AND WRITE and others (16): SBC-3, 5.13 and others. Of lengths that are
/// shorter than the field, the bytes before are reserved.
#[derive(Clone, Copy, Debug, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Block16 {
    /// OPERATION CODE.
    pub opcode: u8,
    /// Flags of the command.
    pub flags: u8,
    /// LOGICAL BLOCK ADDRESS.
    pub lba: U64,
    /// Number of blocks.
    pub length: U32,
    /// GROUP NUMBER.
    pub group: u8,
    /// CONTROL.
    pub control: u8,
}

/// READ, WRITE, VERIFY, WRITE AND VERIFY, WRITE SAME (32): SBC-3, 5.14 and others.
#[derive(Clone, Copy, Debug, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Block32 {
    /// OPERATION CODE.
    pub opcode: u8,
    /// CONTROL.
    pub control: u8,
    reserved: [u8; 4],
    /// GROUP NUMBER.
    pub group: u8,
    /// ADDITIONAL CDB LENGTH: the bytes that follow this one.
    pub additional_length: u8,
    /// SERVICE ACTION.
    pub service_action: U16,
    /// Flags of the command.
    pub flags: u8,
    reserved11: u8,
    /// LOGICAL BLOCK ADDRESS.
    pub lba: U64,
    /// EXPECTED INITIAL LOGICAL BLOCK REFERENCE TAG.
    pub reference_tag: U32,
    /// EXPECTED LOGICAL BLOCK APPLICATION TAG.
    pub application_tag: U16,
    /// LOGICAL BLOCK APPLICATION TAG MASK.
    pub application_tag_mask: U16,
    /// Number of blocks.
    pub length: U32,
}

/// GET LBA STATUS (32): SBC-4, 5.7.
#[derive(Clone, Copy, Debug, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned)]
#[repr(C)]
pub struct GetLbaStatus32 {
    /// OPERATION CODE.
    pub opcode: u8,
    /// CONTROL.
    pub control: u8,
    reserved: [u8; 5],
    /// ADDITIONAL CDB LENGTH: the bytes that follow this one.
    pub additional_length: u8,
    /// SERVICE ACTION.
    pub service_action: U16,
    /// REPORT TYPE.
    pub report_type: u8,
    reserved11: u8,
    /// STARTING LOGICAL BLOCK ADDRESS.
    pub lba: U64,
    /// SCAN LENGTH in blocks; 0: up to the end.
    pub scan_length: U32,
    /// ELEMENT IDENTIFIER.
    pub element: U32,
    /// ALLOCATION LENGTH in bytes.
    pub allocation_length: U32,
}

/// READ DEFECT DATA (10): SBC-3, 5.17.
#[derive(Clone, Copy, Debug, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned)]
#[repr(C)]
pub struct ReadDefectData10 {
    /// OPERATION CODE.
    pub opcode: u8,
    reserved: u8,
    /// REQ_PLIST in bit 4, REQ_GLIST in bit 3, DEFECT LIST FORMAT in bits 2-0.
    pub lists: u8,
    reserved3: [u8; 4],
    /// ALLOCATION LENGTH in bytes.
    pub allocation_length: U16,
    /// CONTROL.
    pub control: u8,
}

/// READ DEFECT DATA (12): SBC-3, 5.18.
#[derive(Clone, Copy, Debug, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned)]
#[repr(C)]
pub struct ReadDefectData12 {
    /// OPERATION CODE.
    pub opcode: u8,
    /// REQ_PLIST in bit 4, REQ_GLIST in bit 3, DEFECT LIST FORMAT in bits 2-0.
    pub lists: u8,
    /// ADDRESS DESCRIPTOR INDEX.
    pub index: U32,
    /// ALLOCATION LENGTH in bytes.
    pub allocation_length: U32,
    reserved: u8,
    /// CONTROL.
    pub control: u8,
}

/// INQUIRY: SPC-4, 6.6.
#[derive(Clone, Copy, Debug, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Inquiry {
    /// OPERATION CODE.
    pub opcode: u8,
    /// EVPD in bit 0.
    pub flags: u8,
    /// PAGE CODE.
    pub page_code: u8,
    /// ALLOCATION LENGTH in bytes.
    pub allocation_length: U16,
    /// CONTROL.
    pub control: u8,
}

impl Inquiry {
    /// EVPD: a vital product data page is asked for.
    pub fn evpd(&self) -> bool {
        self.flags & 0x01 != 0
    }
}

/// REQUEST SENSE: SPC-4, 6.39.
#[derive(Clone, Copy, Debug, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned)]
#[repr(C)]
pub struct RequestSense {
    /// OPERATION CODE.
    pub opcode: u8,
    /// DESC in bit 0.
    pub flags: u8,
    reserved: [u8; 2],
    /// ALLOCATION LENGTH in bytes.
    pub allocation_length: u8,
    /// CONTROL.
    pub control: u8,
}

impl RequestSense {
    /// DESC: the descriptor format is asked for.
    pub fn desc(&self) -> bool {
        self.flags & 0x01 != 0
    }
}

/// MODE SENSE (6): SPC-4, 6.13.
#[derive(Clone, Copy, Debug, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned)]
#[repr(C)]
pub struct ModeSense6 {
    /// OPERATION CODE.
    pub opcode: u8,
    /// DBD in bit 3.
    pub flags: u8,
    /// PC and PAGE CODE.
    pub page: u8,
    /// SUBPAGE CODE.
    pub subpage: u8,
    /// ALLOCATION LENGTH in bytes.
    pub allocation_length: u8,
    /// CONTROL.
    pub control: u8,
}

/// MODE SENSE (10): SPC-4, 6.14.
#[derive(Clone, Copy, Debug, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned)]
#[repr(C)]
pub struct ModeSense10 {
    /// OPERATION CODE.
    pub opcode: u8,
    /// LLBAA in bit 4, DBD in bit 3.
    pub flags: u8,
    /// PC and PAGE CODE.
    pub page: u8,
    /// SUBPAGE CODE.
    pub subpage: u8,
    reserved: [u8; 3],
    /// ALLOCATION LENGTH in bytes.
    pub allocation_length: U16,
    /// CONTROL.
    pub control: u8,
}

/// MODE SELECT (6): SPC-4, 6.11.
#[derive(Clone, Copy, Debug, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned)]
#[repr(C)]
pub struct ModeSelect6 {
    /// OPERATION CODE.
    pub opcode: u8,
    /// PF in bit 4, SP in bit 0.
    pub flags: u8,
    reserved: [u8; 2],
    /// PARAMETER LIST LENGTH in bytes.
    pub parameter_list_length: u8,
    /// CONTROL.
    pub control: u8,
}

/// MODE SELECT (10): SPC-4, 6.12; UNMAP: SBC-3, 5.25.
#[derive(Clone, Copy, Debug, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned)]
#[repr(C)]
pub struct ParameterList10 {
    /// OPERATION CODE.
    pub opcode: u8,
    /// Flags of the command.
    pub flags: u8,
    reserved: [u8; 5],
    /// PARAMETER LIST LENGTH in bytes.
    pub parameter_list_length: U16,
    /// CONTROL.
    pub control: u8,
}

/// START STOP UNIT: SBC-3, 5.20.
#[derive(Clone, Copy, Debug, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned)]
#[repr(C)]
pub struct StartStopUnit {
    /// OPERATION CODE.
    pub opcode: u8,
    /// IMMED in bit 0.
    pub flags: u8,
    reserved: u8,
    /// POWER CONDITION MODIFIER.
    pub power_condition_modifier: u8,
    /// POWER CONDITION in bits 7-4, NO_FLUSH, LOEJ, START.
    pub action: u8,
    /// CONTROL.
    pub control: u8,
}

/// SERVICE ACTION IN (16) with a logical block address: READ CAPACITY (16), SBC-3, 5.16.
#[derive(Clone, Copy, Debug, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned)]
#[repr(C)]
pub struct ServiceActionIn16 {
    /// OPERATION CODE.
    pub opcode: u8,
    /// SERVICE ACTION, 5 bits.
    pub service_action: u8,
    /// LOGICAL BLOCK ADDRESS.
    pub lba: U64,
    /// ALLOCATION LENGTH in bytes.
    pub allocation_length: U32,
    /// Flags of the service action.
    pub flags: u8,
    /// CONTROL.
    pub control: u8,
}

/// MAINTENANCE IN and OUT with nothing but a length: REPORT and SET TARGET PORT GROUPS, REPORT
/// SUPPORTED TASK MANAGEMENT FUNCTIONS (SPC-4, 6.36, 6.37 and 6.45).
#[derive(Clone, Copy, Debug, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Maintenance {
    /// OPERATION CODE.
    pub opcode: u8,
    /// SERVICE ACTION, 5 bits, and PARAMETER DATA FORMAT.
    pub service_action: u8,
    /// Flags of the service action.
    pub flags: u8,
    reserved: [u8; 3],
    /// ALLOCATION LENGTH or PARAMETER LIST LENGTH in bytes.
    pub length: U32,
    reserved10: u8,
    /// CONTROL.
    pub control: u8,
}

/// LOG SENSE: SPC-4, 6.8.
#[derive(Clone, Copy, Debug, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned)]
#[repr(C)]
pub struct LogSense {
    /// OPERATION CODE.
    pub opcode: u8,
    /// SP in bit 0.
    pub flags: u8,
    /// PC and PAGE CODE.
    pub page: u8,
    /// SUBPAGE CODE.
    pub subpage: u8,
    reserved: u8,
    /// PARAMETER POINTER: the first parameter code that is wanted.
    pub parameter_pointer: U16,
    /// ALLOCATION LENGTH in bytes.
    pub allocation_length: U16,
    /// CONTROL.
    pub control: u8,
}

/// SEND DIAGNOSTIC and RECEIVE DIAGNOSTIC RESULTS: SPC-4, 6.42 and 6.27.
#[derive(Clone, Copy, Debug, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Diagnostic {
    /// OPERATION CODE.
    pub opcode: u8,
    /// Flags of the command.
    pub flags: u8,
    /// PAGE CODE, where something is received.
    pub page_code: u8,
    /// PARAMETER LIST LENGTH or ALLOCATION LENGTH in bytes.
    pub length: U16,
    /// CONTROL.
    pub control: u8,
}

/// REPORT SUPPORTED OPERATION CODES: SPC-4, 6.35.
#[derive(Clone, Copy, Debug, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned)]
#[repr(C)]
pub struct ReportSupportedOpcodes {
    /// OPERATION CODE.
    pub opcode: u8,
    /// SERVICE ACTION, 5 bits.
    pub service_action: u8,
    /// RCTD in bit 7, REPORTING OPTIONS in bits 2-0.
    pub options: u8,
    /// REQUESTED OPERATION CODE.
    pub requested_opcode: u8,
    /// REQUESTED SERVICE ACTION.
    pub requested_service_action: U16,
    /// ALLOCATION LENGTH in bytes.
    pub allocation_length: U32,
    reserved: u8,
    /// CONTROL.
    pub control: u8,
}

const _: () = {
    assert!(size_of::<Block6>() == 6);
    assert!(size_of::<Block10>() == 10);
    assert!(size_of::<Block12>() == 12);
    assert!(size_of::<Block16>() == 16);
    assert!(size_of::<Block32>() == LONGEST_CDB);
    assert!(size_of::<GetLbaStatus32>() == LONGEST_CDB);
    assert!(size_of::<ReadDefectData10>() == 10);
    assert!(size_of::<ReadDefectData12>() == 12);
    assert!(size_of::<Inquiry>() == 6);
    assert!(size_of::<RequestSense>() == 6);
    assert!(size_of::<ModeSense6>() == 6);
    assert!(size_of::<ModeSense10>() == 10);
    assert!(size_of::<ModeSelect6>() == 6);
    assert!(size_of::<ParameterList10>() == 10);
    assert!(size_of::<StartStopUnit>() == 6);
    assert!(size_of::<ServiceActionIn16>() == 16);
    assert!(size_of::<Maintenance>() == 12);
    assert!(size_of::<LogSense>() == 10);
    assert!(size_of::<Diagnostic>() == 6);
    assert!(size_of::<ReportSupportedOpcodes>() == 12);
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn six_byte_fields() {
        let read = Block6::ref_from_bytes(&[0x08, 0xff, 0x23, 0x45, 0, 0]).unwrap();
        assert_eq!((read.lba(), read.blocks()), (0x1f_2345, 256));
        let read = Block6::ref_from_bytes(&[0x08, 0, 0, 1, 255, 0]).unwrap();
        assert_eq!((read.lba(), read.blocks()), (1, 255));
    }

    #[test]
    fn ten_byte_fields() {
        let read =
            Block10::ref_from_bytes(&[0x28, 0x18, 1, 2, 3, 4, 0x1f, 0x0a, 0x0b, 0xc0]).unwrap();
        assert_eq!(read.flags, DPO | FUA);
        assert_eq!((read.lba.get(), read.length.get()), (0x0102_0304, 0x0a0b));
        assert_eq!((read.group, read.control), (0x1f, 0xc0));
    }

    #[test]
    fn thirty_two_byte_fields() {
        let mut cdb = [0; 32];
        cdb[0] = 0x7f;
        cdb[7] = 24;
        cdb[9] = 9;
        cdb[10] = FUA;
        cdb[19] = 7;
        cdb[31] = 8;
        let read = Block32::ref_from_bytes(&cdb).unwrap();
        assert_eq!(read.additional_length, 24);
        assert_eq!(read.service_action.get(), 9);
        assert_eq!(read.flags, FUA);
        assert_eq!((read.lba.get(), read.length.get()), (7, 8));
    }

    #[test]
    fn a_short_cdb_is_an_error() {
        assert!(Block16::ref_from_prefix(&[0x88; 15]).is_err());
    }
}
