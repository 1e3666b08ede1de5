//! LOG SENSE: SPC-4, 6.8.
//!
//! All parameters are lists, for which PC does not matter (SPC-4, 6.8.1).

use tcmu::scsi::Sense;
use tcmu::scsi::cdb::LogSense;
use tcmu::scsi::log::{GeneralException, Header, SPF, page};
use tcmu_handler::{Backstore, Buffer, Io};
use zerocopy::IntoBytes;

use super::LogicalUnit;
use super::logical_unit::parse;
use super::reply::{Answer, parameter_data};
use super::unit::Unit;

impl<B: Backstore> LogicalUnit<B> {
    pub(super) async fn log_sense(&self, io: &Io, cdb: &[u8], data: Buffer<'_>) -> Answer {
        let command = parse::<LogSense>(cdb)?;
        let code = command.page & 0x3f;
        let codes = (code, command.subpage);
        let pages = self.unit.log_pages();
        if !pages.contains(&codes) {
            let known = pages.iter().any(|(known, _)| *known == code);
            let (byte, bit) = if known { (3, None) } else { (2, Some(5)) };
            return Err(Sense::invalid_cdb_field(byte, bit).into());
        }
        let first = command.parameter_pointer.get();
        let bytes: Vec<u8> = match codes {
            (page::SUPPORTED_PAGES, 0) => {
                let codes = pages.iter().filter(|(_, subpage)| *subpage == 0);
                codes.map(|(code, _)| *code).collect()
            }
            (page::SUPPORTED_PAGES, _) => pages
                .iter()
                .flat_map(|(code, subpage)| [*code, *subpage])
                .collect(),
            (page::LOGICAL_BLOCK_PROVISIONING, _) => {
                let usage = self.backstore.usage(io).await;
                let usage =
                    usage.map_err(|error| self.failed("looking at the storage in use", &error))?;
                let counts = self.unit.resource_counts(usage);
                let wanted = counts
                    .iter()
                    .filter(|count| count.header.code.get() >= first);
                wanted.flat_map(|count| count.as_bytes()).copied().collect()
            }
            _ if first == 0 => GeneralException::none().as_bytes().to_vec(),
            _ => Vec::new(),
        };
        // Lists of pages have no parameters to begin at.
        if bytes.is_empty() || (code == page::SUPPORTED_PAGES && first != 0) {
            return Err(Sense::invalid_cdb_field(5, None).into());
        }
        let spf = if command.subpage == 0 { 0 } else { SPF };
        let header = Header {
            page_code: spf | code,
            subpage_code: command.subpage,
            length: (bytes.len() as u16).into(),
        };
        let bytes = [header.as_bytes(), &bytes].concat();
        parameter_data(data, command.allocation_length.get().into(), &bytes)
    }
}

impl Unit {
    /// The pages, by code and subpage code, in ascending order.
    fn log_pages(&self) -> Vec<(u8, u8)> {
        let mut pages = vec![
            (page::SUPPORTED_PAGES, 0),
            (page::SUPPORTED_PAGES, page::ALL_SUBPAGES),
            (page::LOGICAL_BLOCK_PROVISIONING, 0),
            (page::INFORMATIONAL_EXCEPTIONS, 0),
        ];
        if !self.has_thresholds() {
            pages.retain(|(code, _)| *code != page::LOGICAL_BLOCK_PROVISIONING);
        }
        pages
    }
}
