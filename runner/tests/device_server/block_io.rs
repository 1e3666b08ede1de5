//! READ and WRITE.

use tcmu::scsi::{AdditionalSense, SenseKey};
use tcmu_handler::{Capabilities, Extent, WriteFlags, testing};

use crate::disk::{Call, everything};
use crate::target::{
    BLOCK, BLOCKS, LEFTOVER, Target, assert_good, assert_illegal, assert_sense, cdb,
};

fn pattern(blocks: usize, seed: u8) -> Vec<u8> {
    (0..blocks * BLOCK)
        .map(|at| seed.wrapping_add((at / 7) as u8))
        .collect()
}

#[test]
fn every_layout_reads_and_writes_the_same_blocks() {
    let target = Target::new();
    for (seed, write) in cdb::every_layout(true, 0, 100, 5).iter().enumerate() {
        let data = pattern(5, seed as u8 + 1);
        assert_good(target.data_out(write, &data));
        for read in cdb::every_layout(false, 0, 100, 5) {
            let (response, read) = target.data_in(&read, data.len());
            assert_good(response);
            assert_eq!(response.read_len, None);
            assert_eq!(read, data);
        }
        let image = target.disk().image.borrow();
        assert!(image[..100 * BLOCK].iter().all(|&byte| byte == 0));
        assert!(image[105 * BLOCK..].iter().all(|&byte| byte == 0));
    }
}

#[test]
fn a_request_goes_to_the_backstore_as_it_is() {
    let target = Target::new();
    let extent = Extent {
        offset: 8 * 512,
        len: 16 * 512,
    };
    assert_good(target.data_out(&cdb::ten(0x2a, 0, 8, 16), &pattern(16, 1)));
    assert_good(target.data_in(&cdb::ten(0x28, 0, 8, 16), 16 * BLOCK).0);
    let flags = WriteFlags { fua: false };
    assert_eq!(
        target.calls(),
        [Call::Write(extent, flags), Call::Read(extent)]
    );
}

#[test]
fn a_length_of_0_is_256_blocks_in_six_bytes_and_none_in_more() {
    let target = Target::new();
    let data = pattern(256, 3);
    assert_good(target.data_out(&[0x0a, 0, 0, 0, 0, 0], &data));
    let (response, read) = target.data_in(&[0x08, 0, 0, 0, 0, 0], data.len());
    assert_good(response);
    assert_eq!(read, data);
    target.calls();
    for write in [false, true] {
        for cdb in cdb::every_layout(write, 0, BLOCKS, 0) {
            assert_good(target.no_data(&cdb));
        }
    }
    assert_eq!(target.calls(), []);
}

#[test]
fn blocks_beyond_the_end_are_out_of_range() {
    let target = Target::new();
    let ranges = [
        (BLOCKS, 1),
        (BLOCKS - 1, 2),
        (BLOCKS + 1, 0),
        (0, BLOCKS as u32 + 1),
        (u64::MAX, 1),
        (u64::MAX, 0),
        (u64::MAX - 1, u32::MAX),
        (1 << 32, 1),
    ];
    for (lba, blocks) in ranges {
        for write in [false, true] {
            for cdb in cdb::every_layout(write, 0, lba, blocks) {
                // The layout matters before the buffer does.
                let response = target.no_data(&cdb);
                assert_illegal(
                    response,
                    AdditionalSense::LOGICAL_BLOCK_ADDRESS_OUT_OF_RANGE,
                );
            }
        }
    }
    assert_eq!(target.calls(), []);
}

#[test]
fn the_last_block_is_within_range() {
    let target = Target::new();
    let data = pattern(1, 9);
    assert_good(target.data_out(&cdb::ten(0x2a, 0, BLOCKS as u32 - 1, 1), &data));
    assert_eq!(
        target.disk().image.borrow()[(BLOCKS as usize - 1) * BLOCK..],
        data
    );
}

#[test]
fn a_longer_buffer_gets_a_residual_and_no_old_bytes() {
    let target = Target::new();
    assert_good(target.data_out(&cdb::ten(0x2a, 0, 0, 1), &pattern(1, 5)));
    let (response, data) = target.data_in(&cdb::ten(0x28, 0, 0, 1), 3 * BLOCK + 11);
    assert_good(response);
    assert_eq!(response.read_len, Some(BLOCK as u32));
    assert_eq!(data[..BLOCK], pattern(1, 5));
    assert!(data[BLOCK..].iter().all(|&byte| byte == 0));
    let (response, data) = target.data_in(&cdb::ten(0x28, 0, 0, 0), 100);
    assert_good(response);
    assert_eq!(response.read_len, Some(0));
    assert_eq!(data, [0; 100]);
}

#[test]
fn a_shorter_buffer_is_refused() {
    let target = Target::new();
    for (cdb, len) in [
        (cdb::ten(0x28, 0, 0, 2), BLOCK),
        (cdb::ten(0x28, 0, 0, 1), 0),
        (cdb::ten(0x2a, 0, 0, 2), BLOCK),
        (cdb::ten(0x2a, 0, 0, 1), BLOCK - 1),
        // A write with more data than blocks cannot report its residual.
        (cdb::ten(0x2a, 0, 0, 1), BLOCK + 1),
        (cdb::ten(0x2a, 0, 0, 0), 1),
    ] {
        let response = target.run(&cdb, &testing::buffer(len));
        assert_illegal(
            response,
            AdditionalSense::INVALID_FIELD_IN_COMMAND_INFORMATION_UNIT,
        );
    }
    assert_eq!(target.calls(), []);
}

#[test]
fn longer_transfers_than_the_limit_are_refused() {
    let target = Target::new();
    let most = 1024;
    assert_eq!(
        target.parameters(&[0x12, 1, 0xb0, 0, 64, 0])[8..12],
        u32::to_be_bytes(most)
    );
    for write in [false, true] {
        for (blocks, good) in [(most, true), (most + 1, false)] {
            for cdb in cdb::every_layout(write, 0, 0, blocks) {
                let response = target.run(&cdb, &testing::buffer(blocks as usize * BLOCK));
                if good {
                    assert_good(response);
                    continue;
                }
                assert_illegal(response, AdditionalSense::INVALID_FIELD_IN_CDB);
                let field = usize::from(response.sense.unwrap().field.unwrap().byte);
                let len = if cdb.len() == 10 { 2 } else { 4 };
                assert_eq!(cdb[field..field + len], blocks.to_be_bytes()[4 - len..]);
            }
        }
    }
}

#[test]
fn protection_information_is_refused() {
    let target = Target::new();
    for protect in 1..8 {
        for write in [false, true] {
            for cdb in cdb::every_layout(write, protect << 5, 0, 1) {
                let response = target.run(&cdb, &testing::buffer(BLOCK));
                assert_illegal(response, AdditionalSense::INVALID_FIELD_IN_CDB);
                let field = response.sense.unwrap().field.unwrap();
                let flags = if cdb[0] == 0x7f { 10 } else { 1 };
                assert!(field.in_cdb);
                assert_eq!(field.byte, flags);
            }
        }
    }
    assert_eq!(target.calls(), []);
}

#[test]
fn a_read_only_disk_is_write_protected() {
    let mut capabilities = everything(1 << 20);
    capabilities.read_only = true;
    let target = Target::with(capabilities, true);
    let writes = [
        cdb::ten(0x2a, 0, 0, 1).to_vec(),
        cdb::ten(0x41, 0, 0, 1).to_vec(),
        cdb::sixteen(0x93, 0x08, 0, 1).to_vec(),
        cdb::ten(0x42, 0, 0, 24).to_vec(),
        cdb::sixteen(0x8a, 0, 0, 1).to_vec(),
        vec![0x0a, 0, 0, 0, 1, 0],
    ];
    for cdb in writes {
        let response = target.run(&cdb, &testing::buffer(BLOCK));
        assert_sense(
            response,
            SenseKey::DataProtect,
            AdditionalSense::WRITE_PROTECTED,
        );
    }
    assert_eq!(target.calls(), []);
    assert_good(target.data_in(&cdb::ten(0x28, 0, 0, 1), BLOCK).0);
}

#[test]
fn a_lun_is_never_larger_than_its_image() {
    let target = Target::with(Capabilities::new(10 * 512 + 100), false);
    assert_good(target.data_in(&cdb::ten(0x28, 0, 9, 1), BLOCK).0);
    let (response, _) = target.data_in(&cdb::ten(0x28, 0, 10, 1), BLOCK);
    assert_illegal(
        response,
        AdditionalSense::LOGICAL_BLOCK_ADDRESS_OUT_OF_RANGE,
    );
    // Shrunk below the LUN's size.
    target.disk().capabilities.set(Capabilities::new(5 * 512));
    target.unit.set_size(10 * 512);
    target.no_data(&[0; 6]);
    let (response, data) = target.data_in(&cdb::ten(0x28, 0, 5, 1), BLOCK);
    assert_illegal(
        response,
        AdditionalSense::LOGICAL_BLOCK_ADDRESS_OUT_OF_RANGE,
    );
    assert_eq!(data, [LEFTOVER; BLOCK]);
}
