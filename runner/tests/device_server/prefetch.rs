//! PRE-FETCH (10) and (16).

use tcmu::scsi::{AdditionalSense, SenseKey};
use tcmu_handler::{ErrorKind, Extent};

use crate::disk::{Call, Kind, everything};
use crate::target::{BLOCKS, Target, assert_good, assert_illegal, assert_sense, cdb};

const IMMED: u8 = 0x02;

fn call(offset: u64, len: u64) -> Call {
    Call::Prefetch(Extent { offset, len })
}

#[test]
fn the_backstore_hears_of_it() {
    let target = Target::new();
    for flags in [0, IMMED] {
        assert_good(target.no_data(&cdb::ten(0x34, flags, 8, 16)));
        assert_good(target.no_data(&cdb::sixteen(0x90, flags, 8, 16)));
    }
    assert_eq!(target.calls(), [call(8 * 512, 16 * 512); 4]);
}

#[test]
fn no_length_is_up_to_the_end() {
    let target = Target::new();
    assert_good(target.no_data(&cdb::ten(0x34, 0, 8, 0)));
    assert_eq!(target.calls(), [call(8 * 512, (BLOCKS - 8) * 512)]);
    assert_good(target.no_data(&cdb::sixteen(0x90, 0, BLOCKS, 0)));
    assert_eq!(target.calls(), []);
}

#[test]
fn a_large_range_is_not_read_as_a_whole() {
    let target = Target::with(everything(20 << 20), true);
    assert_good(target.no_data(&cdb::sixteen(0x90, 0, 1, 0)));
    assert_good(target.no_data(&cdb::sixteen(0x90, 0, 1, 40000)));
    assert_eq!(target.calls(), [call(512, 16 << 20); 2]);
}

#[test]
fn what_is_wrong_is_refused() {
    let target = Target::new();
    let code = AdditionalSense::LOGICAL_BLOCK_ADDRESS_OUT_OF_RANGE;
    for (lba, blocks) in [(BLOCKS, 1), (BLOCKS + 1, 0), (BLOCKS - 1, 2), (u64::MAX, 0)] {
        assert_illegal(target.no_data(&cdb::sixteen(0x90, 0, lba, blocks)), code);
    }
    assert_illegal(target.no_data(&cdb::ten(0x34, 0, u32::MAX, 0)), code);
    for flags in [0x01, 0x04, 0x08, 0x80] {
        let refused = target.no_data(&cdb::ten(0x34, flags, 0, 1));
        assert_illegal(refused, AdditionalSense::INVALID_FIELD_IN_CDB);
    }
    assert_eq!(target.calls(), []);
    target.disk().fail(Kind::Prefetch, ErrorKind::Read);
    assert_sense(
        target.no_data(&cdb::ten(0x34, 0, 0, 1)),
        SenseKey::MediumError,
        AdditionalSense::UNRECOVERED_READ_ERROR,
    );
}
