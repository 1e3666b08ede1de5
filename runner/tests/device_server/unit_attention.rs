//! Unit attention conditions.

use tcmu::scsi::{AdditionalSense, SenseKey};
use tcmu_handler::testing;
use tcmu_runner::device_server::Identity;

use crate::disk::everything;
use crate::target::{BLOCK, Target, assert_good, assert_illegal, assert_sense, cdb};

const TEST_UNIT_READY: [u8; 6] = [0; 6];
const INQUIRY: [u8; 6] = [0x12, 0, 0, 0, 96, 0];

fn grow(target: &Target, size: u64) {
    target.disk().capabilities.set(everything(size));
    target.unit.set_size(size);
}

#[test]
fn none_is_raised_at_the_start() {
    assert_good(Target::new().no_data(&TEST_UNIT_READY));
}

#[test]
fn a_new_capacity_is_reported_once() {
    let target = Target::new();
    grow(&target, 4 << 20);
    // Whichever command comes first; it does nothing else.
    let response = target.data_out(&cdb::ten(0x2a, 0, 0, 1), &[1; BLOCK]);
    assert_sense(
        response,
        SenseKey::UnitAttention,
        AdditionalSense::CAPACITY_DATA_HAS_CHANGED,
    );
    assert_eq!(target.calls(), []);
    assert_good(target.no_data(&TEST_UNIT_READY));
    let capacity = target.parameters(&[0x25, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(capacity[..4], (8192u32 - 1).to_be_bytes());
    // The same size again is no change.
    target.unit.set_size(4 << 20);
    assert_good(target.no_data(&TEST_UNIT_READY));
}

#[test]
fn inquiry_neither_reports_nor_clears() {
    let target = Target::new();
    grow(&target, 4 << 20);
    assert_good(target.data_in(&INQUIRY, 96).0);
    assert_sense(
        target.no_data(&TEST_UNIT_READY),
        SenseKey::UnitAttention,
        AdditionalSense::CAPACITY_DATA_HAS_CHANGED,
    );
}

#[test]
fn an_unknown_command_does_not_clear() {
    let target = Target::new();
    grow(&target, 4 << 20);
    let unknown = target.no_data(&[0xc0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    assert_illegal(unknown, AdditionalSense::INVALID_COMMAND_OPERATION_CODE);
    assert_sense(
        target.no_data(&TEST_UNIT_READY),
        SenseKey::UnitAttention,
        AdditionalSense::CAPACITY_DATA_HAS_CHANGED,
    );
}

#[test]
fn request_sense_reports_as_data_and_clears() {
    let target = Target::new();
    grow(&target, 4 << 20);
    let fixed = target.parameters(&[0x03, 0, 0, 0, 18, 0]);
    assert_eq!((fixed[2], fixed[12], fixed[13]), (0x06, 0x2a, 0x09));
    assert_good(target.no_data(&TEST_UNIT_READY));
    grow(&target, 2 << 20);
    let descriptor = target.parameters(&[0x03, 1, 0, 0, 18, 0]);
    assert_eq!(descriptor[..4], [0x72, 0x06, 0x2a, 0x09]);
}

#[test]
fn a_change_of_the_write_cache_from_outside_is_reported() {
    let target = Target::new();
    let set = |enabled| {
        testing::block_on(target.unit.set_write_cache(&target.io, enabled)).unwrap();
    };
    set(true);
    assert_good(target.no_data(&TEST_UNIT_READY));
    set(false);
    assert_sense(
        target.no_data(&TEST_UNIT_READY),
        SenseKey::UnitAttention,
        AdditionalSense::MODE_PARAMETERS_CHANGED,
    );
    assert_good(target.no_data(&TEST_UNIT_READY));
}

#[test]
fn another_identity_is_reported_to_those_who_know_the_old_one() {
    let target = Target::new();
    let identity = |serial: &str| Identity {
        serial: serial.to_owned(),
        ..Identity::default()
    };
    target.unit.set_identity(identity("1"));
    assert_good(target.no_data(&TEST_UNIT_READY));
    assert_good(target.data_in(&INQUIRY, 96).0);
    target.unit.set_identity(identity("1"));
    assert_good(target.no_data(&TEST_UNIT_READY));
    target.unit.set_identity(identity("2"));
    assert_sense(
        target.no_data(&TEST_UNIT_READY),
        SenseKey::UnitAttention,
        AdditionalSense::INQUIRY_DATA_HAS_CHANGED,
    );
}

#[test]
fn a_unit_that_was_offline_says_that_it_is_ready_again() {
    let offline = Target::new();
    offline.unit.take_offline();
    for _ in 0..2 {
        assert_sense(
            offline.no_data(&TEST_UNIT_READY),
            SenseKey::NotReady,
            AdditionalSense::MANUAL_INTERVENTION_REQUIRED,
        );
    }
    let ready = Target::new();
    ready.unit.became_ready();
    // Before anything else that has changed.
    grow(&ready, 4 << 20);
    for code in [
        AdditionalSense::NOT_READY_TO_READY_CHANGE,
        AdditionalSense::CAPACITY_DATA_HAS_CHANGED,
    ] {
        assert_sense(
            ready.no_data(&TEST_UNIT_READY),
            SenseKey::UnitAttention,
            code,
        );
    }
    assert_good(ready.no_data(&TEST_UNIT_READY));
}
