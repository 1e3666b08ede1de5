//! REPORT SUPPORTED OPERATION CODES, and that it tells the truth.

use std::collections::BTreeSet;

use tcmu::scsi::{AdditionalSense, Status};
use tcmu_handler::{Capabilities, testing};

use crate::target::{Target, assert_illegal};

fn report(options: u8, opcode: u8, action: u16) -> [u8; 12] {
    let mut cdb = [0; 12];
    cdb[0] = 0xa3;
    cdb[1] = 0x0c;
    cdb[2] = options;
    cdb[3] = opcode;
    cdb[4..6].copy_from_slice(&action.to_be_bytes());
    cdb[6..10].copy_from_slice(&4096u32.to_be_bytes());
    cdb
}

/// Opcode, service action and CDB length of every supported command.
pub(crate) fn supported(target: &Target) -> Vec<(u8, Option<u16>, usize)> {
    let data = target.parameters(&report(0, 0, 0));
    let len = u32::from_be_bytes(data[..4].try_into().unwrap()) as usize;
    assert_eq!(data.len(), len + 4);
    data[4..]
        .chunks_exact(8)
        .map(|descriptor| {
            let action = u16::from_be_bytes([descriptor[2], descriptor[3]]);
            let has_action = descriptor[5] & 1 != 0;
            let len = u16::from_be_bytes([descriptor[6], descriptor[7]]);
            (descriptor[0], has_action.then_some(action), len.into())
        })
        .collect()
}

/// CDB USAGE DATA of one command.
pub(crate) fn usage(target: &Target, opcode: u8, action: Option<u16>) -> Vec<u8> {
    let option = if action.is_some() { 2 } else { 1 };
    let data = target.parameters(&report(option, opcode, action.unwrap_or(0)));
    assert_eq!(data[1], 3, "{opcode:x} is not supported");
    assert_eq!(data.len() - 4, usize::from(data[3]));
    data[4..].to_vec()
}

/// Commands that the target core answers.
fn is_the_kernels(opcode: u8) -> bool {
    [0x16, 0x17, 0x56, 0x57, 0x5e, 0x5f, 0xa0].contains(&opcode)
}

#[test]
fn what_is_reported_is_what_there_is() {
    let plain = Target::with(Capabilities::new(1 << 20), false);
    for target in [Target::new(), plain] {
        let reported: BTreeSet<u8> = supported(&target)
            .into_iter()
            .map(|(opcode, ..)| opcode)
            .filter(|&opcode| !is_the_kernels(opcode))
            .collect();
        let executed: BTreeSet<u8> = (0..=255)
            .filter(|&opcode| {
                let mut cdb = [0; 32];
                cdb[0] = opcode;
                let code = target
                    .run(&cdb, &testing::buffer(512))
                    .sense
                    .map(|sense| sense.code);
                code != Some(AdditionalSense::INVALID_COMMAND_OPERATION_CODE)
            })
            .collect();
        assert_eq!(reported, executed);
    }
}

#[test]
fn usage_data_are_the_bits_that_are_accepted() {
    let target = Target::new();
    let commands = supported(&target);
    let is_command = |opcode, action| {
        commands
            .iter()
            .any(|row| (row.0, row.1) == (opcode, action))
    };
    for &(opcode, action, len) in &commands {
        let usage = usage(&target, opcode, action);
        assert_eq!((usage.len(), usage[0]), (len, opcode));
        if is_the_kernels(opcode) {
            continue;
        }
        for at in 1..len {
            // Another service action of 16 bits is another command.
            if opcode == 0x7f && (8..10).contains(&at) {
                continue;
            }
            for bit in 0..8 {
                if usage[at] & 1 << bit != 0 {
                    continue;
                }
                let mut cdb = vec![0; len];
                cdb[0] = opcode;
                if opcode == 0x7f {
                    cdb[7..10].copy_from_slice(&usage[7..10]);
                } else if action.is_some() {
                    cdb[1] = usage[1];
                }
                cdb[at] |= 1 << bit;
                if at == 1 && is_command(opcode, Some((cdb[1] & 0x1f).into())) {
                    continue;
                }
                let response = target.run(&cdb, &testing::buffer(512));
                assert_illegal(response, AdditionalSense::INVALID_FIELD_IN_CDB);
            }
        }
    }
}

#[test]
fn the_reporting_options() {
    let target = Target::new();
    let support = |option, opcode, action| target.parameters(&report(option, opcode, action))[1];
    // READ (10) has no service action, READ CAPACITY (16) is one, READ LONG (16) is not there.
    assert_eq!(support(1, 0x28, 0), 3);
    assert_eq!(support(3, 0x28, 0), 3);
    assert_eq!(support(3, 0x28, 1), 1);
    assert_eq!(support(2, 0x9e, 0x10), 3);
    assert_eq!(support(3, 0x9e, 0x10), 3);
    assert_eq!(support(2, 0x9e, 0x11), 1);
    assert_eq!(support(2, 0x7f, 0x09), 3);
    for option in 1..=3 {
        assert_eq!(support(option, 0xc0, 0), 1);
        assert_eq!(target.parameters(&report(option, 0xc0, 0)).len(), 4);
    }
    for (option, opcode) in [(1, 0x9e), (2, 0x28), (4, 0), (7, 0)] {
        let (response, _) = target.data_in(&report(option, opcode, 0), 64);
        assert_illegal(response, AdditionalSense::INVALID_FIELD_IN_CDB);
    }
}

#[test]
fn timeouts_come_on_request() {
    let target = Target::new();
    let data = target.parameters(&report(0x81, 0x28, 0));
    assert_eq!(data[1], 0x83);
    assert_eq!(data.len(), 4 + 10 + 12);
    assert_eq!(data[14..18], [0, 10, 0, 0]);
    assert_eq!(data[22..26], 30u32.to_be_bytes());
    let all = target.parameters(&report(0x80, 0, 0));
    assert_eq!(all[4 + 5] & 2, 2);
    assert_eq!(all.len(), 4 + supported(&target).len() * 20);
}

#[test]
fn commands_depend_on_the_backstore() {
    let has = |target: &Target, opcode| supported(target).iter().any(|row| row.0 == opcode);
    let plain = Target::with(Capabilities::new(1 << 20), false);
    assert!(!has(&plain, 0x42));
    assert_eq!(usage(&plain, 0x93, None)[1], 0x01);
    assert_eq!(usage(&plain, 0x41, None)[1], 0x00);
    let full = Target::new();
    assert!(has(&full, 0x42));
    assert_eq!(usage(&full, 0x93, None)[1], 0x09);
    assert_eq!(usage(&full, 0x41, None)[1], 0x08);
}

#[test]
fn reservations_are_claimed_if_the_kernel_serves_them() {
    let target = Target::new();
    let reservations = [0x16, 0x17, 0x56, 0x57, 0x5e, 0x5f];
    let has = |opcode| supported(&target).iter().any(|row| row.0 == opcode);
    assert!(reservations.into_iter().all(has));
    target.unit.set_reservations(false);
    assert!(!reservations.into_iter().any(has));
    assert!(has(0xa0));
}

#[test]
fn task_management_functions_are_those_of_the_target_core() {
    let target = Target::new();
    let report = |repd: u8, len: u8| [0xa3, 0x0d, repd, 0, 0, 0, 0, 0, 0, len, 0, 0];
    // ABORT TASK and LOGICAL UNIT RESET.
    assert_eq!(target.parameters(&report(0, 4)), [0x88, 0, 0, 0]);
    let extended = target.parameters(&report(0x80, 255));
    assert_eq!(extended, [&[0x88, 0, 0, 12], &[0; 12][..]].concat());
    for cdb in [report(0, 3), report(0x80, 15)] {
        let (response, _) = target.data_in(&cdb, 255);
        assert_illegal(response, AdditionalSense::INVALID_FIELD_IN_CDB);
    }
}

#[test]
fn vendor_commands_are_answered() {
    let target = Target::new();
    for opcode in 0xc0..=0xff {
        let mut cdb = [0xff; 16];
        cdb[0] = opcode;
        let response = target.no_data(&cdb);
        assert_eq!(response.status, Status::CheckCondition);
        assert_illegal(response, AdditionalSense::INVALID_COMMAND_OPERATION_CODE);
    }
}
