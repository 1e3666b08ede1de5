//! COMPARE AND WRITE.

use tcmu::scsi::{AdditionalSense, SenseKey};
use tcmu_handler::{Capabilities, ErrorKind, Extent, WriteFlags, testing};

use crate::disk::{Call, Kind, everything};
use crate::target::{BLOCK, BLOCKS, Target, assert_good, assert_illegal, assert_sense, cdb};

const FUA: u8 = 0x08;
const DPO: u8 = 0x10;

fn swap(flags: u8, lba: u64, blocks: u8) -> [u8; 16] {
    cdb::sixteen(0x89, flags, lba, blocks.into())
}

fn pattern(blocks: u8) -> Vec<u8> {
    let len = usize::from(blocks) * BLOCK;
    (0..len).map(|at| (at / 7) as u8).collect()
}

/// A disk that has compare-and-write of its own.
fn native() -> Capabilities {
    let mut capabilities = everything(BLOCKS * BLOCK as u64);
    capabilities.compare_and_write = 100 * BLOCK as u32;
    capabilities
}

fn both() -> [Target; 2] {
    [Target::new(), Target::with(native(), true)]
}

#[test]
fn equal_blocks_are_replaced() {
    for target in both() {
        for blocks in [1, 3, 100] {
            let (old, new) = (pattern(blocks), vec![0x99; usize::from(blocks) * BLOCK]);
            assert_good(target.data_out(&cdb::ten(0x2a, 0, 20, blocks.into()), &old));
            let data = [old.clone(), new.clone()].concat();
            assert_good(target.data_out(&swap(DPO, 20, blocks), &data));
            let image = target.disk().image.borrow();
            let end = 20 + usize::from(blocks);
            assert_eq!(image[20 * BLOCK..end * BLOCK], new);
            assert!(image[..20 * BLOCK].iter().all(|&byte| byte == 0));
            assert!(image[end * BLOCK..].iter().all(|&byte| byte != 0x99));
        }
    }
}

#[test]
fn a_difference_is_reported_and_nothing_is_written() {
    for target in both() {
        let old = pattern(100);
        assert_good(target.data_out(&cdb::ten(0x2a, 0, 20, 100), &old));
        let before = target.disk().image.borrow().clone();
        for at in [0, 1, 511, 512, 99 * BLOCK, 100 * BLOCK - 1] {
            let mut data = [old.clone(), vec![0x99; 100 * BLOCK]].concat();
            data[at] ^= 0x01;
            let response = target.data_out(&swap(0, 20, 100), &data);
            let code = AdditionalSense::MISCOMPARE_DURING_VERIFY_OPERATION;
            assert_sense(response, SenseKey::Miscompare, code);
            assert_eq!(response.sense.unwrap().information, Some(at as u64));
            assert_eq!(*target.disk().image.borrow(), before);
        }
    }
}

#[test]
fn what_the_backstore_does_as_one_is_left_to_it() {
    let target = Target::with(native(), true);
    let extent = Extent {
        offset: 0,
        len: 100 * BLOCK as u64,
    };
    assert_good(target.data_out(&swap(0, 0, 100), &vec![0; 200 * BLOCK]));
    let flags = WriteFlags { fua: false };
    assert_eq!(target.calls(), [Call::CompareAndWrite(extent, flags)]);
    target.disk().fail(Kind::CompareAndWrite, ErrorKind::Write);
    let failed = target.data_out(&swap(0, 0, 1), &[0; 2 * BLOCK]);
    assert_sense(failed, SenseKey::MediumError, AdditionalSense::WRITE_ERROR);
}

#[test]
fn fua_is_honoured() {
    for capabilities in [everything(1 << 20), native()] {
        for emulate in [false, true] {
            let mut capabilities = capabilities;
            if emulate {
                capabilities.fua = tcmu_handler::Fua::Emulate;
            }
            let target = Target::with(capabilities, true);
            let data = [[0; BLOCK], [0x99; BLOCK]].concat();
            assert_good(target.data_out(&swap(FUA, 3, 1), &data));
            target.disk().cut_power();
            assert_eq!(
                target.disk().image.borrow()[3 * BLOCK..4 * BLOCK],
                [0x99; BLOCK]
            );
        }
    }
}

#[test]
fn the_limit_is_that_of_the_field_or_of_the_backstore() {
    for (target, most) in both().into_iter().zip([255, 100]) {
        assert_eq!(target.parameters(&[0x12, 1, 0xb0, 0, 64, 0])[5], most);
        let data = vec![0; 2 * usize::from(most) * BLOCK];
        assert_good(target.data_out(&swap(0, 0, most), &data));
        if most < 255 {
            let data = vec![0; 2 * (usize::from(most) + 1) * BLOCK];
            let refused = target.data_out(&swap(0, 0, most + 1), &data);
            assert_illegal(refused, AdditionalSense::INVALID_FIELD_IN_CDB);
            assert_eq!(refused.sense.unwrap().field.unwrap().byte, 13);
        }
    }
    // 256 blocks do not fit into the field.
    let refused = Target::new().run(&swap(0, 0, 0), &testing::buffer(512 * BLOCK));
    assert_illegal(refused, AdditionalSense::INVALID_FIELD_IN_CDB);
    // Less than a block cannot be swapped by the backstore.
    let mut small = native();
    small.compare_and_write = 100;
    let target = Target::with(small, true);
    assert_eq!(target.parameters(&[0x12, 1, 0xb0, 0, 64, 0])[5], 1);
    assert_good(target.data_out(&swap(0, 0, 1), &[0; 2 * BLOCK]));
}

#[test]
fn what_is_wrong_is_refused() {
    let target = Target::new();
    for len in [
        0,
        1,
        BLOCK,
        2 * BLOCK - 1,
        2 * BLOCK + 1,
        3 * BLOCK,
        4 * BLOCK,
    ] {
        let refused = target.run(&swap(0, 0, 1), &testing::buffer(len));
        let code = AdditionalSense::INVALID_FIELD_IN_COMMAND_INFORMATION_UNIT;
        assert_illegal(refused, code);
    }
    for (lba, blocks) in [(BLOCKS, 1), (BLOCKS - 1, 2), (u64::MAX, 1), (BLOCKS + 1, 0)] {
        let refused = target.no_data(&swap(0, lba, blocks));
        assert_illegal(refused, AdditionalSense::LOGICAL_BLOCK_ADDRESS_OUT_OF_RANGE);
    }
    for (byte, bits) in [
        (1, 0x20),
        (1, 0x02),
        (1, 0x04),
        (10, 1),
        (12, 1),
        (14, 0x40),
    ] {
        let mut cdb = swap(0, 0, 1);
        cdb[byte] |= bits;
        let refused = target.data_out(&cdb, &[0; 2 * BLOCK]);
        assert_illegal(refused, AdditionalSense::INVALID_FIELD_IN_CDB);
    }
    assert_good(target.no_data(&swap(0, BLOCKS, 0)));
    assert_eq!(target.calls(), []);
}

#[test]
fn errors_are_reported_and_a_read_only_disk_is_protected() {
    let target = Target::new();
    let data = [0; 2 * BLOCK];
    target.disk().fail(Kind::Read, ErrorKind::Read);
    let code = AdditionalSense::UNRECOVERED_READ_ERROR;
    assert_sense(
        target.data_out(&swap(0, 0, 1), &data),
        SenseKey::MediumError,
        code,
    );
    target.disk().fail(Kind::Write, ErrorKind::NoSpace);
    let code = AdditionalSense::SPACE_ALLOCATION_FAILED_WRITE_PROTECT;
    assert_sense(
        target.data_out(&swap(0, 0, 1), &data),
        SenseKey::DataProtect,
        code,
    );
    target.disk().heal();
    assert_good(target.data_out(&swap(0, 0, 1), &data));

    let mut capabilities = everything(1 << 20);
    capabilities.read_only = true;
    let target = Target::with(capabilities, true);
    let code = AdditionalSense::WRITE_PROTECTED;
    assert_sense(
        target.data_out(&swap(0, 0, 1), &data),
        SenseKey::DataProtect,
        code,
    );
}
