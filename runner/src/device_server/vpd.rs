//! Vital product data (SPC-4, 7.8; SBC-3, 6.6).

use tcmu::scsi::inquiry::DIRECT_ACCESS_BLOCK_DEVICE as DISK;
use tcmu::scsi::vpd::{
    BlockDeviceCharacteristics, BlockLimits, CODE_SET_ASCII, CODE_SET_BINARY, DESIGNATOR_NAA,
    DESIGNATOR_RELATIVE_TARGET_PORT, DESIGNATOR_T10_VENDOR_ID, DESIGNATOR_TARGET_PORT_GROUP,
    DesignatorHeader, ExtendedInquiry, FULLY_PROVISIONED, Header, LBPRZ, LBPU, LBPWS, LBPWS10,
    LogicalBlockProvisioning, ModePagePolicy, NON_ROTATING, PortDesignator, SIMPSUP,
    THIN_PROVISIONED, UGAVALID, V_SUP, WABEREQ_READS, page,
};
use zerocopy::IntoBytes;

use super::unit::Unit;
use super::unmap::MAX_UNMAP_DESCRIPTORS;

/// The longest serial number or name that a designator of 255 bytes has room for, beside vendor
/// and product.
const LONGEST_SERIAL: usize = 254 - 8 - 16;

/// The pages in ascending order, as page 00h has to list them.
const PAGES: [u8; 9] = [
    page::SUPPORTED_PAGES,
    page::UNIT_SERIAL_NUMBER,
    page::DEVICE_IDENTIFICATION,
    page::EXTENDED_INQUIRY_DATA,
    page::MODE_PAGE_POLICY,
    page::THIRD_PARTY_COPY,
    page::BLOCK_LIMITS,
    page::BLOCK_DEVICE_CHARACTERISTICS,
    page::LOGICAL_BLOCK_PROVISIONING,
];

impl Unit {
    /// The page with this code, if there is one.
    pub(super) fn vpd_page(&self, page_code: u8) -> Option<Vec<u8>> {
        if !self.has_vpd_page(page_code) {
            return None;
        }
        let mut page = self.vpd_page_of_disk(page_code)?;
        page[0] = self.device_type();
        Some(page)
    }

    /// From B0h on, the pages are those of a device type; and only disks copy.
    fn has_vpd_page(&self, page_code: u8) -> bool {
        let common = page_code < page::BLOCK_LIMITS && page_code != page::THIRD_PARTY_COPY;
        PAGES.contains(&page_code) && (common || !self.features().own_type)
    }

    fn vpd_page_of_disk(&self, page_code: u8) -> Option<Vec<u8>> {
        Some(match page_code {
            page::SUPPORTED_PAGES => {
                let pages = PAGES.into_iter().filter(|&code| self.has_vpd_page(code));
                with_header(page_code, &pages.collect::<Vec<_>>())
            }
            page::UNIT_SERIAL_NUMBER => with_header(page_code, &self.serial_number()),
            page::DEVICE_IDENTIFICATION => with_header(page_code, &self.designators()),
            page::EXTENDED_INQUIRY_DATA => self.extended_inquiry().as_bytes().to_vec(),
            page::MODE_PAGE_POLICY => ModePagePolicy::all_shared(DISK).as_bytes().to_vec(),
            page::THIRD_PARTY_COPY => with_header(page_code, &self.third_party_copy()),
            page::BLOCK_LIMITS => self.block_limits().as_bytes().to_vec(),
            // A backstore in user space has no rotating medium that an initiator should sort for.
            page::BLOCK_DEVICE_CHARACTERISTICS => {
                let mut page = BlockDeviceCharacteristics::new(DISK, NON_ROTATING);
                if self.features().block_erase {
                    page.form = WABEREQ_READS;
                }
                page.as_bytes().to_vec()
            }
            page::LOGICAL_BLOCK_PROVISIONING => self.provisioning().as_bytes().to_vec(),
            _ => return None,
        })
    }

    /// SPC-4, 7.8.15: spaces where there is no serial number.
    fn serial_number(&self) -> Vec<u8> {
        match printable(&self.identity.borrow().serial) {
            serial if serial.is_empty() => vec![b' '; 4],
            serial => serial,
        }
    }

    /// SPC-4, 7.8.6: the names of the logical unit, NAA first as hosts prefer it, then the target port
    /// group and port. TCMU does not say through which port a command came: they are told only where
    /// there is no other that is enabled.
    fn designators(&self) -> Vec<u8> {
        let identity = self.identity.borrow();
        let mut designators = Vec::new();
        let mut add = |code_set, designator_type, designator: &[u8]| {
            // Both are shorter than 256 bytes.
            let len = designator.len() as u8;
            let header = DesignatorHeader::logical_unit(code_set, designator_type, len);
            designators.extend_from_slice(header.as_bytes());
            designators.extend_from_slice(designator);
        };
        let unique = match identity.naa() {
            None => &identity.name,
            Some(naa) => {
                add(CODE_SET_BINARY, DESIGNATOR_NAA, &naa);
                &identity.serial
            }
        };
        let mut vendor_specific = identity.vendor_field().to_vec();
        let product = printable(identity.product());
        vendor_specific.extend(product.iter().take(16));
        vendor_specific.push(b':');
        vendor_specific.extend(printable(unique));
        add(CODE_SET_ASCII, DESIGNATOR_T10_VENDOR_ID, &vendor_specific);
        let surroundings = self.surroundings.borrow();
        for (designator_type, number) in [
            (DESIGNATOR_RELATIVE_TARGET_PORT, surroundings.only_port()),
            (DESIGNATOR_TARGET_PORT_GROUP, surroundings.only_group()),
        ] {
            if let Some(number) = number {
                let designator = PortDesignator::new(designator_type, number);
                designators.extend_from_slice(designator.as_bytes());
            }
        }
        designators
    }

    /// The target core does not order the commands that it passes on: only SIMPLE is true.
    fn extended_inquiry(&self) -> ExtendedInquiry {
        let cache = if self.capabilities().volatile_cache {
            V_SUP
        } else {
            0
        };
        ExtendedInquiry::new(DISK, SIMPSUP, cache)
    }

    fn block_limits(&self) -> BlockLimits {
        const WSNZ: u8 = 0x01;
        let capabilities = self.capabilities();
        let block_size = self.block_size();
        let granularity = (capabilities.physical_block_size / block_size).max(1);
        let max_transfer = self.max_transfer_blocks();
        let mut optimal = capabilities.optimal_io_size / block_size;
        if max_transfer != 0 {
            optimal = optimal.min(max_transfer);
        }
        let mut limits = BlockLimits::new(DISK);
        limits.write_same_non_zero = WSNZ;
        limits.optimal_granularity = u16::try_from(granularity).unwrap_or(0).into();
        limits.max_transfer = max_transfer.into();
        limits.optimal_transfer = optimal.into();
        limits.max_compare_and_write = self.max_compare_and_write_blocks();
        if let Some(atomic) = self.atomic_limits() {
            // 0 where any will do.
            let unless_1 = |blocks| if blocks == 1 { 0 } else { blocks };
            limits.max_atomic = atomic.max_blocks.into();
            limits.atomic_alignment = unless_1(atomic.alignment).into();
            limits.atomic_granularity = unless_1(atomic.granularity).into();
        }
        limits.max_write_same = self.max_write_same_blocks().into();
        if let Some(unmap) = capabilities.unmap {
            let granularity = self.in_blocks(unmap.granularity).max(1);
            limits.max_unmap_blocks = self.max_unmap_blocks().into();
            limits.max_unmap_descriptors = MAX_UNMAP_DESCRIPTORS.into();
            limits.unmap_granularity = u32::try_from(granularity).unwrap_or(u32::MAX).into();
            limits.unmap_alignment = UGAVALID.into();
        }
        limits
    }

    fn provisioning(&self) -> LogicalBlockProvisioning {
        let Some(unmap) = self.capabilities().unmap else {
            return LogicalBlockProvisioning::new(DISK, 0, FULLY_PROVISIONED);
        };
        let mut flags = LBPU;
        if self.features().unmap_by_write_same {
            flags |= LBPWS | LBPWS10;
        }
        if unmap.reads_zeroes {
            flags |= LBPRZ;
        }
        let mut page = LogicalBlockProvisioning::new(DISK, flags, THIN_PROVISIONED);
        page.threshold_exponent = self.threshold_exponent();
        page
    }
}

/// The page of `code` with these bytes, of which there are less than 64 KiB.
fn with_header(page_code: u8, bytes: &[u8]) -> Vec<u8> {
    let header = Header {
        peripheral: DISK,
        page_code,
        page_length: (bytes.len() as u16).into(),
    };
    let mut page = header.as_bytes().to_vec();
    page.extend_from_slice(bytes);
    page
}

/// The characters of `text` that an ASCII designator may hold.
fn printable(text: &str) -> Vec<u8> {
    text.bytes()
        .filter(|byte| matches!(byte, b' '..=b'~'))
        .take(LONGEST_SERIAL)
        .collect()
}
