//! WRITE SAME (10), (16) and (32).

use tcmu::scsi::{AdditionalSense, SenseKey};
use tcmu_handler::{Capabilities, ErrorKind, Extent, Unmap, ZeroFlags};

use crate::disk::{Call, Kind, everything};
use crate::target::{BLOCK, BLOCKS, Target, assert_good, assert_illegal, assert_sense, cdb};

const UNMAP: u8 = 0x08;
const NDOB: u8 = 0x01;
const ANCHOR: u8 = 0x10;

fn block(byte: u8) -> Vec<u8> {
    vec![byte; BLOCK]
}

fn zeroes(lba: u64, blocks: u64, may_unmap: bool) -> Call {
    let extent = Extent {
        offset: lba * 512,
        len: blocks * 512,
    };
    let fua = false;
    Call::WriteZeroes(extent, ZeroFlags { fua, may_unmap })
}

#[test]
fn a_pattern_is_written_to_every_block() {
    // More than fits in the memory for one write, and not a multiple of it.
    let target = Target::with(everything(2 << 20), true);
    let pattern: Vec<u8> = (0..BLOCK).map(|at| at as u8).collect();
    let (lba, blocks) = (3, 2500);
    assert_good(target.data_out(&cdb::sixteen(0x93, 0, lba, blocks), &pattern));
    let image = target.disk().image.borrow();
    let (first, last) = (lba as usize, (lba + u64::from(blocks)) as usize);
    for (index, block) in image.chunks(BLOCK).enumerate() {
        if (first..last).contains(&index) {
            assert_eq!(block, pattern);
        } else {
            assert!(block.iter().all(|&byte| byte == 0));
        }
    }
    for call in target.calls() {
        assert!(matches!(call, Call::Write(extent, _) if extent.len <= 512 << 10));
    }
}

#[test]
fn zeroes_are_left_to_the_backstore() {
    let target = Target::new();
    assert_good(target.data_out(&cdb::ten(0x41, 0, 8, 16), &block(0)));
    assert_good(target.data_out(&cdb::sixteen(0x93, 0, 8, 16), &block(0)));
    assert_good(target.no_data(&cdb::sixteen(0x93, NDOB, 8, 16)));
    assert_eq!(target.calls(), [zeroes(8, 16, false); 3]);
    assert_good(target.data_out(&cdb::ten(0x41, UNMAP, 8, 16), &block(0)));
    assert_good(target.data_out(&cdb::sixteen(0x93, UNMAP, 8, 16), &block(0)));
    assert_good(target.no_data(&cdb::sixteen(0x93, UNMAP | NDOB, 8, 16)));
    assert_eq!(target.calls(), [zeroes(8, 16, true); 3]);
}

#[test]
fn thirty_two_bytes_say_the_same() {
    let target = Target::new();
    let long = |flags, blocks| cdb::thirty_two(0x0d, flags, 8, blocks);
    assert_good(target.data_out(&long(0, 16), &block(0)));
    assert_good(target.no_data(&long(UNMAP | NDOB, 16)));
    assert_eq!(target.calls(), [zeroes(8, 16, false), zeroes(8, 16, true)]);
    assert_good(target.data_out(&long(0, 2), &block(7)));
    assert_eq!(
        target.disk().image.borrow()[8 * BLOCK..10 * BLOCK],
        [7; 2 * BLOCK]
    );
    target.calls();
    for flags in [ANCHOR, 0x20, 0x04, 0x02] {
        let refused = target.data_out(&long(flags, 1), &block(0));
        assert_illegal(refused, AdditionalSense::INVALID_FIELD_IN_CDB);
    }
    let refused = target.data_out(&long(0, 0), &block(0));
    assert_illegal(refused, AdditionalSense::INVALID_FIELD_IN_CDB);
    assert_eq!(refused.sense.unwrap().field.unwrap().byte, 28);
    assert_eq!(target.calls(), []);
}

#[test]
fn unmapping_needs_no_block() {
    let target = Target::new();
    assert_good(target.no_data(&cdb::ten(0x41, UNMAP, 8, 16)));
    assert_good(target.no_data(&cdb::sixteen(0x93, UNMAP, 8, 16)));
    assert_eq!(target.calls(), [zeroes(8, 16, true); 2]);
}

#[test]
fn zeroes_are_written_where_the_backstore_has_no_better_way() {
    let mut capabilities = everything(1 << 20);
    capabilities.write_zeroes = false;
    let without = Target::with(capabilities, true);
    let with = Target::new();
    with.disk().fail(Kind::WriteZeroes, ErrorKind::Unsupported);
    for target in [without, with] {
        target.disk().image.borrow_mut().fill(0xff);
        assert_good(target.data_out(&cdb::ten(0x41, 0, 8, 16), &block(0)));
        let image = target.disk().image.borrow();
        assert!(image[..8 * BLOCK].iter().all(|&byte| byte == 0xff));
        assert!(image[8 * BLOCK..24 * BLOCK].iter().all(|&byte| byte == 0));
        assert!(image[24 * BLOCK..].iter().all(|&byte| byte == 0xff));
    }
}

#[test]
fn unmap_with_a_pattern_writes_the_pattern() {
    let target = Target::new();
    assert_good(target.data_out(&cdb::sixteen(0x93, UNMAP, 8, 8), &block(0x11)));
    let image = target.disk().image.borrow();
    assert!(
        image[8 * BLOCK..16 * BLOCK]
            .iter()
            .all(|&byte| byte == 0x11)
    );
}

#[test]
fn any_unmap_granularity_will_do() {
    for granularity in [0, 1, 512, 4096, 3 << 20] {
        let mut capabilities = everything(1 << 20);
        capabilities.unmap = Some(Unmap {
            granularity,
            reads_zeroes: true,
        });
        let target = Target::with(capabilities, true);
        assert_good(target.no_data(&cdb::sixteen(0x93, UNMAP | NDOB, 1, 7)));
        assert_eq!(target.calls(), [zeroes(1, 7, true)]);
        target.parameters(&[0x12, 1, 0xb0, 0, 64, 0]);
    }
}

#[test]
fn unmap_is_refused_where_it_is_not_claimed() {
    let no_unmap = |capabilities: &mut Capabilities| capabilities.unmap = None;
    let no_zeroes = |capabilities: &mut Capabilities| capabilities.write_zeroes = false;
    for change in [no_unmap, no_zeroes] {
        let mut capabilities = everything(1 << 20);
        change(&mut capabilities);
        let target = Target::with(capabilities, true);
        for cdb in [
            cdb::ten(0x41, UNMAP, 0, 8).to_vec(),
            cdb::sixteen(0x93, UNMAP, 0, 8).to_vec(),
        ] {
            let refused = target.data_out(&cdb, &block(0));
            assert_illegal(refused, AdditionalSense::INVALID_FIELD_IN_CDB);
        }
        assert_eq!(target.calls(), []);
    }
}

#[test]
fn the_limits_are_exact() {
    let mut capabilities = everything(0);
    capabilities.size = 1 << 40;
    let target = Target::new();
    target.disk().capabilities.set(capabilities);
    target.unit.set_size(1 << 40);
    target.no_data(&[0; 6]);
    let limits = target.parameters(&[0x12, 1, 0xb0, 0, 64, 0]);
    let most = u64::from_be_bytes(limits[36..44].try_into().unwrap());
    target.disk().fail(Kind::WriteZeroes, ErrorKind::Write);
    target.no_data(&cdb::sixteen(0x93, NDOB, 0, most as u32));
    assert_eq!(target.calls(), [zeroes(0, most, false)]);
    let refused = target.no_data(&cdb::sixteen(0x93, NDOB, 0, most as u32 + 1));
    assert_illegal(refused, AdditionalSense::INVALID_FIELD_IN_CDB);
    assert_eq!(target.calls(), []);
}

#[test]
fn no_blocks_are_not_all_blocks() {
    let target = Target::new();
    assert_eq!(target.parameters(&[0x12, 1, 0xb0, 0, 64, 0])[4], 1);
    for cdb in [
        cdb::ten(0x41, 0, 0, 0).to_vec(),
        cdb::sixteen(0x93, 0, 0, 0).to_vec(),
    ] {
        let refused = target.data_out(&cdb, &block(0));
        assert_illegal(refused, AdditionalSense::INVALID_FIELD_IN_CDB);
    }
    assert_eq!(target.calls(), []);
}

#[test]
fn what_is_wrong_is_refused() {
    let target = Target::new();
    let invalid = AdditionalSense::INVALID_FIELD_IN_CDB;
    let beyond = AdditionalSense::LOGICAL_BLOCK_ADDRESS_OUT_OF_RANGE;
    for (flags, code) in [
        (ANCHOR, invalid),
        (0x20, invalid),
        (0x04, invalid),
        (0x02, invalid),
    ] {
        for cdb in [
            cdb::ten(0x41, flags, 0, 1).to_vec(),
            cdb::sixteen(0x93, flags, 0, 1).to_vec(),
        ] {
            assert_illegal(target.data_out(&cdb, &block(0)), code);
        }
    }
    let ndob_10 = target.data_out(&cdb::ten(0x41, NDOB, 0, 1), &block(0));
    assert_illegal(ndob_10, invalid);
    for (lba, blocks) in [(BLOCKS, 1), (BLOCKS - 1, 2), (u64::MAX, 1)] {
        let refused = target.data_out(&cdb::sixteen(0x93, 0, lba, blocks), &block(0));
        assert_illegal(refused, beyond);
    }
    for len in [0, BLOCK - 1, BLOCK + 1, 2 * BLOCK] {
        let refused = target.data_out(&cdb::ten(0x41, 0, 0, 2), &vec![0; len]);
        let code = AdditionalSense::INVALID_FIELD_IN_COMMAND_INFORMATION_UNIT;
        assert_illegal(refused, code);
    }
    assert_eq!(target.calls(), []);
}

#[test]
fn errors_are_reported() {
    let target = Target::new();
    target.disk().fail(Kind::WriteZeroes, ErrorKind::NoSpace);
    assert_sense(
        target.data_out(&cdb::ten(0x41, UNMAP, 0, 8), &block(0)),
        SenseKey::DataProtect,
        AdditionalSense::SPACE_ALLOCATION_FAILED_WRITE_PROTECT,
    );
    target.disk().fail(Kind::Write, ErrorKind::Write);
    assert_sense(
        target.data_out(&cdb::ten(0x41, 0, 0, 8), &block(1)),
        SenseKey::MediumError,
        AdditionalSense::WRITE_ERROR,
    );
}
