//! The one table of commands: it drives decoding, the check of reserved bits, dispatch, and REPORT
//! SUPPORTED OPERATION CODES.

use tcmu::scsi::opcode::{
    self as op, maintenance_in, maintenance_out, persistent_reserve_in, persistent_reserve_out,
    sanitize, service_action_in_16, third_party_copy_in, third_party_copy_out, variable_length,
};
use tcmu::scsi::{AdditionalSense, Sense};

use super::opcode::{Command, Features, Needs, Opcode};

/// DPO: a hint that is accepted and not used.
const DPO: u8 = 0x10;
/// DPO and FUA.
const DPO_FUA: u8 = 0x18;
/// BYTCHK.
const BYTCHK: u8 = 0x06;
/// BYTCHK of WRITE AND VERIFY: 0, or 1 to compare bytes.
const BYTCHK_BYTES: u8 = 0x02;
/// IMMED.
const IMMED: u8 = 0x02;
/// UNMAP.
const UNMAP: u8 = 0x08;
/// NDOB.
const NDOB: u8 = 0x01;
/// GROUP NUMBER: a hint that is accepted and not used.
const GROUP: u8 = 0x3f;
/// CONTROL: no auto contingent allegiance, no linked commands, nothing of a vendor's.
const CONTROL: u8 = 0x00;

/// The commands, sorted by opcode.
static OPCODES: &[Opcode] = {
    use Command::*;
    use Needs::*;
    &[
        Opcode::new(TestUnitReady, op::TEST_UNIT_READY, &[0, 0, 0, 0, CONTROL]),
        Opcode::new(
            RequestSense,
            op::REQUEST_SENSE,
            &[0x01, 0, 0, 0xff, CONTROL],
        ),
        Opcode::new(FormatUnit, op::FORMAT_UNIT, &[0x3f, 0, 0, 0, CONTROL]),
        Opcode::new(Read, op::READ_6, &[0x1f, 0xff, 0xff, 0xff, CONTROL]),
        Opcode::new(Write, op::WRITE_6, &[0x1f, 0xff, 0xff, 0xff, CONTROL]),
        Opcode::new(Inquiry, op::INQUIRY, &[0x01, 0xff, 0xff, 0xff, CONTROL]),
        Opcode::new(ModeSelect, op::MODE_SELECT_6, &[0x10, 0, 0, 0xff, CONTROL]),
        Opcode::new(Kernel, op::RESERVE_6, &[0, 0, 0, 0, CONTROL]).needs(Reservations),
        Opcode::new(Kernel, op::RELEASE_6, &[0, 0, 0, 0, CONTROL]).needs(Reservations),
        Opcode::new(
            ModeSense,
            op::MODE_SENSE_6,
            &[0x08, 0xff, 0xff, 0xff, CONTROL],
        ),
        Opcode::new(
            StartStopUnit,
            op::START_STOP_UNIT,
            &[0x01, 0, 0, 0x05, CONTROL],
        ),
        Opcode::new(
            ReceiveDiagnostic,
            op::RECEIVE_DIAGNOSTIC_RESULTS,
            &[0x01, 0xff, 0xff, 0xff, CONTROL],
        ),
        Opcode::new(
            SendDiagnostic,
            op::SEND_DIAGNOSTIC,
            &[0xf7, 0, 0xff, 0xff, CONTROL],
        ),
        Opcode::new(
            ReadCapacity10,
            op::READ_CAPACITY_10,
            &[0, 0xff, 0xff, 0xff, 0xff, 0, 0, 0x01, CONTROL],
        ),
        blocks_10(Read, op::READ_10, DPO_FUA),
        blocks_10(Write, op::WRITE_10, DPO_FUA),
        blocks_10(WriteAndVerify, op::WRITE_AND_VERIFY_10, DPO | BYTCHK_BYTES),
        blocks_10(Verify, op::VERIFY_10, DPO | BYTCHK),
        blocks_10(PreFetch, op::PRE_FETCH_10, IMMED),
        blocks_10(SynchronizeCache, op::SYNCHRONIZE_CACHE_10, IMMED),
        Opcode::new(
            ReadDefectData10,
            op::READ_DEFECT_DATA_10,
            &[0, 0x1f, 0, 0, 0, 0, 0xff, 0xff, CONTROL],
        ),
        blocks_10(WriteSame, op::WRITE_SAME_10, UNMAP).needs(UnmapByWriteSame),
        blocks_10(WriteSame, op::WRITE_SAME_10, 0).needs(NoUnmapByWriteSame),
        Opcode::new(
            Command::Unmap,
            op::UNMAP,
            &[0, 0, 0, 0, 0, GROUP, 0xff, 0xff, CONTROL],
        )
        .needs(Needs::Unmap),
        sanitize(sanitize::OVERWRITE),
        sanitize(sanitize::BLOCK_ERASE).needs(Needs::BlockErase),
        sanitize(sanitize::EXIT_FAILURE_MODE),
        Opcode::new(
            LogSense,
            op::LOG_SENSE,
            &[0, 0xff, 0xff, 0, 0xff, 0xff, 0xff, 0xff, CONTROL],
        ),
        Opcode::new(
            ModeSelect,
            op::MODE_SELECT_10,
            &[0x10, 0, 0, 0, 0, 0, 0xff, 0xff, CONTROL],
        ),
        Opcode::new(
            Kernel,
            op::RESERVE_10,
            &[0, 0, 0, 0, 0, 0, 0xff, 0xff, CONTROL],
        )
        .needs(Reservations),
        Opcode::new(
            Kernel,
            op::RELEASE_10,
            &[0, 0, 0, 0, 0, 0, 0xff, 0xff, CONTROL],
        )
        .needs(Reservations),
        Opcode::new(
            ModeSense,
            op::MODE_SENSE_10,
            &[0x18, 0xff, 0xff, 0, 0, 0, 0xff, 0xff, CONTROL],
        ),
        reserve_in(persistent_reserve_in::READ_KEYS),
        reserve_in(persistent_reserve_in::READ_RESERVATION),
        reserve_in(persistent_reserve_in::REPORT_CAPABILITIES),
        reserve_in(persistent_reserve_in::READ_FULL_STATUS),
        reserve_out(persistent_reserve_out::REGISTER),
        reserve_out(persistent_reserve_out::RESERVE),
        reserve_out(persistent_reserve_out::RELEASE),
        reserve_out(persistent_reserve_out::CLEAR),
        reserve_out(persistent_reserve_out::PREEMPT),
        reserve_out(persistent_reserve_out::PREEMPT_AND_ABORT),
        reserve_out(persistent_reserve_out::REGISTER_AND_IGNORE_EXISTING_KEY),
        reserve_out(persistent_reserve_out::REGISTER_AND_MOVE),
        blocks_32(Read, variable_length::READ_32, DPO_FUA),
        blocks_32(Verify, variable_length::VERIFY_32, DPO | BYTCHK),
        blocks_32(Write, variable_length::WRITE_32, DPO_FUA),
        blocks_32(
            WriteAndVerify,
            variable_length::WRITE_AND_VERIFY_32,
            DPO | BYTCHK_BYTES,
        ),
        blocks_32(WriteSame, variable_length::WRITE_SAME_32, UNMAP | NDOB).needs(UnmapByWriteSame),
        blocks_32(WriteSame, variable_length::WRITE_SAME_32, NDOB).needs(NoUnmapByWriteSame),
        Opcode::new(
            GetLbaStatus,
            op::VARIABLE_LENGTH,
            &[
                CONTROL, 0, 0, 0, 0, 0, 0x18, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff,
                0xff, 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff,
            ],
        )
        .action(variable_length::GET_LBA_STATUS_32),
        third_party_copy(ExtendedCopy, op::THIRD_PARTY_COPY_OUT, 0)
            .action(third_party_copy_out::EXTENDED_COPY_LID1),
        third_party_copy(ReceiveCopyResults, op::THIRD_PARTY_COPY_IN, 0xff)
            .action(third_party_copy_in::RECEIVE_COPY_STATUS_LID1),
        third_party_copy(ReceiveCopyResults, op::THIRD_PARTY_COPY_IN, 0xff)
            .action(third_party_copy_in::RECEIVE_COPY_OPERATING_PARAMETERS),
        third_party_copy(ReceiveCopyResults, op::THIRD_PARTY_COPY_IN, 0xff)
            .action(third_party_copy_in::RECEIVE_COPY_FAILURE_DETAILS_LID1),
        blocks_16(Read, op::READ_16, DPO_FUA),
        Opcode::new(
            CompareAndWrite,
            op::COMPARE_AND_WRITE,
            &[
                DPO_FUA, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0xff, GROUP,
                CONTROL,
            ],
        ),
        blocks_16(Write, op::WRITE_16, DPO_FUA),
        blocks_16(OrWrite, op::ORWRITE_16, DPO_FUA),
        blocks_16(WriteAndVerify, op::WRITE_AND_VERIFY_16, DPO | BYTCHK_BYTES),
        blocks_16(Verify, op::VERIFY_16, DPO | BYTCHK),
        blocks_16(PreFetch, op::PRE_FETCH_16, IMMED),
        blocks_16(SynchronizeCache, op::SYNCHRONIZE_CACHE_16, IMMED),
        blocks_16(WriteSame, op::WRITE_SAME_16, UNMAP | NDOB).needs(UnmapByWriteSame),
        blocks_16(WriteSame, op::WRITE_SAME_16, NDOB).needs(NoUnmapByWriteSame),
        // Without ATOMIC BOUNDARY.
        Opcode::new(
            WriteAtomic,
            op::WRITE_ATOMIC_16,
            &[
                DPO_FUA, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0, 0xff, 0xff, GROUP,
                CONTROL,
            ],
        )
        .needs(AtomicWrites),
        Opcode::new(
            ReadCapacity16,
            op::SERVICE_ACTION_IN_16,
            &[
                0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01,
                CONTROL,
            ],
        )
        .action(service_action_in_16::READ_CAPACITY_16),
        // REPORT TYPE 0 only: all blocks.
        Opcode::new(
            GetLbaStatus,
            op::SERVICE_ACTION_IN_16,
            &[
                0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0,
                CONTROL,
            ],
        )
        .action(service_action_in_16::GET_LBA_STATUS_16),
        Opcode::new(
            Kernel,
            op::REPORT_LUNS,
            &[0, 0xff, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0, CONTROL],
        ),
        Opcode::new(
            ReportTargetPortGroups,
            op::MAINTENANCE_IN,
            &[0x20, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0, CONTROL],
        )
        .action(maintenance_in::REPORT_TARGET_PORT_GROUPS)
        .needs(PortGroups),
        Opcode::new(
            ReportSupportedOpcodes,
            op::MAINTENANCE_IN,
            &[
                0, 0x87, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, CONTROL,
            ],
        )
        .action(maintenance_in::REPORT_SUPPORTED_OPERATION_CODES),
        Opcode::new(
            ReportTaskManagement,
            op::MAINTENANCE_IN,
            &[0, 0x80, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0, CONTROL],
        )
        .action(maintenance_in::REPORT_SUPPORTED_TASK_MANAGEMENT_FUNCTIONS),
        Opcode::new(
            SetTargetPortGroups,
            op::MAINTENANCE_OUT,
            &[0, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0, CONTROL],
        )
        .action(maintenance_out::SET_TARGET_PORT_GROUPS)
        .needs(ExplicitPortGroups),
        blocks_12(Read, op::READ_12, DPO_FUA),
        blocks_12(Write, op::WRITE_12, DPO_FUA),
        blocks_12(WriteAndVerify, op::WRITE_AND_VERIFY_12, DPO | BYTCHK_BYTES),
        blocks_12(Verify, op::VERIFY_12, DPO | BYTCHK),
        Opcode::new(
            ReadDefectData12,
            op::READ_DEFECT_DATA_12,
            &[
                0x1f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, CONTROL,
            ],
        ),
    ]
};

/// A command on a range of blocks, with `flags` in byte 1.
const fn blocks_10(command: Command, opcode: u8, flags: u8) -> Opcode {
    let usage = &[flags, 0xff, 0xff, 0xff, 0xff, GROUP, 0xff, 0xff, CONTROL];
    Opcode::new(command, opcode, usage)
}

/// The same with a longer transfer length.
const fn blocks_12(command: Command, opcode: u8, flags: u8) -> Opcode {
    let usage = &[
        flags, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, GROUP, CONTROL,
    ];
    Opcode::new(command, opcode, usage)
}

/// The same with a longer address, too.
const fn blocks_16(command: Command, opcode: u8, flags: u8) -> Opcode {
    let usage = &[
        flags, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, GROUP,
        CONTROL,
    ];
    Opcode::new(command, opcode, usage)
}

/// The same with `flags` in byte 10, and tags of protection information, which are not looked at
/// where there is none. (SBC-3 wants these commands only where there is type 2 protection; Linux's
/// targets take them anyway.)
const fn blocks_32(command: Command, service_action: u16, flags: u8) -> Opcode {
    let usage = &[
        CONTROL, 0, 0, 0, 0, GROUP, 0x18, 0, 0, flags, 0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff,
        0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff,
    ];
    Opcode::new(command, op::VARIABLE_LENGTH, usage).action(service_action)
}

const fn reserve_in(service_action: u16) -> Opcode {
    let usage = &[0, 0, 0, 0, 0, 0, 0xff, 0xff, CONTROL];
    Opcode::new(Command::Kernel, op::PERSISTENT_RESERVE_IN, usage)
        .action(service_action)
        .needs(Needs::Reservations)
}

const fn reserve_out(service_action: u16) -> Opcode {
    let usage = &[0, 0xff, 0, 0, 0xff, 0xff, 0xff, 0xff, CONTROL];
    Opcode::new(Command::Kernel, op::PERSISTENT_RESERVE_OUT, usage)
        .action(service_action)
        .needs(Needs::Reservations)
}

/// IMMED and AUSE; byte 1 also holds the service action.
const fn sanitize(service_action: u16) -> Opcode {
    let usage = &[0xa0, 0, 0, 0, 0, 0, 0xff, 0xff, CONTROL];
    Opcode::new(Command::Sanitize, op::SANITIZE, usage).action(service_action)
}

const fn third_party_copy(command: Command, opcode: u8, list_identifier: u8) -> Opcode {
    let usage = &[
        0,
        list_identifier,
        0,
        0,
        0,
        0,
        0,
        0,
        0,
        0xff,
        0xff,
        0xff,
        0xff,
        0,
        CONTROL,
    ];
    Opcode::new(command, opcode, usage)
}

/// Where the rows of each opcode begin in [`OPCODES`]; its length for opcodes without any.
static FIRST_ROW: [u8; 256] = {
    let mut first = [OPCODES.len() as u8; 256];
    let mut row = OPCODES.len();
    while row > 0 {
        row -= 1;
        first[OPCODES[row].opcode as usize] = row as u8;
    }
    first
};

/// The supported commands with this opcode.
pub(super) fn rows(opcode: u8, features: Features) -> impl Iterator<Item = &'static Opcode> {
    OPCODES[FIRST_ROW[usize::from(opcode)].into()..]
        .iter()
        .take_while(move |row| row.opcode == opcode)
        .filter(move |row| row.is_supported(features))
}

/// All supported commands.
pub(super) fn all(features: Features) -> impl Iterator<Item = &'static Opcode> {
    OPCODES.iter().filter(move |row| row.is_supported(features))
}

/// The command that `cdb` asks for.
///
/// # Errors
/// INVALID COMMAND OPERATION CODE, or INVALID FIELD IN CDB that points at a service action.
pub(super) fn find(cdb: &[u8], features: Features) -> Result<&'static Opcode, Sense> {
    let opcode = cdb.first().copied().unwrap_or_default();
    let mut known = false;
    for row in rows(opcode, features) {
        known = true;
        let requested = match row.service_action {
            None => return Ok(row),
            Some(_) => service_action(opcode, cdb),
        };
        if requested == row.service_action {
            return Ok(row);
        }
    }
    Err(match (known, opcode) {
        (false, _) => Sense::illegal_request(AdditionalSense::INVALID_COMMAND_OPERATION_CODE),
        (true, op::VARIABLE_LENGTH) => Sense::invalid_cdb_field(8, Some(7)),
        (true, _) => Sense::invalid_cdb_field(1, Some(4)),
    })
}

/// The service action of a command that has one.
fn service_action(opcode: u8, cdb: &[u8]) -> Option<u16> {
    if opcode == op::VARIABLE_LENGTH {
        let bytes = cdb.get(8..10)?;
        Some(u16::from_be_bytes([bytes[0], bytes[1]]))
    } else {
        cdb.get(1).map(|byte| u16::from(byte & 0x1f))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EVERYTHING: Features = Features {
        unmap: true,
        unmap_by_write_same: true,
        atomic_writes: true,
        block_erase: true,
        reservations: true,
        report_port_groups: true,
        set_port_groups: true,
        own_type: false,
    };

    #[test]
    fn rows_are_sorted_and_have_the_length_of_their_group() {
        const BY_GROUP: [u8; 8] = [6, 10, 10, 32, 16, 12, 10, 10];
        assert!(OPCODES.is_sorted_by_key(|row| row.opcode));
        for row in OPCODES {
            let expected = BY_GROUP[usize::from(row.opcode >> 5)];
            assert_eq!(row.cdb_len, expected, "{row:?}");
        }
    }

    #[test]
    fn no_two_supported_rows_are_the_same_command() {
        for features in [Features::default(), EVERYTHING] {
            let mut names: Vec<_> = all(features)
                .map(|row| (row.opcode, row.service_action))
                .collect();
            let count = names.len();
            names.dedup();
            assert_eq!(names.len(), count);
            assert!(
                names
                    .iter()
                    .all(|&(opcode, action)| { find(&usage_of(opcode, action), features).is_ok() })
            );
        }
    }

    fn usage_of(opcode: u8, action: Option<u16>) -> Vec<u8> {
        rows(opcode, EVERYTHING)
            .find(|row| row.service_action == action)
            .unwrap()
            .usage()
            .to_vec()
    }

    #[test]
    fn every_unused_bit_is_refused_and_pointed_at() {
        for row in all(EVERYTHING) {
            assert!(row.check(row.usage()).is_ok(), "{row:?}");
            for at in 1..row.usage().len() {
                for bit in 0..8 {
                    let mut cdb = row.usage().to_vec();
                    if cdb[at] & 1 << bit != 0 {
                        continue;
                    }
                    cdb[at] |= 1 << bit;
                    let action_changed = find(&cdb, EVERYTHING)
                        .map(|found| !std::ptr::eq(found, row))
                        .unwrap_or(true);
                    if action_changed {
                        continue;
                    }
                    let bit = (row.opcode != op::VARIABLE_LENGTH || at != 7).then_some(bit);
                    assert_eq!(
                        row.check(&cdb),
                        Err(Sense::invalid_cdb_field(at as u16, bit)),
                        "{row:?}"
                    );
                }
            }
        }
    }

    #[test]
    fn a_cdb_that_ends_too_soon_is_refused() {
        for row in all(EVERYTHING) {
            for len in 0..row.usage().len() {
                assert!(row.check(&row.usage()[..len]).is_err());
            }
        }
        assert!(find(&[], EVERYTHING).is_ok_and(|row| row.check(&[]).is_err()));
    }

    #[test]
    fn unknown_service_actions_are_pointed_at() {
        let read_long = [0x9e, 0x11, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        assert_eq!(
            find(&read_long, EVERYTHING).err(),
            Some(Sense::invalid_cdb_field(1, Some(4)))
        );
        assert_eq!(
            find(&[0x7f, 0, 0, 0, 0, 0, 0, 24, 0xff, 0xff], EVERYTHING).err(),
            Some(Sense::invalid_cdb_field(8, Some(7)))
        );
    }
}
