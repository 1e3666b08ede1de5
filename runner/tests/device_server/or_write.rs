//! ORWRITE (16).

use tcmu::scsi::{AdditionalSense, SenseKey};
use tcmu_handler::{ErrorKind, testing};

use crate::disk::{Call, Kind, everything};
use crate::target::{BLOCK, BLOCKS, Target, assert_good, assert_illegal, assert_sense, cdb};

const FUA: u8 = 0x08;

fn or(flags: u8, lba: u64, blocks: u32) -> [u8; 16] {
    cdb::sixteen(0x8b, flags, lba, blocks)
}

#[test]
fn bits_are_set() {
    let target = Target::new();
    let old: Vec<u8> = (0..1000 * BLOCK).map(|at| (at / 7) as u8).collect();
    let bits: Vec<u8> = (0..1000 * BLOCK).map(|at| (at / 11) as u8).collect();
    assert_good(target.data_out(&cdb::ten(0x2a, 0, 7, 1000), &old));
    target.calls();
    assert_good(target.data_out(&or(0, 7, 1000), &bits));
    for call in target.calls() {
        match call {
            Call::Read(extent) | Call::Write(extent, _) => assert!(extent.len <= 64 << 10),
            other => panic!("{other:?}"),
        }
    }
    let image = target.disk().image.borrow();
    let expected: Vec<u8> = old
        .iter()
        .zip(&bits)
        .map(|(old, bits)| old | bits)
        .collect();
    assert_eq!(image[7 * BLOCK..1007 * BLOCK], expected);
    assert!(image[..7 * BLOCK].iter().all(|&byte| byte == 0));
    assert!(image[1007 * BLOCK..].iter().all(|&byte| byte == 0));
}

#[test]
fn fua_is_honoured() {
    for fua in [tcmu_handler::Fua::Native, tcmu_handler::Fua::Emulate] {
        let mut capabilities = everything(1 << 20);
        capabilities.fua = fua;
        let target = Target::with(capabilities, true);
        assert_good(target.data_out(&or(FUA, 3, 2), &[5; 2 * BLOCK]));
        target.disk().cut_power();
        assert_eq!(
            target.disk().image.borrow()[3 * BLOCK..5 * BLOCK],
            [5; 2 * BLOCK]
        );
    }
}

#[test]
fn what_is_wrong_is_refused() {
    let target = Target::new();
    for len in [0, BLOCK, 2 * BLOCK - 1, 2 * BLOCK + 1, 3 * BLOCK] {
        let refused = target.run(&or(0, 0, 2), &testing::buffer(len));
        let code = AdditionalSense::INVALID_FIELD_IN_COMMAND_INFORMATION_UNIT;
        assert_illegal(refused, code);
    }
    for (lba, blocks) in [(BLOCKS, 1), (BLOCKS - 1, 2), (u64::MAX, 1), (BLOCKS + 1, 0)] {
        let refused = target.no_data(&or(0, lba, blocks));
        assert_illegal(refused, AdditionalSense::LOGICAL_BLOCK_ADDRESS_OUT_OF_RANGE);
    }
    for flags in [0x20, 0x80, 0x04, 0x02, 0x01] {
        let refused = target.data_out(&or(flags, 0, 1), &[0; BLOCK]);
        assert_illegal(refused, AdditionalSense::INVALID_FIELD_IN_CDB);
    }
    let refused = target.run(&or(0, 0, 1025), &testing::buffer(1025 * BLOCK));
    assert_illegal(refused, AdditionalSense::INVALID_FIELD_IN_CDB);
    assert_good(target.no_data(&or(0, BLOCKS, 0)));
    assert_eq!(target.calls(), []);
}

#[test]
fn errors_are_reported() {
    let target = Target::new();
    target.disk().fail(Kind::Read, ErrorKind::Read);
    let code = AdditionalSense::UNRECOVERED_READ_ERROR;
    assert_sense(
        target.data_out(&or(0, 0, 1), &[0; BLOCK]),
        SenseKey::MediumError,
        code,
    );
    target.disk().fail(Kind::Write, ErrorKind::Write);
    let code = AdditionalSense::WRITE_ERROR;
    assert_sense(
        target.data_out(&or(0, 0, 1), &[0; BLOCK]),
        SenseKey::MediumError,
        code,
    );
}
