//! GET LBA STATUS (16) and (32).

use tcmu::scsi::{AdditionalSense, SenseKey};
use tcmu_handler::ErrorKind;

use crate::disk::{Kind, everything};
use crate::target::{BLOCK, BLOCKS, Target, assert_good, assert_illegal, assert_sense, cdb};

fn sixteen(lba: u64, allocation_length: u32) -> [u8; 16] {
    cdb::sixteen(0x9e, 0x12, lba, allocation_length)
}

fn thirty_two(lba: u64, scan_length: u32, allocation_length: u32) -> [u8; 32] {
    let mut cdb = cdb::thirty_two(0x12, 0, lba, allocation_length);
    cdb[20..24].copy_from_slice(&scan_length.to_be_bytes());
    cdb
}

/// First block, number of blocks and provisioning status of each descriptor.
fn descriptors(data: &[u8]) -> Vec<(u64, u32, u8)> {
    let len = u32::from_be_bytes(data[..4].try_into().unwrap()) as usize;
    assert_eq!(data.len(), len + 4);
    assert_eq!(data[4..8], [0; 4]);
    data[8..]
        .chunks_exact(16)
        .map(|descriptor| {
            assert_eq!(descriptor[13..], [0; 3]);
            (
                u64::from_be_bytes(descriptor[..8].try_into().unwrap()),
                u32::from_be_bytes(descriptor[8..12].try_into().unwrap()),
                descriptor[12],
            )
        })
        .collect()
}

/// A disk with storage for the blocks 8 to 23 and 32 to 39.
fn target() -> Target {
    let target = Target::new();
    assert_good(target.data_out(&cdb::ten(0x2a, 0, 10, 10), &[1; 10 * BLOCK]));
    assert_good(target.data_out(&cdb::ten(0x2a, 0, 32, 8), &[1; 8 * BLOCK]));
    target.calls();
    target
}

#[test]
fn runs_of_blocks_are_told() {
    let target = target();
    let rest = BLOCKS as u32 - 40;
    let all = [(0, 8, 1), (8, 16, 0), (24, 8, 1), (32, 8, 0), (40, rest, 1)];
    assert_eq!(descriptors(&target.parameters(&sixteen(0, 4096))), all);
    assert_eq!(
        descriptors(&target.parameters(&thirty_two(0, 0, 4096))),
        all
    );
    let some = [(11, 13, 0), (24, 8, 1), (32, 8, 0), (40, rest, 1)];
    assert_eq!(descriptors(&target.parameters(&sixteen(11, 4096))), some);
    let last = BLOCKS - 1;
    assert_eq!(
        descriptors(&target.parameters(&sixteen(last, 4096))),
        [(last, 1, 1)]
    );
}

#[test]
fn what_is_written_and_unmapped_shows() {
    let target = target();
    assert_good(target.data_out(&cdb::ten(0x2a, 0, 0, 1), &[0; BLOCK]));
    assert_good(target.no_data(&cdb::sixteen(0x93, 0x09, 8, 8)));
    let rest = BLOCKS as u32 - 40;
    assert_eq!(
        descriptors(&target.parameters(&sixteen(0, 4096))),
        [
            (0, 8, 0),
            (8, 8, 1),
            (16, 8, 0),
            (24, 8, 1),
            (32, 8, 0),
            (40, rest, 1)
        ]
    );
}

#[test]
fn the_scan_ends_where_it_is_told_to() {
    let target = target();
    let scan = |lba, len| descriptors(&target.parameters(&thirty_two(lba, len, 4096)));
    assert_eq!(scan(0, 10), [(0, 8, 1), (8, 2, 0)]);
    assert_eq!(scan(9, 1), [(9, 1, 0)]);
    assert_eq!(scan(BLOCKS - 1, u32::MAX), [(BLOCKS - 1, 1, 1)]);
}

#[test]
fn there_are_as_many_descriptors_as_there_is_room_for() {
    let target = target();
    for (len, count) in [(24, 1), (39, 1), (40, 2), (56, 3)] {
        let data = target.parameters(&sixteen(0, len));
        assert_eq!(descriptors(&data).len(), count);
    }
    // The buffer is shorter than the allocation length.
    let (response, data) = target.data_in(&sixteen(0, 4096), 40);
    assert_good(response);
    assert_eq!((response.read_len, descriptors(&data).len()), (None, 2));
    // A part of one.
    for len in 0..24 {
        let (response, data) = target.data_in(&sixteen(0, len), 64);
        assert_good(response);
        assert_eq!(response.read_len, Some(len));
        let full = [
            0, 0, 0, 20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 8, 1, 0, 0, 0,
        ];
        let len = len as usize;
        assert_eq!(data[..len], full[..len]);
        assert!(data[len..].iter().all(|&byte| byte == 0));
    }
}

#[test]
fn a_fragmented_disk_is_told_in_parts() {
    let target = Target::with(everything(8 << 20), true);
    for unit in (0..2048).step_by(2) {
        let write = cdb::ten(0x2a, 0, unit * 8, 1);
        assert_good(target.data_out(&write, &[1; BLOCK]));
    }
    target.calls();
    let mut lba = 0;
    let mut expected = 0;
    while lba < 16384 {
        let (response, data) = target.data_in(&sixteen(lba, 1 << 20), 1 << 20);
        assert_good(response);
        let found = descriptors(&data[..response.read_len.unwrap() as usize]);
        assert!(target.calls().len() <= 256);
        for (first, blocks, status) in found {
            assert_eq!((first, blocks, status), (lba, 8, expected));
            lba += 8;
            expected ^= 1;
        }
    }
}

#[test]
fn a_fully_provisioned_disk_is_mapped() {
    let mut capabilities = everything(1 << 20);
    capabilities.unmap = None;
    let target = Target::with(capabilities, true);
    let data = target.parameters(&sixteen(5, 4096));
    assert_eq!(descriptors(&data), [(5, BLOCKS as u32 - 5, 0)]);
    assert_eq!(target.calls(), []);
}

#[test]
fn more_blocks_than_the_field_holds() {
    let mut capabilities = everything(0);
    capabilities.unmap = None;
    capabilities.size = 1 << 50;
    let target = Target::new();
    target.disk().capabilities.set(capabilities);
    target.unit.set_size(1 << 50);
    target.no_data(&[0; 6]);
    let data = target.parameters(&sixteen(1 << 33, 4096));
    assert_eq!(descriptors(&data), [(1 << 33, u32::MAX, 0)]);
}

#[test]
fn what_is_wrong_is_refused() {
    let target = Target::new();
    let code = AdditionalSense::LOGICAL_BLOCK_ADDRESS_OUT_OF_RANGE;
    for lba in [BLOCKS, BLOCKS + 1, 1 << 63, u64::MAX] {
        assert_illegal(target.data_in(&sixteen(lba, 24), 24).0, code);
        assert_illegal(target.data_in(&thirty_two(lba, 0, 24), 24).0, code);
    }
    let invalid = AdditionalSense::INVALID_FIELD_IN_CDB;
    let mut cdb = sixteen(0, 24);
    cdb[14] = 0x10;
    assert_illegal(target.data_in(&cdb, 24).0, invalid);
    for byte in [10, 24, 27] {
        let mut cdb = thirty_two(0, 0, 24);
        cdb[byte] = 1;
        assert_illegal(target.data_in(&cdb, 24).0, invalid);
    }
    assert_eq!(target.calls(), []);
    target.disk().fail(Kind::BlockStatus, ErrorKind::Read);
    assert_sense(
        target.data_in(&sixteen(0, 24), 24).0,
        SenseKey::MediumError,
        AdditionalSense::UNRECOVERED_READ_ERROR,
    );
}
