//! EXTENDED COPY and its relatives: CDBs, parameter lists, results and the Third-party Copy VPD page
//! (SPC-4, 6.4, 6.23 to 6.26 and 7.8.17).

use zerocopy::big_endian::{U16, U32, U64};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout, Unaligned};

/// EXTENDED COPY (LID1).
#[derive(Clone, Copy, Debug, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned)]
#[repr(C)]
pub struct ExtendedCopy {
    /// OPERATION CODE.
    pub opcode: u8,
    /// SERVICE ACTION, 5 bits.
    pub service_action: u8,
    reserved: [u8; 8],
    /// PARAMETER LIST LENGTH in bytes.
    pub parameter_list_length: U32,
    reserved14: u8,
    /// CONTROL.
    pub control: u8,
}

/// RECEIVE COPY STATUS (LID1), OPERATING PARAMETERS and FAILURE DETAILS (LID1).
#[derive(Clone, Copy, Debug, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned)]
#[repr(C)]
pub struct ReceiveCopyResults {
    /// OPERATION CODE.
    pub opcode: u8,
    /// SERVICE ACTION, 5 bits.
    pub service_action: u8,
    /// LIST IDENTIFIER.
    pub list_identifier: u8,
    reserved: [u8; 7],
    /// ALLOCATION LENGTH in bytes.
    pub allocation_length: U32,
    reserved14: u8,
    /// CONTROL.
    pub control: u8,
}

/// What the parameter list of EXTENDED COPY (LID1) begins with.
#[derive(Clone, Copy, Debug, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned)]
#[repr(C)]
pub struct ListHeader {
    /// LIST IDENTIFIER.
    pub list_identifier: u8,
    /// STR in bit 5, LIST ID USAGE in bits 4-3, PRIORITY in bits 2-0.
    pub flags: u8,
    /// CSCD DESCRIPTOR LIST LENGTH in bytes.
    pub cscd_list_length: U16,
    reserved: [u8; 4],
    /// SEGMENT DESCRIPTOR LIST LENGTH in bytes.
    pub segment_list_length: U32,
    /// INLINE DATA LENGTH in bytes.
    pub inline_data_length: U32,
}

/// LIST ID USAGE, in the bits of [`ListHeader::flags`].
pub const LIST_ID_USAGE: u8 = 0x18;
/// LIST ID USAGE: a value that means nothing.
pub const LIST_ID_RESERVED: u8 = 0x08;
/// LIST ID USAGE: there is no list identifier.
pub const NO_LIST_ID: u8 = 0x18;

/// Identification descriptor CSCD descriptor, with the parameters of a block device.
#[derive(Clone, Copy, Debug, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned)]
#[repr(C)]
pub struct IdentificationCscd {
    /// [`IDENTIFICATION_CSCD`].
    pub descriptor_type: u8,
    /// LU ID TYPE in bits 7-6 and NUL in bit 5, both obsolete; PERIPHERAL DEVICE TYPE in bits 4-0.
    pub device_type: u8,
    /// RELATIVE INITIATOR PORT IDENTIFIER.
    pub initiator_port: U16,
    /// CODE SET in bits 3-0.
    pub code_set: u8,
    /// ASSOCIATION in bits 5-4, DESIGNATOR TYPE in bits 3-0.
    pub designator_type: u8,
    reserved: u8,
    /// DESIGNATOR LENGTH in bytes.
    pub designator_length: u8,
    /// DESIGNATOR.
    pub designator: [u8; 20],
    /// PAD in bit 2.
    pub pad: u8,
    /// DISK BLOCK LENGTH in bytes.
    pub block_length: [u8; 3],
}

impl IdentificationCscd {
    /// DISK BLOCK LENGTH in bytes.
    pub fn block_length(&self) -> u32 {
        let [high, middle, low] = self.block_length;
        u32::from_be_bytes([0, high, middle, low])
    }
}

/// What every segment descriptor begins with.
#[derive(Clone, Copy, Debug, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned)]
#[repr(C)]
pub struct SegmentHeader {
    /// DESCRIPTOR TYPE CODE.
    pub descriptor_type: u8,
    /// DC in bit 1, CAT in bit 0.
    pub flags: u8,
    /// DESCRIPTOR LENGTH: the bytes that follow this field.
    pub descriptor_length: U16,
}

/// Block device to block device segment descriptor.
#[derive(Clone, Copy, Debug, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned)]
#[repr(C)]
pub struct BlockToBlock {
    /// What every descriptor begins with.
    pub header: SegmentHeader,
    /// SOURCE CSCD DESCRIPTOR ID.
    pub source: U16,
    /// DESTINATION CSCD DESCRIPTOR ID.
    pub destination: U16,
    reserved: U16,
    /// BLOCK DEVICE NUMBER OF BLOCKS: the source's, or with [`DC`] the destination's.
    pub blocks: U16,
    /// SOURCE BLOCK DEVICE LOGICAL BLOCK ADDRESS.
    pub source_lba: U64,
    /// DESTINATION BLOCK DEVICE LOGICAL BLOCK ADDRESS.
    pub destination_lba: U64,
}

/// DESCRIPTOR TYPE CODE: [`BlockToBlock`].
pub const BLOCK_TO_BLOCK: u8 = 0x02;
/// DESCRIPTOR TYPE CODE: [`IdentificationCscd`].
pub const IDENTIFICATION_CSCD: u8 = 0xe4;
/// DC: blocks are counted as the destination's.
pub const DC: u8 = 0x02;
/// CSCD DESCRIPTOR ID: the logical unit that the command was sent to.
pub const COPY_MANAGERS_OWN_UNIT: u16 = 0xffff;

/// The answer to RECEIVE COPY STATUS (LID1).
#[derive(Clone, Copy, Debug, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned)]
#[repr(C)]
pub struct CopyStatus {
    /// AVAILABLE DATA: the bytes that follow this field.
    pub available: U32,
    /// HDD in bit 7, COPY OPERATION STATUS in bits 6-0.
    pub status: u8,
    /// SEGMENTS PROCESSED.
    pub segments: U16,
    /// TRANSFER COUNT UNITS: 0 bytes, 1 KiB, 2 MiB, 3 GiB and so on.
    pub units: u8,
    /// TRANSFER COUNT.
    pub transferred: U32,
}

/// HDD: no data are held.
pub const HDD: u8 = 0x80;
/// COPY OPERATION STATUS: in progress.
pub const COPY_IN_PROGRESS: u8 = 0x00;
/// COPY OPERATION STATUS: completed without errors.
pub const COPY_COMPLETED: u8 = 0x01;
/// COPY OPERATION STATUS: completed with errors.
pub const COPY_FAILED: u8 = 0x02;

/// The answer to RECEIVE COPY OPERATING PARAMETERS; the list of descriptor types follows.
#[derive(Clone, Copy, Debug, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned)]
#[repr(C)]
pub struct OperatingParameters {
    /// AVAILABLE DATA: the bytes that follow this field.
    pub available: U32,
    /// SNLID in bit 0: lists without an identifier are taken.
    pub snlid: u8,
    reserved5: [u8; 3],
    /// MAXIMUM CSCD DESCRIPTOR COUNT.
    pub max_cscds: U16,
    /// MAXIMUM SEGMENT DESCRIPTOR COUNT.
    pub max_segments: U16,
    /// MAXIMUM DESCRIPTOR LIST LENGTH in bytes.
    pub max_descriptors_length: U32,
    /// MAXIMUM SEGMENT LENGTH in bytes.
    pub max_segment_length: U32,
    /// MAXIMUM INLINE DATA LENGTH in bytes.
    pub max_inline_length: U32,
    /// HELD DATA LIMIT in bytes.
    pub held_data_limit: U32,
    /// MAXIMUM STREAM DEVICE TRANSFER SIZE in bytes.
    pub max_stream_transfer: U32,
    reserved32: U16,
    /// TOTAL CONCURRENT COPIES.
    pub total_copies: U16,
    /// MAXIMUM CONCURRENT COPIES.
    pub max_copies: u8,
    /// DATA SEGMENT GRANULARITY, a power of two in bytes.
    pub segment_granularity: u8,
    /// INLINE DATA GRANULARITY, a power of two in bytes.
    pub inline_granularity: u8,
    /// HELD DATA GRANULARITY, a power of two in bytes.
    pub held_granularity: u8,
    reserved40: [u8; 3],
    /// IMPLEMENTED DESCRIPTOR LIST LENGTH.
    pub descriptor_types: u8,
}

impl OperatingParameters {
    /// All fields 0.
    pub fn new() -> Self {
        Self::new_zeroed()
    }
}

impl Default for OperatingParameters {
    fn default() -> Self {
        Self::new()
    }
}

/// What the answer to RECEIVE COPY FAILURE DETAILS (LID1) begins with; the sense data follow.
#[derive(Clone, Copy, Debug, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned)]
#[repr(C)]
pub struct FailureDetails {
    /// AVAILABLE DATA: the bytes that follow this field.
    pub available: U32,
    reserved: [u8; 52],
    /// EXTENDED COPY COMMAND STATUS.
    pub status: u8,
    reserved57: u8,
    /// SENSE DATA LENGTH in bytes.
    pub sense_length: U16,
}

impl FailureDetails {
    /// The header of `sense_length` bytes of sense data.
    pub fn new(status: u8, sense_length: u16) -> Self {
        let rest = (size_of::<Self>() - size_of::<U32>()) as u32;
        Self {
            available: (rest + u32::from(sense_length)).into(),
            reserved: [0; 52],
            status,
            reserved57: 0,
            sense_length: sense_length.into(),
        }
    }
}

/// What every descriptor of the Third-party Copy VPD page begins with.
#[derive(Clone, Copy, Debug, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned)]
#[repr(C)]
pub struct ThirdPartyDescriptor {
    /// THIRD-PARTY COPY DESCRIPTOR TYPE.
    pub descriptor_type: U16,
    /// THIRD-PARTY COPY DESCRIPTOR LENGTH: the bytes that follow this field, a multiple of 4.
    pub length: U16,
}

/// Types of descriptors in the Third-party Copy VPD page.
pub mod third_party {
    /// Supported Commands.
    pub const SUPPORTED_COMMANDS: u16 = 0x0001;
    /// Parameter Data.
    pub const PARAMETER_DATA: u16 = 0x0004;
    /// Supported Descriptors.
    pub const SUPPORTED_DESCRIPTORS: u16 = 0x0008;
    /// Supported CSCD Descriptor IDs.
    pub const SUPPORTED_CSCD_IDS: u16 = 0x000c;
    /// General Copy Operations.
    pub const GENERAL_COPY_OPERATIONS: u16 = 0x8001;
}

/// The body of the Parameter Data third-party copy descriptor.
#[derive(Clone, Copy, Debug, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned)]
#[repr(C)]
pub struct ParameterData {
    reserved0: U32,
    /// MAXIMUM CSCD DESCRIPTOR COUNT.
    pub max_cscds: U16,
    /// MAXIMUM SEGMENT DESCRIPTOR COUNT.
    pub max_segments: U16,
    /// MAXIMUM DESCRIPTOR LIST LENGTH in bytes.
    pub max_descriptors_length: U32,
    /// MAXIMUM INLINE DATA LENGTH in bytes.
    pub max_inline_length: U32,
    reserved16: [u8; 12],
}

impl ParameterData {
    /// The limits; there are no inline data.
    pub fn new(max_cscds: u16, max_segments: u16, max_descriptors_length: u32) -> Self {
        Self {
            max_cscds: max_cscds.into(),
            max_segments: max_segments.into(),
            max_descriptors_length: max_descriptors_length.into(),
            ..Self::new_zeroed()
        }
    }
}

/// The body of the General Copy Operations third-party copy descriptor.
#[derive(Clone, Copy, Debug, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned)]
#[repr(C)]
pub struct GeneralCopyOperations {
    /// TOTAL CONCURRENT COPIES.
    pub total_copies: U32,
    /// MAXIMUM IDENTIFIED CONCURRENT COPIES.
    pub max_copies: U32,
    /// MAXIMUM SEGMENT LENGTH in bytes.
    pub max_segment_length: U32,
    /// DATA SEGMENT GRANULARITY, a power of two in bytes.
    pub segment_granularity: u8,
    /// INLINE DATA GRANULARITY, a power of two in bytes.
    pub inline_granularity: u8,
    reserved: [u8; 18],
}

impl GeneralCopyOperations {
    /// The limits; there are no inline data.
    pub fn new(copies: u32, max_segment_length: u32, segment_granularity: u8) -> Self {
        Self {
            total_copies: copies.into(),
            max_copies: copies.into(),
            max_segment_length: max_segment_length.into(),
            segment_granularity,
            inline_granularity: 0,
            reserved: [0; 18],
        }
    }
}

const _: () = {
    assert!(size_of::<ExtendedCopy>() == 16);
    assert!(size_of::<ReceiveCopyResults>() == 16);
    assert!(size_of::<ListHeader>() == 16);
    assert!(size_of::<IdentificationCscd>() == 32);
    assert!(size_of::<BlockToBlock>() == 28);
    assert!(size_of::<CopyStatus>() == 12);
    assert!(size_of::<OperatingParameters>() == 44);
    assert!(size_of::<FailureDetails>() == 60);
    assert!(size_of::<ParameterData>() == 28);
    assert!(size_of::<GeneralCopyOperations>() == 32);
};
