//! REPORT SUPPORTED TASK MANAGEMENT FUNCTIONS: SPC-4, 6.36.

use tcmu::scsi::Sense;
use tcmu::scsi::cdb::Maintenance;
use tcmu::scsi::task_management::{ATS, LURS, REPD, TaskManagementFunctions};
use tcmu_handler::Buffer;
use zerocopy::IntoBytes;

use super::logical_unit::parse;
use super::reply::{Answer, parameter_data};
use super::unit::Unit;

impl Unit {
    /// The functions are the target core's (`target_tmr_work` in target_core_transport.c): it rejects
    /// all others.
    pub(super) fn report_task_management(&self, cdb: &[u8], data: Buffer<'_>) -> Answer {
        let command = parse::<Maintenance>(cdb)?;
        let extended = command.flags & REPD != 0;
        let functions = TaskManagementFunctions::new(ATS | LURS, extended);
        let bytes = if extended {
            functions.as_bytes()
        } else {
            &functions.as_bytes()[..TaskManagementFunctions::BASIC_LEN]
        };
        let allocation_length = command.length.get() as usize;
        if allocation_length < bytes.len() {
            return Err(Sense::invalid_cdb_field(6, None).into());
        }
        parameter_data(data, allocation_length, bytes)
    }
}
