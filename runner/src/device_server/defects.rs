//! READ DEFECT DATA (10) and (12): SBC-3, 5.17 and 5.18. There are no defects: whatever is below the
//! backstore deals with its own.

use tcmu::scsi::cdb::{ReadDefectData10, ReadDefectData12};
use tcmu::scsi::defects::{DefectHeader10, DefectHeader12};
use tcmu_handler::Buffer;
use zerocopy::IntoBytes;

use super::logical_unit::parse;
use super::reply::{Answer, parameter_data};

/// The lists that are asked for, empty, in the format that is asked for.
pub(super) fn read_defect_data_10(cdb: &[u8], data: Buffer<'_>) -> Answer {
    let command = parse::<ReadDefectData10>(cdb)?;
    let allocation_length = command.allocation_length.get().into();
    let header = DefectHeader10::empty(command.lists);
    parameter_data(data, allocation_length, header.as_bytes())
}

/// The lists that are asked for, empty, in the format that is asked for; whichever descriptor they
/// are to begin with.
pub(super) fn read_defect_data_12(cdb: &[u8], data: Buffer<'_>) -> Answer {
    let command = parse::<ReadDefectData12>(cdb)?;
    let allocation_length = command.allocation_length.get() as usize;
    let header = DefectHeader12::empty(command.lists);
    parameter_data(data, allocation_length, header.as_bytes())
}
