//! MODE SENSE (6) and (10): SPC-4, 6.13 and 6.14.

use tcmu::scsi::cdb::{ModeSense6, ModeSense10};
use tcmu::scsi::mode::{
    BlockDescriptor, DPOFUA, Header6, Header10, LONGLBA, LongBlockDescriptor, PageControl, WP, page,
};
use tcmu::scsi::opcode::MODE_SENSE_10;
use tcmu::scsi::{AdditionalSense, Sense};
use tcmu_handler::Buffer;
use zerocopy::IntoBytes;

use super::logical_unit::parse;
use super::mode_pages::PAGES;
use super::reply::{Answer, parameter_data};
use super::unit::Unit;

/// DBD: no block descriptors.
const DBD: u8 = 0x08;
/// LLBAA: long block descriptors are accepted.
const LLBAA: u8 = 0x10;

impl Unit {
    pub(super) fn mode_sense(&self, cdb: &[u8], data: Buffer<'_>) -> Answer {
        if cdb[0] == MODE_SENSE_10 {
            let command = parse::<ModeSense10>(cdb)?;
            let pages = self.mode_sense_pages(command.page, command.subpage)?;
            let long = command.flags & LLBAA != 0;
            let descriptor = self.block_descriptor(command.flags & DBD != 0, long);
            let rest = descriptor.len() + pages.len();
            let header = Header10 {
                // All pages together are much shorter than 64 KiB.
                data_length: ((size_of::<Header10>() - 2 + rest) as u16).into(),
                medium_type: 0,
                device_specific: self.device_specific(),
                long_lba: if long { LONGLBA } else { 0 },
                reserved: 0,
                block_descriptor_length: (descriptor.len() as u16).into(),
            };
            let bytes = [header.as_bytes(), &descriptor, &pages].concat();
            parameter_data(data, command.allocation_length.get().into(), &bytes)
        } else {
            let command = parse::<ModeSense6>(cdb)?;
            let pages = self.mode_sense_pages(command.page, command.subpage)?;
            let descriptor = self.block_descriptor(command.flags & DBD != 0, false);
            let rest = descriptor.len() + pages.len();
            let header = Header6 {
                // All pages together are shorter than 256 bytes, as a test checks.
                data_length: (size_of::<Header6>() - 1 + rest) as u8,
                medium_type: 0,
                device_specific: self.device_specific(),
                block_descriptor_length: descriptor.len() as u8,
            };
            let bytes = [header.as_bytes(), &descriptor, &pages].concat();
            parameter_data(data, command.allocation_length.into(), &bytes)
        }
    }

    /// DPO and FUA are always honoured: DPO is a hint, and FUA is native, emulated or needless.
    fn device_specific(&self) -> u8 {
        let protected = self.capabilities().read_only || self.mode.get().software_write_protect;
        if protected { WP | DPOFUA } else { DPOFUA }
    }

    fn block_descriptor(&self, disabled: bool, long: bool) -> Vec<u8> {
        if disabled {
            return Vec::new();
        }
        if long {
            let descriptor = LongBlockDescriptor {
                blocks: self.blocks().into(),
                reserved: 0.into(),
                block_len: self.block_size().into(),
            };
            return descriptor.as_bytes().to_vec();
        }
        let descriptor = BlockDescriptor {
            blocks: u32::try_from(self.blocks()).unwrap_or(u32::MAX).into(),
            block_len: self.block_size().into(),
        };
        descriptor.as_bytes().to_vec()
    }

    /// The pages that PC, PAGE CODE and SUBPAGE CODE ask for.
    fn mode_sense_pages(&self, page_byte: u8, subpage: u8) -> Result<Vec<u8>, Sense> {
        let control = PageControl::from_bits(page_byte);
        if control == PageControl::Saved {
            return Err(Sense::illegal_request(
                AdditionalSense::SAVING_PARAMETERS_NOT_SUPPORTED,
            ));
        }
        let page_code = page_byte & 0x3f;
        let of_page = |(code, _): &(u8, u8)| page_code == page::ALL || page_code == *code;
        if !PAGES.iter().any(of_page) {
            return Err(Sense::invalid_cdb_field(2, Some(5)));
        }
        let of_subpage = |(_, code): &(u8, u8)| match subpage {
            page::ALL_SUBPAGES => true,
            // There is no such subpage of every page.
            1.. if page_code == page::ALL => false,
            subpage => subpage == *code,
        };
        let pages: Vec<u8> = PAGES
            .into_iter()
            .filter(|codes| of_page(codes) && of_subpage(codes))
            .filter_map(|(code, subpage)| self.mode_page(code, subpage, control))
            .flatten()
            .collect();
        if pages.is_empty() {
            return Err(Sense::invalid_cdb_field(3, None));
        }
        Ok(pages)
    }
}
