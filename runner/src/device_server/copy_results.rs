//! What became of copies: RECEIVE COPY STATUS (LID1), OPERATING PARAMETERS and FAILURE DETAILS (LID1),
//! SPC-4, 6.23 to 6.26.
//!
//! TCMU does not say which initiator a command is from, so list identifiers of different initiators
//! are not kept apart: the last copy with an identifier is the one that is reported. It says how much
//! was copied, and no more.

use std::cell::RefCell;
use std::collections::BTreeMap;

use tcmu::scsi::copy::{
    COPY_COMPLETED, COPY_FAILED, COPY_IN_PROGRESS, CopyStatus, FailureDetails, HDD,
    OperatingParameters, ReceiveCopyResults,
};
use tcmu::scsi::opcode::third_party_copy_in::{
    RECEIVE_COPY_FAILURE_DETAILS_LID1, RECEIVE_COPY_OPERATING_PARAMETERS,
};
use tcmu::scsi::sense::SENSE_BUFFER_LEN;
use tcmu::scsi::{Sense, Status};
use tcmu_handler::Buffer;
use zerocopy::IntoBytes;

use super::copy_list::{DESCRIPTOR_TYPES, MAX_CSCDS, MAX_DESCRIPTORS_LEN, MAX_SEGMENTS};
use super::extended_copy::{MAX_CONCURRENT_COPIES, MAX_SEGMENT_LEN};
use super::logical_unit::parse;
use super::reply::{Answer, parameter_data};
use super::unit::Unit;

/// What is known of one copy.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct CopyResults {
    pub(super) ended: bool,
    pub(super) failure: Option<Sense>,
    pub(super) segments: u16,
    /// In bytes.
    pub(super) transferred: u64,
}

/// The copies of a unit, by list identifier: 256 at most.
#[derive(Debug, Default)]
pub(super) struct Copies {
    results: RefCell<BTreeMap<u8, CopyResults>>,
}

impl Copies {
    /// Notes what is known now of the copy with this list identifier.
    pub(super) fn note(&self, list_identifier: Option<u8>, results: CopyResults) {
        if let Some(list_identifier) = list_identifier {
            self.results.borrow_mut().insert(list_identifier, results);
        }
    }

    /// A reset: what was known of copies is forgotten.
    pub(super) fn clear(&self) {
        self.results.borrow_mut().clear();
    }

    fn get(&self, list_identifier: u8) -> Result<CopyResults, Sense> {
        let results = self.results.borrow();
        let found = results.get(&list_identifier).copied();
        found.ok_or(Sense::invalid_cdb_field(2, None))
    }
}

impl Unit {
    pub(super) fn receive_copy_results(&self, cdb: &[u8], data: Buffer<'_>) -> Answer {
        let command = parse::<ReceiveCopyResults>(cdb)?;
        let allocation_length = command.allocation_length.get() as usize;
        let bytes = match u16::from(command.service_action & 0x1f) {
            RECEIVE_COPY_OPERATING_PARAMETERS => operating_parameters(self.block_size()),
            RECEIVE_COPY_FAILURE_DETAILS_LID1 => {
                let results = self.copies.get(command.list_identifier)?;
                // SPC-4, 6.25: there are none without a failure.
                let sense = results.failure.ok_or(Sense::invalid_cdb_field(2, None))?;
                failure_details(&sense, self.mode.get().descriptor_sense)
            }
            _ => status(self.copies.get(command.list_identifier)?)
                .as_bytes()
                .to_vec(),
        };
        parameter_data(data, allocation_length, &bytes)
    }
}

fn status(results: CopyResults) -> CopyStatus {
    let status = match results {
        CopyResults { ended: false, .. } => COPY_IN_PROGRESS,
        CopyResults { failure: None, .. } => COPY_COMPLETED,
        _ => COPY_FAILED,
    };
    let (units, transferred) = transfer_count(results.transferred);
    CopyStatus {
        available: (size_of::<CopyStatus>() as u32 - 4).into(),
        status: HDD | status,
        segments: results.segments.into(),
        units,
        transferred: transferred.into(),
    }
}

/// TRANSFER COUNT UNITS and TRANSFER COUNT: bytes where they fit, otherwise KiB, MiB and so on,
/// rounded down.
fn transfer_count(bytes: u64) -> (u8, u32) {
    let mut count = bytes;
    let mut units = 0;
    loop {
        if let Ok(count) = u32::try_from(count) {
            return (units, count);
        }
        count >>= 10;
        units += 1;
    }
}

fn operating_parameters(block_size: u32) -> Vec<u8> {
    const SNLID: u8 = 0x01;
    let mut parameters = OperatingParameters::new();
    let len = size_of::<OperatingParameters>() + DESCRIPTOR_TYPES.len();
    parameters.available = (len as u32 - 4).into();
    parameters.snlid = SNLID;
    parameters.max_cscds = (MAX_CSCDS as u16).into();
    parameters.max_segments = (MAX_SEGMENTS as u16).into();
    parameters.max_descriptors_length = (MAX_DESCRIPTORS_LEN as u32).into();
    parameters.max_segment_length = MAX_SEGMENT_LEN.into();
    parameters.total_copies = u16::from(MAX_CONCURRENT_COPIES).into();
    parameters.max_copies = MAX_CONCURRENT_COPIES;
    parameters.segment_granularity = block_size.trailing_zeros() as u8;
    parameters.descriptor_types = DESCRIPTOR_TYPES.len() as u8;
    [parameters.as_bytes(), &DESCRIPTOR_TYPES].concat()
}

fn failure_details(sense: &Sense, descriptor: bool) -> Vec<u8> {
    let mut bytes = [0; SENSE_BUFFER_LEN];
    let len = sense.write_to(&mut bytes, descriptor);
    let header = FailureDetails::new(Status::CheckCondition.code(), len as u16);
    [header.as_bytes(), &bytes[..len]].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn large_counts_have_larger_units() {
        assert_eq!(transfer_count(u32::MAX.into()), (0, u32::MAX));
        assert_eq!(transfer_count(1 << 32), (1, 1 << 22));
        assert_eq!(transfer_count(u64::MAX), (4, (1 << 24) - 1));
    }
}
