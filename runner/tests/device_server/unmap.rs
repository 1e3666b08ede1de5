//! UNMAP.

use tcmu::scsi::{AdditionalSense, SenseKey};
use tcmu_handler::{ErrorKind, Extent};

use crate::disk::{Call, Kind, everything};
use crate::target::{BLOCKS, Target, assert_good, assert_illegal, assert_sense, cdb};

fn list(ranges: &[(u64, u32)]) -> Vec<u8> {
    let len = ranges.len() as u16 * 16;
    let mut list = Vec::new();
    list.extend_from_slice(&(len + 6).to_be_bytes());
    list.extend_from_slice(&len.to_be_bytes());
    list.extend_from_slice(&[0; 4]);
    for (lba, blocks) in ranges {
        list.extend_from_slice(&lba.to_be_bytes());
        list.extend_from_slice(&blocks.to_be_bytes());
        list.extend_from_slice(&[0; 4]);
    }
    list
}

fn unmap(target: &Target, list: &[u8]) -> tcmu_runner::device_server::Response {
    target.data_out(&cdb::ten(0x42, 0, 0, list.len() as u16), list)
}

fn extent(lba: u64, blocks: u64) -> Call {
    Call::Unmap(Extent {
        offset: lba * 512,
        len: blocks * 512,
    })
}

#[test]
fn every_descriptor_is_unmapped() {
    let target = Target::new();
    let ranges = [(0, 8), (100, 0), (64, 16), (BLOCKS, 0), (BLOCKS - 1, 1)];
    assert_good(unmap(&target, &list(&ranges)));
    assert_eq!(
        target.calls(),
        [extent(0, 8), extent(64, 16), extent(BLOCKS - 1, 1)]
    );
}

#[test]
fn nothing_is_unmapped_unless_the_whole_list_is_valid() {
    let target = Target::new();
    for bad in [(BLOCKS, 1), (BLOCKS - 1, 2), (u64::MAX, 2), (BLOCKS + 1, 0)] {
        let response = unmap(&target, &list(&[(0, 8), bad]));
        assert_illegal(
            response,
            AdditionalSense::LOGICAL_BLOCK_ADDRESS_OUT_OF_RANGE,
        );
    }
    assert_eq!(target.calls(), []);
}

#[test]
fn the_limits_are_exact() {
    let target = Target::new();
    let limits = target.parameters(&[0x12, 1, 0xb0, 0, 64, 0]);
    let most_descriptors = u32::from_be_bytes(limits[24..28].try_into().unwrap()) as usize;
    let most_blocks = u32::from_be_bytes(limits[20..24].try_into().unwrap());

    let ranges = vec![(0, 1); most_descriptors];
    assert_good(unmap(&target, &list(&ranges)));
    assert_eq!(target.calls().len(), most_descriptors);
    let ranges = vec![(0, 1); most_descriptors + 1];
    let refused = unmap(&target, &list(&ranges));
    assert_illegal(refused, AdditionalSense::INVALID_FIELD_IN_PARAMETER_LIST);

    let mut huge = everything(0);
    huge.size = u64::from(most_blocks) * 1024;
    target.disk().capabilities.set(huge);
    target.unit.set_size(huge.size);
    target.no_data(&[0; 6]);
    let refused = unmap(&target, &list(&[(0, most_blocks), (0, 1)]));
    assert_illegal(refused, AdditionalSense::INVALID_FIELD_IN_PARAMETER_LIST);
    assert_eq!(target.calls(), []);
    target.disk().fail(Kind::Unmap, ErrorKind::Write);
    unmap(&target, &list(&[(0, most_blocks - 1), (7, 1)]));
    assert_eq!(target.calls(), [extent(0, u64::from(most_blocks) - 1)]);
}

#[test]
fn lists_that_are_too_short() {
    let target = Target::new();
    let error = AdditionalSense::PARAMETER_LIST_LENGTH_ERROR;
    let full = list(&[(0, 8), (8, 8)]);
    for len in 1..full.len() {
        assert_illegal(unmap(&target, &full[..len]), error);
    }
    // Less data than the CDB says.
    let cdb = cdb::ten(0x42, 0, 0, full.len() as u16);
    assert_illegal(target.data_out(&cdb, &full[..20]), error);
    assert_eq!(target.calls(), []);
}

#[test]
fn an_empty_list_is_no_error() {
    let target = Target::new();
    assert_good(target.no_data(&cdb::ten(0x42, 0, 0, 0)));
    assert_good(unmap(&target, &list(&[])));
    assert_good(unmap(&target, &list(&[(5, 0)])));
    assert_eq!(target.calls(), []);
}

#[test]
fn an_incomplete_descriptor_is_ignored() {
    let target = Target::new();
    let mut bytes = list(&[(0, 8), (8, 8)]);
    bytes[3] = 24;
    assert_good(unmap(&target, &bytes));
    assert_eq!(target.calls(), [extent(0, 8)]);
}

#[test]
fn the_first_error_ends_the_command() {
    let target = Target::new();
    target.disk().fail(Kind::Unmap, ErrorKind::Write);
    assert_sense(
        unmap(&target, &list(&[(0, 8), (8, 8)])),
        SenseKey::MediumError,
        AdditionalSense::WRITE_ERROR,
    );
    assert_eq!(target.calls(), [extent(0, 8)]);
}

#[test]
fn there_is_no_unmap_where_the_backstore_has_none() {
    let mut capabilities = everything(1 << 20);
    capabilities.unmap = None;
    let target = Target::with(capabilities, true);
    let refused = unmap(&target, &list(&[(0, 8)]));
    assert_illegal(refused, AdditionalSense::INVALID_COMMAND_OPERATION_CODE);
}

#[test]
fn anchors_are_refused() {
    let target = Target::new();
    let refused = target.data_out(&cdb::ten(0x42, 1, 0, 24), &list(&[(0, 8)]));
    assert_illegal(refused, AdditionalSense::INVALID_FIELD_IN_CDB);
}
