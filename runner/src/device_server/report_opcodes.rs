//! REPORT SUPPORTED OPERATION CODES: SPC-4, 6.35.

use tcmu::scsi::Sense;
use tcmu::scsi::cdb::ReportSupportedOpcodes;
use tcmu::scsi::report_opcodes::{
    CommandDescriptor, NOT_SUPPORTED, ONE_COMMAND_CTDP, OneCommandHeader, RCTD, REPORTING_OPTIONS,
    SUPPORTED, Timeouts,
};
use tcmu_handler::Buffer;
use zerocopy::IntoBytes;

use super::logical_unit::parse;
use super::opcode::Opcode;
use super::opcode_table;
use super::reply::{Answer, parameter_data};
use super::unit::Unit;

impl Unit {
    pub(super) fn report_supported_opcodes(&self, cdb: &[u8], data: Buffer<'_>) -> Answer {
        let command = parse::<ReportSupportedOpcodes>(cdb)?;
        let timeouts = command.options & RCTD != 0;
        let bytes = match command.options & REPORTING_OPTIONS {
            0 => self.all_commands(timeouts),
            option @ 1..=3 => {
                let opcode = command.requested_opcode;
                let action = command.requested_service_action.get();
                one_command(self.requested(option, opcode, action)?, timeouts)
            }
            _ => return Err(Sense::invalid_cdb_field(2, Some(2)).into()),
        };
        let allocation_length = command.allocation_length.get() as usize;
        parameter_data(data, allocation_length, &bytes)
    }

    fn all_commands(&self, timeouts: bool) -> Vec<u8> {
        let mut bytes = vec![0; 4];
        for row in opcode_table::all(self.features()) {
            let descriptor = CommandDescriptor::new(
                row.opcode,
                row.service_action,
                timeouts,
                row.cdb_len.into(),
            );
            bytes.extend_from_slice(descriptor.as_bytes());
            if timeouts {
                bytes.extend_from_slice(timeouts_of(row).as_bytes());
            }
        }
        let len = bytes.len() as u32 - 4;
        bytes[..4].copy_from_slice(&len.to_be_bytes());
        bytes
    }

    /// The command that REPORTING OPTIONS 1 (by opcode), 2 (by opcode and service action) or 3 (by
    /// either) asks for, if it is supported.
    fn requested(
        &self,
        option: u8,
        opcode: u8,
        action: u16,
    ) -> Result<Option<&'static Opcode>, Sense> {
        let mut rows = opcode_table::rows(opcode, self.features()).peekable();
        let Some(first) = rows.peek() else {
            return Ok(None);
        };
        let has_actions = first.service_action.is_some();
        match option {
            1 if has_actions => Err(Sense::invalid_cdb_field(2, Some(2))),
            2 if !has_actions => Err(Sense::invalid_cdb_field(2, Some(2))),
            _ if has_actions => Ok(rows.find(|row| row.service_action == Some(action))),
            // Option 3: a command without service actions is asked for by service action 0.
            3 if action != 0 => Ok(None),
            _ => Ok(rows.next()),
        }
    }
}

fn one_command(row: Option<&Opcode>, timeouts: bool) -> Vec<u8> {
    let Some(row) = row else {
        return OneCommandHeader::new(NOT_SUPPORTED, 0).as_bytes().to_vec();
    };
    let flags = if timeouts { ONE_COMMAND_CTDP } else { 0 };
    let header = OneCommandHeader::new(SUPPORTED | flags, row.cdb_len.into());
    let mut bytes = header.as_bytes().to_vec();
    bytes.extend_from_slice(row.usage());
    if timeouts {
        bytes.extend_from_slice(timeouts_of(row).as_bytes());
    }
    bytes
}

/// How long a command takes depends on the backstore: only a recommendation is given.
fn timeouts_of(row: &Opcode) -> Timeouts {
    Timeouts::new(0, row.timeout)
}
