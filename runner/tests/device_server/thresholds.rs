//! Logical block provisioning thresholds.

use tcmu::scsi::{AdditionalSense, SenseKey};
use tcmu_handler::{Capabilities, Usage};

use crate::disk::everything;
use crate::target::{BLOCK, Target, assert_good, assert_illegal, assert_sense, cdb};

const MIB: u64 = 1 << 20;
const LOG_PAGE: [u8; 10] = [0x4d, 0, 0x4c, 0, 0, 0, 0, 0, 255, 0];
const MODE_PAGE: [u8; 6] = [0x1a, 8, 0x1c, 2, 255, 0];

fn thin() -> Target {
    let mut capabilities = everything(MIB);
    capabilities.usage = true;
    Target::with(capabilities, true)
}

fn set_usage(target: &Target, used: u64, available: u64) {
    target.disk().usage.set(Usage {
        used: used * MIB,
        available: available * MIB,
    });
}

/// Sets both thresholds: enabled or not, and the count.
fn select(target: &Target, available: (u8, u8), used: (u8, u8)) {
    let mut page = target.parameters(&MODE_PAGE)[4..].to_vec();
    for (at, (enabled, count)) in [(16, available), (24, used)] {
        page[at] = page[at] & 0x7f | enabled << 7;
        page[at + 7] = count;
    }
    let list = [&[0; 8], page.as_slice()].concat();
    assert_good(target.data_out(&cdb::ten(0x55, 0x10, 0, list.len() as u16), &list));
    assert_eq!(target.parameters(&MODE_PAGE)[4..], page);
}

/// Writes until the usage must have been looked at. Returns whether that was reported.
fn write_a_lot(target: &Target) -> bool {
    for _ in 0..200 {
        let response = target.data_out(&cdb::ten(0x2a, 0, 0, 1), &[1; BLOCK]);
        if response.sense.is_some() {
            assert_sense(
                response,
                SenseKey::UnitAttention,
                AdditionalSense::THIN_PROVISIONING_SOFT_THRESHOLD_REACHED,
            );
            return true;
        }
    }
    false
}

#[test]
fn resources_are_counted_in_threshold_sets() {
    let target = thin();
    set_usage(&target, 3, 700);
    assert_eq!(target.parameters(&[0x12, 1, 0xb2, 0, 255, 0])[4], 11);
    let available = [0, 1, 3, 8, 0, 0, 2, 188, 2, 0, 0, 0];
    let used = [0, 2, 3, 8, 0, 0, 0, 3, 1, 0, 0, 0];
    let page = target.parameters(&LOG_PAGE);
    assert_eq!(page, [&[0x0c, 0, 0, 24][..], &available, &used].concat());
    let mut from_used = LOG_PAGE;
    from_used[6] = 2;
    let page = target.parameters(&from_used);
    assert_eq!(page, [&[0x0c, 0, 0, 12][..], &used].concat());
    from_used[6] = 3;
    let (response, _) = target.data_in(&from_used, 255);
    assert_illegal(response, AdditionalSense::INVALID_FIELD_IN_CDB);
    assert!(
        target
            .parameters(&[0x4d, 0, 0x40, 0, 0, 0, 0, 0, 255, 0])
            .contains(&0x0c)
    );
}

#[test]
fn large_units_have_larger_sets() {
    let mut capabilities = Capabilities::new(0);
    capabilities.usage = true;
    capabilities.unmap = everything(0).unmap;
    let target = Target::with(capabilities, true);
    let exponent = |size: u64| {
        let mut capabilities = capabilities;
        capabilities.size = size;
        target.disk().capabilities.set(capabilities);
        target.unit.set_size(size);
        target.parameters(&[0x12, 1, 0xb2, 0, 255, 0])[4]
    };
    assert_eq!(exponent(1 << 52), 12);
    assert_eq!(exponent((1 << 52) - 512), 11);
    assert_eq!(exponent(512), 11);
}

#[test]
fn a_threshold_is_reported_when_it_is_reached() {
    let target = thin();
    set_usage(&target, 10, 100);
    assert!(!write_a_lot(&target), "none is enabled");
    select(&target, (1, 50), (1, 20));
    assert!(!write_a_lot(&target));
    set_usage(&target, 60, 50);
    assert!(write_a_lot(&target));
    assert!(!write_a_lot(&target), "it was reported already");
    set_usage(&target, 10, 100);
    assert!(!write_a_lot(&target));
    set_usage(&target, 20, 90);
    assert!(write_a_lot(&target), "it was not reached in between");
    select(&target, (0, 50), (0, 20));
    set_usage(&target, 60, 10);
    assert!(!write_a_lot(&target));
}

#[test]
fn one_that_is_reached_already_is_reported_at_once() {
    let target = thin();
    set_usage(&target, 60, 50);
    select(&target, (1, 50), (0, 0));
    assert_good(target.data_out(&cdb::ten(0x2a, 0, 0, 1), &[1; BLOCK]));
    assert!(write_a_lot(&target));
}

#[test]
fn nothing_is_claimed_without_the_backstores_word() {
    let target = Target::new();
    assert_eq!(target.parameters(&[0x12, 1, 0xb2, 0, 255, 0])[4], 0);
    for cdb in [&LOG_PAGE[..], &MODE_PAGE] {
        let (response, _) = target.data_in(cdb, 255);
        assert_illegal(response, AdditionalSense::INVALID_FIELD_IN_CDB);
    }
}
