//! SEND DIAGNOSTIC and RECEIVE DIAGNOSTIC RESULTS.

use tcmu::scsi::{AdditionalSense, SenseKey};
use tcmu_handler::{ErrorKind, Extent};

use crate::disk::{Call, Kind};
use crate::target::{BLOCK, BLOCKS, Target, assert_good, assert_illegal, assert_sense};

const SELFTEST: u8 = 0x04;
const PF: u8 = 0x10;

fn send(flags: u8, len: u8) -> [u8; 6] {
    [0x1d, flags, 0, 0, len, 0]
}

#[test]
fn a_self_test_reads_the_medium() {
    let target = Target::new();
    let block = |lba: u64| {
        Call::Read(Extent {
            offset: lba * BLOCK as u64,
            len: BLOCK as u64,
        })
    };
    for flags in [SELFTEST, 0b101 << 5, 0b110 << 5, SELFTEST | 3] {
        assert_good(target.no_data(&send(flags, 0)));
        assert_eq!(target.calls(), [block(0), block(BLOCKS - 1)]);
    }
    target.disk().fail(Kind::Read, ErrorKind::Gone);
    assert_sense(
        target.no_data(&send(SELFTEST, 0)),
        SenseKey::HardwareError,
        AdditionalSense::LOGICAL_UNIT_FAILED_SELF_TEST,
    );
}

#[test]
fn nothing_is_tested_unless_asked_for() {
    let target = Target::new();
    assert_good(target.no_data(&send(0, 0)));
    assert_good(target.data_out(&send(PF, 4), &[0; 4]));
    assert_eq!(target.calls(), []);
}

#[test]
fn bad_requests_are_refused() {
    let target = Target::new();
    let in_cdb = AdditionalSense::INVALID_FIELD_IN_CDB;
    let in_list = AdditionalSense::INVALID_FIELD_IN_PARAMETER_LIST;
    let length = AdditionalSense::PARAMETER_LIST_LENGTH_ERROR;
    // Self-tests in the background, one with SELFTEST as well, one with a list.
    for cdb in [
        send(0b001 << 5, 0),
        send(0b100 << 5, 0),
        send(SELFTEST | 0b101 << 5, 0),
        send(SELFTEST, 4),
        send(0, 4),
    ] {
        assert_illegal(target.data_out(&cdb, &[0; 4]), in_cdb);
    }
    for (list, code) in [
        (&[0x80, 0, 0, 0][..], in_list),
        (&[0, 0, 0, 1], in_list),
        (&[0, 0, 0], length),
        (&[0, 0, 0, 0, 0], length),
    ] {
        assert_illegal(target.data_out(&send(PF, list.len() as u8), list), code);
    }
    assert_illegal(target.data_out(&send(PF, 8), &[0; 4]), length);
}

#[test]
fn the_only_page_lists_itself() {
    let target = Target::new();
    for flags in [0, 1] {
        let page = target.parameters(&[0x1c, flags, 0, 0, 255, 0]);
        assert_eq!(page, [0, 0, 0, 1, 0]);
    }
    let (response, _) = target.data_in(&[0x1c, 1, 0x80, 0, 255, 0], 255);
    assert_illegal(response, AdditionalSense::INVALID_FIELD_IN_CDB);
}
