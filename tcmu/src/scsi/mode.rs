//! Mode parameters (SPC-4, 7.5; SBC-3, 6.5).

use zerocopy::big_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Page codes.
pub mod page {
    /// Read-Write Error Recovery.
    pub const READ_WRITE_ERROR_RECOVERY: u8 = 0x01;
    /// Caching.
    pub const CACHING: u8 = 0x08;
    /// Control.
    pub const CONTROL: u8 = 0x0a;
    /// SUBPAGE CODE of the Control Extension page, whose page code is [`CONTROL`]'s.
    pub const CONTROL_EXTENSION: u8 = 0x01;
    /// Informational Exceptions Control.
    pub const INFORMATIONAL_EXCEPTIONS_CONTROL: u8 = 0x1c;
    /// SUBPAGE CODE of the Logical Block Provisioning page, whose page code is
    /// [`INFORMATIONAL_EXCEPTIONS_CONTROL`]'s.
    pub const LOGICAL_BLOCK_PROVISIONING: u8 = 0x02;
    /// MODE SENSE: all pages.
    pub const ALL: u8 = 0x3f;
    /// MODE SENSE, SUBPAGE CODE: all subpages.
    pub const ALL_SUBPAGES: u8 = 0xff;
}

/// MODE SENSE's page control: which values are asked for (SPC-4, 6.13.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PageControl {
    /// Those in force.
    Current,
    /// A mask of those that MODE SELECT may change.
    Changeable,
    /// Those that a new logical unit has.
    Default,
    /// Those that were saved.
    Saved,
}

impl PageControl {
    /// The PC field in bits 7-6 of `byte`.
    pub const fn from_bits(byte: u8) -> Self {
        match byte >> 6 {
            0 => Self::Current,
            1 => Self::Changeable,
            2 => Self::Default,
            _ => Self::Saved,
        }
    }
}

/// WP in the device-specific parameter: the medium is write-protected (SBC-3, 6.5.1).
pub const WP: u8 = 0x80;
/// DPOFUA in the device-specific parameter: DPO and FUA are supported.
pub const DPOFUA: u8 = 0x10;
/// LONGLBA in [`Header10::long_lba`]: block descriptors have 16 bytes.
pub const LONGLBA: u8 = 0x01;
/// PS in the first byte of a page: the page can be saved. Reserved in MODE SELECT.
pub const PS: u8 = 0x80;
/// SPF in the first byte of a page: it has the subpage format.
pub const SPF: u8 = 0x40;

/// Mode parameter header (6) (SPC-4, 7.5.4).
#[derive(Clone, Copy, Debug, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Header6 {
    /// MODE DATA LENGTH: the bytes that follow this field; reserved in MODE SELECT.
    pub data_length: u8,
    /// MEDIUM TYPE.
    pub medium_type: u8,
    /// DEVICE-SPECIFIC PARAMETER.
    pub device_specific: u8,
    /// BLOCK DESCRIPTOR LENGTH in bytes.
    pub block_descriptor_length: u8,
}

/// Mode parameter header (10) (SPC-4, 7.5.4).
#[derive(Clone, Copy, Debug, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Header10 {
    /// MODE DATA LENGTH: the bytes that follow this field; reserved in MODE SELECT.
    pub data_length: U16,
    /// MEDIUM TYPE.
    pub medium_type: u8,
    /// DEVICE-SPECIFIC PARAMETER.
    pub device_specific: u8,
    /// [`LONGLBA`] in bit 0.
    pub long_lba: u8,
    /// Reserved.
    pub reserved: u8,
    /// BLOCK DESCRIPTOR LENGTH in bytes.
    pub block_descriptor_length: U16,
}

/// Short LBA mode parameter block descriptor (SBC-3, 6.5.2.2).
#[derive(Clone, Copy, Debug, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned)]
#[repr(C)]
pub struct BlockDescriptor {
    /// NUMBER OF LOGICAL BLOCKS, or [`u32::MAX`] if it does not fit.
    pub blocks: U32,
    /// LOGICAL BLOCK LENGTH in bytes, 24 bits; the highest byte is reserved.
    pub block_len: U32,
}

/// Long LBA mode parameter block descriptor (SBC-3, 6.5.2.3).
#[derive(Clone, Copy, Debug, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned)]
#[repr(C)]
pub struct LongBlockDescriptor {
    /// NUMBER OF LOGICAL BLOCKS.
    pub blocks: U64,
    /// Reserved.
    pub reserved: U32,
    /// LOGICAL BLOCK LENGTH in bytes.
    pub block_len: U32,
}

/// Read-Write Error Recovery page (SBC-3, 6.5.8), all of whose fields are 0 here.
#[derive(Clone, Copy, Debug, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned)]
#[repr(C)]
pub struct ReadWriteErrorRecovery {
    /// PAGE CODE.
    pub page_code: u8,
    /// PAGE LENGTH.
    pub page_length: u8,
    /// The page's fields.
    pub fields: [u8; 10],
}

/// Caching page (SBC-3, 6.5.5).
#[derive(Clone, Copy, Debug, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Caching {
    /// PAGE CODE.
    pub page_code: u8,
    /// PAGE LENGTH.
    pub page_length: u8,
    /// IC, ABPF, CAP, DISC, SIZE, [`WCE`], MF, RCD.
    pub flags: u8,
    /// Retention priorities and pre-fetch lengths.
    pub prefetch: [u8; 9],
    /// FSW, LBCSS, DRA, NV_DIS.
    pub read_ahead: u8,
    /// NUMBER OF CACHE SEGMENTS and the rest.
    pub segments: [u8; 7],
}

/// WCE: the write cache is enabled.
pub const WCE: u8 = 0x04;
/// DRA: no read-ahead.
pub const DRA: u8 = 0x20;

/// Control page (SPC-4, 7.5.8).
#[derive(Clone, Copy, Debug, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Control {
    /// PAGE CODE.
    pub page_code: u8,
    /// PAGE LENGTH.
    pub page_length: u8,
    /// TST, TMF_ONLY, DPICZ, [`D_SENSE`], [`GLTSD`], RLEC.
    pub flags: u8,
    /// QUEUE ALGORITHM MODIFIER in bits 7-4, NUAR, QERR.
    pub queue: u8,
    /// VS, RAC, UA_INTLCK_CTRL, [`SWP`].
    pub protection: u8,
    /// ATO, TAS, ATMPE, RWWP, AUTOLOAD MODE.
    pub tas: u8,
    /// Obsolete.
    pub obsolete: U16,
    /// BUSY TIMEOUT PERIOD in 100 ms; [`u16::MAX`]: no limit.
    pub busy_timeout: U16,
    /// EXTENDED SELF-TEST COMPLETION TIME in seconds.
    pub self_test_time: U16,
}

/// D_SENSE: sense data have the descriptor format.
pub const D_SENSE: u8 = 0x04;
/// GLTSD: log parameters are not saved implicitly.
pub const GLTSD: u8 = 0x02;
/// QUEUE ALGORITHM MODIFIER: commands may be reordered in any way.
pub const UNRESTRICTED_REORDERING: u8 = 0x10;
/// SWP: the logical unit is write-protected by software.
pub const SWP: u8 = 0x08;

/// Control Extension page (SPC-4, 7.5.9).
#[derive(Clone, Copy, Debug, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned)]
#[repr(C)]
pub struct ControlExtension {
    /// [`SPF`] and PAGE CODE.
    pub page_code: u8,
    /// SUBPAGE CODE.
    pub subpage_code: u8,
    /// PAGE LENGTH.
    pub page_length: U16,
    /// TCMOS, SCSIP, [`IALUAE`].
    pub flags: u8,
    /// INITIAL COMMAND PRIORITY in bits 3-0.
    pub priority: u8,
    /// MAXIMUM SENSE DATA LENGTH in bytes; 0: no limit is said.
    pub max_sense_length: u8,
    /// Reserved.
    pub reserved: [u8; 25],
}

/// IALUAE: target port groups may change their state by themselves.
pub const IALUAE: u8 = 0x01;

/// Informational Exceptions Control page (SBC-3, 6.5.6).
#[derive(Clone, Copy, Debug, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned)]
#[repr(C)]
pub struct InformationalExceptions {
    /// PAGE CODE.
    pub page_code: u8,
    /// PAGE LENGTH.
    pub page_length: u8,
    /// PERF, EBF, EWASC, [`DEXCPT`], TEST, EBACKERR, LOGERR.
    pub flags: u8,
    /// MRIE in bits 3-0.
    pub method: u8,
    /// INTERVAL TIMER in 100 ms.
    pub interval: U32,
    /// REPORT COUNT.
    pub report_count: U32,
}

/// DEXCPT: informational exceptions are not reported.
pub const DEXCPT: u8 = 0x08;

/// Threshold descriptor (SBC-3, 6.5.9).
#[derive(Clone, Copy, Debug, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned)]
#[repr(C)]
pub struct ThresholdDescriptor {
    /// [`ENABLED`], THRESHOLD TYPE in bits 5-3, THRESHOLD ARMING in bits 2-0.
    pub flags: u8,
    /// THRESHOLD RESOURCE: the code of a parameter of the log page.
    pub resource: u8,
    reserved: U16,
    /// THRESHOLD COUNT in threshold sets.
    pub count: U32,
}

/// ENABLED in [`ThresholdDescriptor::flags`].
pub const ENABLED: u8 = 0x80;
/// THRESHOLD ARMING: the threshold is reached from above.
pub const ARMED_DECREASING: u8 = 0x00;
/// THRESHOLD ARMING: the threshold is reached from below.
pub const ARMED_INCREASING: u8 = 0x01;

impl ThresholdDescriptor {
    /// The descriptor of a soft threshold.
    pub fn new(flags: u8, resource: u8, count: u32) -> Self {
        Self {
            flags,
            resource,
            reserved: U16::ZERO,
            count: count.into(),
        }
    }
}

/// Logical Block Provisioning page (SBC-3, 6.5.9) with two descriptors.
#[derive(Clone, Copy, Debug, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned)]
#[repr(C)]
pub struct LogicalBlockProvisioning {
    /// [`SPF`] and PAGE CODE.
    pub page_code: u8,
    /// SUBPAGE CODE.
    pub subpage_code: u8,
    /// PAGE LENGTH.
    pub page_length: U16,
    /// [`SITUA`].
    pub flags: u8,
    reserved: [u8; 11],
    /// The thresholds.
    pub thresholds: [ThresholdDescriptor; 2],
}

/// SITUA: a threshold that is reached is reported to one initiator.
pub const SITUA: u8 = 0x01;

impl LogicalBlockProvisioning {
    /// The page with the given fields.
    pub fn new(flags: u8, thresholds: [ThresholdDescriptor; 2]) -> Self {
        Self {
            page_code: SPF | page::INFORMATIONAL_EXCEPTIONS_CONTROL,
            subpage_code: page::LOGICAL_BLOCK_PROVISIONING,
            page_length: (size_of::<Self>() as u16 - 4).into(),
            flags,
            reserved: [0; 11],
            thresholds,
        }
    }
}

const _: () = {
    assert!(size_of::<ThresholdDescriptor>() == 8);
    assert!(size_of::<LogicalBlockProvisioning>() == 32);
    assert!(size_of::<Header6>() == 4);
    assert!(size_of::<Header10>() == 8);
    assert!(size_of::<BlockDescriptor>() == 8);
    assert!(size_of::<LongBlockDescriptor>() == 16);
    assert!(size_of::<ReadWriteErrorRecovery>() == 12);
    assert!(size_of::<Caching>() == 20);
    assert!(size_of::<Control>() == 12);
    assert!(size_of::<ControlExtension>() == 32);
    assert!(size_of::<InformationalExceptions>() == 12);
};
