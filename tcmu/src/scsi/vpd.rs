//! Vital product data pages (SPC-4, 7.8; SBC-3, 6.6).

use zerocopy::big_endian::{U16, U32, U64};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Page codes.
pub mod page {
    /// Supported VPD pages.
    pub const SUPPORTED_PAGES: u8 = 0x00;
    /// Unit serial number.
    pub const UNIT_SERIAL_NUMBER: u8 = 0x80;
    /// Device identification.
    pub const DEVICE_IDENTIFICATION: u8 = 0x83;
    /// Extended INQUIRY data.
    pub const EXTENDED_INQUIRY_DATA: u8 = 0x86;
    /// Mode page policy.
    pub const MODE_PAGE_POLICY: u8 = 0x87;
    /// Third-party copy.
    pub const THIRD_PARTY_COPY: u8 = 0x8f;
    /// Block limits.
    pub const BLOCK_LIMITS: u8 = 0xb0;
    /// Block device characteristics.
    pub const BLOCK_DEVICE_CHARACTERISTICS: u8 = 0xb1;
    /// Logical block provisioning.
    pub const LOGICAL_BLOCK_PROVISIONING: u8 = 0xb2;
}

/// What every page begins with.
#[derive(Clone, Copy, Debug, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Header {
    /// PERIPHERAL QUALIFIER and PERIPHERAL DEVICE TYPE.
    pub peripheral: u8,
    /// PAGE CODE.
    pub page_code: u8,
    /// PAGE LENGTH: the bytes that follow this field.
    pub page_length: U16,
}

/// What a designation descriptor begins with (SPC-4, 7.8.6.1).
#[derive(Clone, Copy, Debug, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned)]
#[repr(C)]
pub struct DesignatorHeader {
    /// PROTOCOL IDENTIFIER in bits 7-4, CODE SET in bits 3-0.
    pub code_set: u8,
    /// PIV in bit 7, ASSOCIATION in bits 5-4, DESIGNATOR TYPE in bits 3-0.
    pub designator_type: u8,
    reserved: u8,
    /// DESIGNATOR LENGTH in bytes.
    pub length: u8,
}

/// CODE SET: binary.
pub const CODE_SET_BINARY: u8 = 0x01;
/// CODE SET: ASCII.
pub const CODE_SET_ASCII: u8 = 0x02;
/// DESIGNATOR TYPE: T10 vendor ID based.
pub const DESIGNATOR_T10_VENDOR_ID: u8 = 0x01;
/// DESIGNATOR TYPE: NAA.
pub const DESIGNATOR_NAA: u8 = 0x03;
/// DESIGNATOR TYPE: relative target port identifier.
pub const DESIGNATOR_RELATIVE_TARGET_PORT: u8 = 0x04;
/// DESIGNATOR TYPE: target port group.
pub const DESIGNATOR_TARGET_PORT_GROUP: u8 = 0x05;

impl DesignatorHeader {
    /// The header of a designator of the logical unit itself.
    pub const fn logical_unit(code_set: u8, designator_type: u8, length: u8) -> Self {
        Self {
            code_set,
            designator_type,
            reserved: 0,
            length,
        }
    }
}

/// A designator of the target port that a command came through: its relative identifier or its group
/// (SPC-4, 7.8.6.7 and 7.8.6.8).
#[derive(Clone, Copy, Debug, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned)]
#[repr(C)]
pub struct PortDesignator {
    header: DesignatorHeader,
    reserved: U16,
    /// RELATIVE TARGET PORT IDENTIFIER or TARGET PORT GROUP.
    pub number: U16,
}

impl PortDesignator {
    /// A designator of one of the two types.
    pub fn new(designator_type: u8, number: u16) -> Self {
        const OF_TARGET_PORT: u8 = 0x10;
        Self {
            header: DesignatorHeader {
                code_set: CODE_SET_BINARY,
                designator_type: OF_TARGET_PORT | designator_type,
                reserved: 0,
                length: 4,
            },
            reserved: U16::ZERO,
            number: number.into(),
        }
    }
}

/// NAA IEEE Registered Extended designator (SPC-4, 7.8.6.6.5): `company` is an IEEE company id of
/// 24 bits; the hexadecimal digits of `serial` fill the 100 bits behind it, other characters are
/// passed over, and zeroes fill what is left.
///
/// LIO derives the same from its vpd_unit_serial (spc_gen_naa_6h_vendor_specific in
/// target_core_spc.c).
pub fn naa_registered_extended(company: u32, serial: &str) -> [u8; 16] {
    const VENDOR_DIGITS: u32 = 25;
    let mut value: u128 = 0x6 << 24 | u128::from(company & 0x00ff_ffff);
    let digits = serial
        .chars()
        .filter_map(|character| character.to_digit(16))
        .chain(std::iter::repeat(0))
        .take(VENDOR_DIGITS as usize);
    for digit in digits {
        value = value << 4 | u128::from(digit);
    }
    value.to_be_bytes()
}

/// Extended INQUIRY Data page (SPC-4, 7.8.8).
#[derive(Clone, Copy, Debug, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned)]
#[repr(C)]
pub struct ExtendedInquiry {
    /// Page header.
    pub header: Header,
    /// ACTIVATE MICROCODE, SPT, GRD_CHK, APP_CHK, REF_CHK.
    pub protection: u8,
    /// UASK_SUP, GROUP_SUP, PRIOR_SUP, HEADSUP, ORDSUP, SIMPSUP.
    pub task_attributes: u8,
    /// WU_SUP, CRD_SUP, NV_SUP, V_SUP.
    pub cache: u8,
    reserved: [u8; 57],
}

/// SIMPSUP: the SIMPLE task attribute.
pub const SIMPSUP: u8 = 0x01;
/// V_SUP: there is a volatile cache.
pub const V_SUP: u8 = 0x01;

impl ExtendedInquiry {
    /// The page with the given fields, all others 0.
    pub fn new(peripheral: u8, task_attributes: u8, cache: u8) -> Self {
        Self {
            header: header::<Self>(peripheral, page::EXTENDED_INQUIRY_DATA),
            protection: 0,
            task_attributes,
            cache,
            reserved: [0; 57],
        }
    }
}

/// Mode Page Policy page (SPC-4, 7.8.11) with one descriptor, for all pages.
#[derive(Clone, Copy, Debug, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned)]
#[repr(C)]
pub struct ModePagePolicy {
    /// Page header.
    pub header: Header,
    /// POLICY PAGE CODE.
    pub page_code: u8,
    /// POLICY SUBPAGE CODE.
    pub subpage_code: u8,
    /// MLUS and MODE PAGE POLICY.
    pub policy: u8,
    reserved: u8,
}

impl ModePagePolicy {
    /// All mode pages and subpages are shared by all initiators.
    pub fn all_shared(peripheral: u8) -> Self {
        Self {
            header: header::<Self>(peripheral, page::MODE_PAGE_POLICY),
            page_code: 0x3f,
            subpage_code: 0xff,
            policy: 0,
            reserved: 0,
        }
    }
}

/// Block Limits page (SBC-3, 6.6.3; its last fields are SBC-4's). 0 means "no limit" or "not reported", as the field says there.
#[derive(Clone, Copy, Debug, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned)]
#[repr(C)]
pub struct BlockLimits {
    /// Page header.
    pub header: Header,
    /// WSNZ in bit 0: WRITE SAME of 0 blocks is refused.
    pub write_same_non_zero: u8,
    /// MAXIMUM COMPARE AND WRITE LENGTH in blocks.
    pub max_compare_and_write: u8,
    /// OPTIMAL TRANSFER LENGTH GRANULARITY in blocks.
    pub optimal_granularity: U16,
    /// MAXIMUM TRANSFER LENGTH in blocks.
    pub max_transfer: U32,
    /// OPTIMAL TRANSFER LENGTH in blocks.
    pub optimal_transfer: U32,
    /// MAXIMUM PREFETCH LENGTH in blocks.
    pub max_prefetch: U32,
    /// MAXIMUM UNMAP LBA COUNT in blocks.
    pub max_unmap_blocks: U32,
    /// MAXIMUM UNMAP BLOCK DESCRIPTOR COUNT.
    pub max_unmap_descriptors: U32,
    /// OPTIMAL UNMAP GRANULARITY in blocks.
    pub unmap_granularity: U32,
    /// [`UGAVALID`] and UNMAP GRANULARITY ALIGNMENT in blocks.
    pub unmap_alignment: U32,
    /// MAXIMUM WRITE SAME LENGTH in blocks.
    pub max_write_same: U64,
    /// MAXIMUM ATOMIC TRANSFER LENGTH in blocks; 0: there are no atomic writes.
    pub max_atomic: U32,
    /// ATOMIC ALIGNMENT in blocks; 0: none is needed.
    pub atomic_alignment: U32,
    /// ATOMIC TRANSFER LENGTH GRANULARITY in blocks; 0: any length will do.
    pub atomic_granularity: U32,
    /// MAXIMUM ATOMIC TRANSFER LENGTH WITH ATOMIC BOUNDARY in blocks.
    pub max_atomic_with_boundary: U32,
    /// MAXIMUM ATOMIC BOUNDARY SIZE in blocks; 0: commands cannot have boundaries.
    pub max_atomic_boundary: U32,
}

/// UGAVALID in [`BlockLimits::unmap_alignment`].
pub const UGAVALID: u32 = 0x8000_0000;

impl BlockLimits {
    /// The page with all fields 0.
    pub fn new(peripheral: u8) -> Self {
        let mut page = Self::new_zeroed();
        page.header = header::<Self>(peripheral, page::BLOCK_LIMITS);
        page
    }
}

/// Block Device Characteristics page (SBC-3, 6.6.2).
#[derive(Clone, Copy, Debug, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned)]
#[repr(C)]
pub struct BlockDeviceCharacteristics {
    /// Page header.
    pub header: Header,
    /// MEDIUM ROTATION RATE: 0 not reported, 1 not rotating, otherwise per minute.
    pub rotation_rate: U16,
    /// PRODUCT TYPE.
    pub product_type: u8,
    /// WABEREQ in bits 7-6 ([`WABEREQ_READS`]), WACEREQ in bits 5-4, NOMINAL FORM FACTOR in bits
    /// 3-0.
    pub form: u8,
    reserved: [u8; 56],
}

/// MEDIUM ROTATION RATE of what does not rotate.
pub const NON_ROTATING: u16 = 1;

/// WABEREQ: after a block erase, blocks are read without error.
pub const WABEREQ_READS: u8 = 0x40;

impl BlockDeviceCharacteristics {
    /// The page with the given rotation rate, all other fields 0.
    pub fn new(peripheral: u8, rotation_rate: u16) -> Self {
        Self {
            header: header::<Self>(peripheral, page::BLOCK_DEVICE_CHARACTERISTICS),
            rotation_rate: rotation_rate.into(),
            product_type: 0,
            form: 0,
            reserved: [0; 56],
        }
    }
}

/// Logical Block Provisioning page (SBC-3, 6.6.4), without a provisioning group.
#[derive(Clone, Copy, Debug, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned)]
#[repr(C)]
pub struct LogicalBlockProvisioning {
    /// Page header.
    pub header: Header,
    /// THRESHOLD EXPONENT; 0: no thresholds.
    pub threshold_exponent: u8,
    /// [`LBPU`], [`LBPWS`], [`LBPWS10`], LBPRZ, ANC_SUP, DP.
    pub flags: u8,
    /// PROVISIONING TYPE in bits 2-0.
    pub provisioning_type: u8,
    reserved: u8,
}

/// LBPU: UNMAP unmaps.
pub const LBPU: u8 = 0x80;
/// LBPWS: WRITE SAME (16) with UNMAP = 1 unmaps.
pub const LBPWS: u8 = 0x40;
/// LBPWS10: WRITE SAME (10) with UNMAP = 1 unmaps.
pub const LBPWS10: u8 = 0x20;
/// LBPRZ: unmapped blocks read as zeroes.
pub const LBPRZ: u8 = 0x04;
/// PROVISIONING TYPE: fully provisioned, or not reported.
pub const FULLY_PROVISIONED: u8 = 0;
/// PROVISIONING TYPE: thin provisioned.
pub const THIN_PROVISIONED: u8 = 2;

impl LogicalBlockProvisioning {
    /// The page with the given fields, all others 0.
    pub fn new(peripheral: u8, flags: u8, provisioning_type: u8) -> Self {
        Self {
            header: header::<Self>(peripheral, page::LOGICAL_BLOCK_PROVISIONING),
            threshold_exponent: 0,
            flags,
            provisioning_type,
            reserved: 0,
        }
    }
}

/// The header of page `T`.
fn header<T>(peripheral: u8, page_code: u8) -> Header {
    Header {
        peripheral,
        page_code,
        page_length: ((size_of::<T>() - size_of::<Header>()) as u16).into(),
    }
}

const _: () = {
    assert!(size_of::<Header>() == 4);
    assert!(size_of::<DesignatorHeader>() == 4);
    assert!(size_of::<ExtendedInquiry>() == 64);
    assert!(size_of::<PortDesignator>() == 8);
    assert!(size_of::<ModePagePolicy>() == 8);
    assert!(size_of::<BlockLimits>() == 64);
    assert!(size_of::<BlockDeviceCharacteristics>() == 64);
    assert!(size_of::<LogicalBlockProvisioning>() == 8);
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn naa_takes_the_hexadecimal_digits_of_the_serial() {
        let designator = naa_registered_extended(0x001405, "01234567-89ab-CDEF-zz01-23456789abcd");
        assert_eq!(
            designator,
            [
                0x60, 0x01, 0x40, 0x50, 0x12, 0x34, 0x56, 0x78, 0x9a, 0xbc, 0xde, 0xf0, 0x12, 0x34,
                0x56, 0x78
            ]
        );
    }

    #[test]
    fn naa_of_a_short_serial_ends_in_zeroes() {
        let designator = naa_registered_extended(0x001405, "f");
        assert_eq!(designator[..4], [0x60, 0x01, 0x40, 0x5f]);
        assert_eq!(designator[4..], [0; 12]);
    }

    #[test]
    fn pages_say_their_length() {
        let limits = BlockLimits::new(0);
        assert_eq!(limits.as_bytes()[..4], [0, 0xb0, 0, 0x3c]);
        let provisioning = LogicalBlockProvisioning::new(0, LBPU | LBPRZ, THIN_PROVISIONED);
        assert_eq!(
            provisioning.as_bytes(),
            [0, 0xb2, 0, 4, 0, 0x84, 2, 0].as_slice()
        );
    }
}
