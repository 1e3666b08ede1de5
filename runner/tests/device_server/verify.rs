//! VERIFY and WRITE AND VERIFY.

use tcmu::scsi::{AdditionalSense, SenseKey};
use tcmu_handler::{Capabilities, ErrorKind, Extent, WriteFlags, testing};
use tcmu_runner::device_server::Response;

use crate::disk::{Call, Kind, everything};
use crate::target::{BLOCK, BLOCKS, Target, assert_good, assert_illegal, assert_sense, cdb};

const BYTES: u8 = 0x02;
const ONE_BLOCK: u8 = 0x06;
const DPO: u8 = 0x10;

/// VERIFY, or WRITE AND VERIFY, in each layout.
fn every_layout(write: bool, flags: u8, lba: u32, blocks: u16) -> [Vec<u8>; 4] {
    let [ten, twelve, sixteen, action] = if write {
        [0x2e, 0xae, 0x8e, 0x0c]
    } else {
        [0x2f, 0xaf, 0x8f, 0x0a]
    };
    let (long_lba, long_blocks) = (lba.into(), blocks.into());
    [
        cdb::ten(ten, flags, lba, blocks).to_vec(),
        cdb::twelve(twelve, flags, lba, long_blocks).to_vec(),
        cdb::sixteen(sixteen, flags, long_lba, long_blocks).to_vec(),
        cdb::thirty_two(action, flags, long_lba, long_blocks).to_vec(),
    ]
}

/// Bytes that differ from block to block.
fn pattern(blocks: usize) -> Vec<u8> {
    (0..blocks * BLOCK).map(|at| (at / 7) as u8).collect()
}

fn extent(lba: u64, blocks: u64) -> Extent {
    Extent {
        offset: lba * BLOCK as u64,
        len: blocks * BLOCK as u64,
    }
}

#[track_caller]
fn assert_miscompare(response: Response, lba: u64) {
    let code = AdditionalSense::MISCOMPARE_DURING_VERIFY_OPERATION;
    assert_sense(response, SenseKey::Miscompare, code);
    assert_eq!(response.sense.unwrap().information, Some(lba));
}

#[test]
fn bytes_are_compared() {
    let target = Target::new();
    let mut data = pattern(300);
    assert_good(target.data_out(&cdb::ten(0x2a, 0, 100, 300), &data));
    for cdb in every_layout(false, DPO | BYTES, 100, 300) {
        assert_good(target.data_out(&cdb, &data));
        for (at, lba) in [
            (0, 100),
            (299, 100),
            (512 * 200 + 3, 300),
            (300 * BLOCK - 1, 399),
        ] {
            data[at] ^= 0x10;
            assert_miscompare(target.data_out(&cdb, &data), lba);
            data[at] ^= 0x10;
        }
    }
}

#[test]
fn every_block_is_compared_with_one() {
    let target = Target::new();
    let block = pattern(1);
    assert_good(target.data_out(&cdb::ten(0x41, 0, 100, 300), &block));
    for cdb in every_layout(false, ONE_BLOCK, 100, 300) {
        assert_good(target.data_out(&cdb, &block));
        target.disk().image.borrow_mut()[333 * BLOCK + 5] ^= 1;
        assert_miscompare(target.data_out(&cdb, &block), 333);
        target.disk().image.borrow_mut()[333 * BLOCK + 5] ^= 1;
    }
}

#[test]
fn without_comparing_all_blocks_are_read_in_pieces() {
    let target = Target::with(everything(8 << 20), true);
    for cdb in every_layout(false, 0, 1, 16000) {
        assert_good(target.no_data(&cdb));
        let mut next = 512;
        for call in target.calls() {
            match call {
                Call::Flush => assert_eq!(next, 512),
                Call::Read(extent) => {
                    assert_eq!(extent.offset, next);
                    assert!(extent.len <= 64 << 10);
                    next = extent.end();
                }
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(next, 16001 * 512);
    }
    target.disk().fail(Kind::Read, ErrorKind::Read);
    let failed = target.no_data(&cdb::ten(0x2f, 0, 0, 1));
    let code = AdditionalSense::UNRECOVERED_READ_ERROR;
    assert_sense(failed, SenseKey::MediumError, code);
}

#[test]
fn data_that_are_not_to_be_compared_do_not_matter() {
    let target = Target::new();
    assert_good(target.data_out(&cdb::ten(0x2f, 0, 0, 2), &pattern(2)));
    assert_good(target.data_out(&cdb::ten(0x2f, 0, 0, 2), &pattern(1)[..100]));
}

#[test]
fn written_blocks_are_on_the_medium_and_read_back() {
    let data = pattern(200);
    for flags in [0, BYTES, DPO] {
        let target = Target::new();
        for cdb in every_layout(true, flags, 5, 200) {
            target.disk().image.borrow_mut().fill(0);
            assert_good(target.data_out(&cdb, &data));
            let calls = target.calls();
            let write = Call::Write(extent(5, 200), WriteFlags { fua: true });
            assert_eq!(calls[0], write);
            assert_eq!(calls[1], Call::Read(extent(5, 128)));
            assert_eq!(calls[2], Call::Read(extent(133, 72)));
            target.disk().cut_power();
            assert_eq!(target.disk().image.borrow()[5 * BLOCK..205 * BLOCK], data);
        }
    }
}

#[test]
fn a_medium_that_forgets_is_noticed() {
    let target = Target::new();
    target.disk().forget_writes();
    for cdb in every_layout(true, BYTES, 5, 200) {
        assert_miscompare(target.data_out(&cdb, &vec![3; 200 * BLOCK]), 5);
    }
    // Nobody asked for a comparison.
    assert_good(target.data_out(&cdb::ten(0x2e, 0, 5, 1), &[3; BLOCK]));
}

#[test]
fn no_blocks_are_no_error() {
    let target = Target::new();
    for lba in [0, BLOCKS as u32] {
        for flags in [0, BYTES, ONE_BLOCK] {
            for cdb in every_layout(false, flags, lba, 0) {
                assert_good(target.no_data(&cdb));
            }
        }
        for cdb in every_layout(true, BYTES, lba, 0) {
            assert_good(target.no_data(&cdb));
        }
    }
    assert_eq!(target.calls(), []);
}

#[test]
fn what_is_wrong_is_refused() {
    let target = Target::new();
    let invalid = AdditionalSense::INVALID_FIELD_IN_CDB;
    for (write, flags) in [
        (false, 0x04),
        (true, 0x04),
        (true, 0x06),
        (false, 0x01),
        (false, 0x08),
        (true, 0x08),
        (false, 0x20),
        (true, 0xe0),
    ] {
        for cdb in every_layout(write, flags, 0, 1) {
            let response = target.run(&cdb, &testing::buffer(BLOCK));
            assert_illegal(response, invalid);
            let field = response.sense.unwrap().field.unwrap();
            assert_eq!(field.byte, if cdb[0] == 0x7f { 10 } else { 1 });
        }
    }
    for write in [false, true] {
        for (lba, blocks) in [(BLOCKS as u32, 1), (BLOCKS as u32 - 1, 2), (u32::MAX, 1)] {
            for cdb in every_layout(write, BYTES, lba, blocks) {
                let code = AdditionalSense::LOGICAL_BLOCK_ADDRESS_OUT_OF_RANGE;
                assert_illegal(target.no_data(&cdb), code);
            }
        }
        for cdb in every_layout(write, BYTES, 0, 1025) {
            let response = target.run(&cdb, &testing::buffer(1025 * BLOCK));
            assert_illegal(response, invalid);
        }
        for len in [0, BLOCK, 2 * BLOCK - 1, 2 * BLOCK + 1, 3 * BLOCK] {
            for cdb in every_layout(write, BYTES, 0, 2) {
                let code = AdditionalSense::INVALID_FIELD_IN_COMMAND_INFORMATION_UNIT;
                assert_illegal(target.run(&cdb, &testing::buffer(len)), code);
            }
        }
    }
    for len in [0, BLOCK - 1, 2 * BLOCK] {
        for cdb in every_layout(false, ONE_BLOCK, 0, 2) {
            let code = AdditionalSense::INVALID_FIELD_IN_COMMAND_INFORMATION_UNIT;
            assert_illegal(target.run(&cdb, &testing::buffer(len)), code);
        }
    }
    assert_eq!(target.calls(), []);
}

#[test]
fn a_read_only_disk_verifies_and_does_not_write() {
    let mut capabilities = Capabilities::new(1 << 20);
    capabilities.read_only = true;
    let target = Target::with(capabilities, true);
    for cdb in every_layout(false, ONE_BLOCK, 0, 100) {
        assert_good(target.data_out(&cdb, &[0; BLOCK]));
    }
    for cdb in every_layout(true, 0, 0, 1) {
        let refused = target.data_out(&cdb, &[0; BLOCK]);
        let code = AdditionalSense::WRITE_PROTECTED;
        assert_sense(refused, SenseKey::DataProtect, code);
    }
}
