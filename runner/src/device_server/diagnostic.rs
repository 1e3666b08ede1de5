//! SEND DIAGNOSTIC and RECEIVE DIAGNOSTIC RESULTS: SPC-4, 6.42 and 6.27.

use tcmu::scsi::cdb::Diagnostic;
use tcmu::scsi::diagnostic::{
    FOREGROUND_EXTENDED, FOREGROUND_SHORT, Header, PCV, PF, SELFTEST, SUPPORTED_PAGES,
};
use tcmu::scsi::{AdditionalSense, Sense, SenseKey};
use tcmu_handler::{Backstore, Buffer, Error, Io};
use zerocopy::{FromBytes, IntoBytes};

use super::LogicalUnit;
use super::logical_unit::parse;
use super::reply::{Answer, Response, parameter_data};
use super::unit::Unit;
use super::unmap::parameter_list;

impl<B: Backstore> LogicalUnit<B> {
    /// Every self-test is the same: the backstore has to give back the first and the last block. The
    /// command waits for it; a self-test in the background would need a log of its results.
    pub(super) async fn send_diagnostic(&self, io: &Io, cdb: &[u8], data: Buffer<'_>) -> Answer {
        let command = parse::<Diagnostic>(cdb)?;
        let len = usize::from(command.length.get());
        let test = match (command.flags >> 5, command.flags & SELFTEST != 0) {
            (0, default) => default,
            (FOREGROUND_SHORT | FOREGROUND_EXTENDED, false) => true,
            _ => return Err(Sense::invalid_cdb_field(1, Some(7)).into()),
        };
        if test {
            if len != 0 {
                return Err(Sense::invalid_cdb_field(3, None).into());
            }
            self.test_itself(io).await.map_err(|error| {
                self.failed("the self-test", &error);
                let code = AdditionalSense::LOGICAL_UNIT_FAILED_SELF_TEST;
                Sense::new(SenseKey::HardwareError, code)
            })?;
        } else if len != 0 {
            if command.flags & PF == 0 {
                return Err(Sense::invalid_cdb_field(1, Some(4)).into());
            }
            check_page(&parameter_list(data, len)?)?;
        }
        Ok(Response::GOOD)
    }

    async fn test_itself(&self, io: &Io) -> Result<(), Error> {
        let out_of_memory = |error| Error::os("allocating a block", error);
        let block = io
            .allocate(self.unit.block_size() as usize)
            .map_err(out_of_memory)?;
        for lba in [0, self.unit.last_lba()] {
            // A unit without blocks has nothing to read.
            if let Ok(extent) = self.unit.extent(lba, 1) {
                self.backstore.read(io, block.view(), extent.offset).await?;
            }
        }
        Ok(())
    }
}

/// The only page that can be sent asks for the list of pages, which is what RECEIVE DIAGNOSTIC
/// RESULTS returns anyway.
fn check_page(list: &[u8]) -> Result<(), Sense> {
    let length_error = Sense::illegal_request(AdditionalSense::PARAMETER_LIST_LENGTH_ERROR);
    let (header, rest) = Header::ref_from_prefix(list).map_err(|_| length_error)?;
    if header.page_code != SUPPORTED_PAGES {
        return Err(Sense::invalid_parameter_field(0, None));
    }
    if header.length.get() != 0 {
        return Err(Sense::invalid_parameter_field(2, None));
    }
    if !rest.is_empty() {
        return Err(length_error);
    }
    Ok(())
}

impl Unit {
    /// Without PCV it is the page that SEND DIAGNOSTIC asked for last: there is only this one.
    pub(super) fn receive_diagnostic(&self, cdb: &[u8], data: Buffer<'_>) -> Answer {
        let command = parse::<Diagnostic>(cdb)?;
        if command.flags & PCV != 0 && command.page_code != SUPPORTED_PAGES {
            return Err(Sense::invalid_cdb_field(2, None).into());
        }
        let header = Header {
            page_code: SUPPORTED_PAGES,
            specific: 0,
            length: 1.into(),
        };
        let bytes = [header.as_bytes(), &[SUPPORTED_PAGES]].concat();
        parameter_data(data, command.length.get().into(), &bytes)
    }
}
