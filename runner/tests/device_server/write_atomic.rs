//! WRITE ATOMIC (16).

use tcmu::scsi::AdditionalSense;
use tcmu_handler::{AtomicWrites, Capabilities, Extent, WriteFlags, testing};

use crate::disk::{Call, everything};
use crate::target::{BLOCK, BLOCKS, Target, assert_good, assert_illegal, cdb};

const FUA: u8 = 0x08;

/// Of the usual disk: 64 blocks at the most, a multiple of 2, from a multiple of 4 on.
fn atomic(flags: u8, lba: u64, blocks: u16) -> [u8; 16] {
    cdb::sixteen(0x9c, flags, lba, blocks.into())
}

#[test]
fn a_write_is_one_request() {
    let target = Target::new();
    for (flags, lba, blocks) in [(0, 0, 64), (FUA, 4, 2), (0x10, 8, 30)] {
        let data = vec![0x77; usize::from(blocks) * BLOCK];
        assert_good(target.data_out(&atomic(flags, lba, blocks), &data));
        let extent = Extent {
            offset: lba * BLOCK as u64,
            len: data.len() as u64,
        };
        let fua = flags == FUA;
        assert_eq!(target.calls(), [Call::Write(extent, WriteFlags { fua })]);
    }
    assert_good(target.no_data(&atomic(0, BLOCKS, 0)));
    assert_eq!(target.calls(), []);
}

#[test]
fn the_limits_are_exact() {
    let target = Target::new();
    for (lba, blocks, field) in [(0, 66, 12), (0, 65, 12), (0, 1, 12), (1, 2, 2), (2, 2, 2)] {
        let buffer = testing::buffer(usize::from(blocks) * BLOCK);
        let refused = target.run(&atomic(0, lba, blocks), &buffer);
        assert_illegal(refused, AdditionalSense::INVALID_FIELD_IN_CDB);
        assert_eq!(refused.sense.unwrap().field.unwrap().byte, field);
    }
    for (byte, bits) in [(1, 0x20), (1, 0x02), (10, 0x80), (11, 1), (14, 0x40)] {
        let mut cdb = atomic(0, 0, 2);
        cdb[byte] |= bits;
        let refused = target.data_out(&cdb, &[0; 2 * BLOCK]);
        assert_illegal(refused, AdditionalSense::INVALID_FIELD_IN_CDB);
    }
    for (lba, blocks) in [(BLOCKS, 2), (BLOCKS - 4, 6), (u64::MAX - 3, 2)] {
        let refused = target.no_data(&atomic(0, lba, blocks));
        assert_illegal(refused, AdditionalSense::LOGICAL_BLOCK_ADDRESS_OUT_OF_RANGE);
    }
    for len in [0, BLOCK, 3 * BLOCK] {
        let refused = target.run(&atomic(0, 0, 2), &testing::buffer(len));
        let code = AdditionalSense::INVALID_FIELD_IN_COMMAND_INFORMATION_UNIT;
        assert_illegal(refused, code);
    }
    assert_eq!(target.calls(), []);
}

#[test]
fn the_command_is_there_only_where_a_block_is_atomic() {
    let limits = |max_len, alignment, granularity| {
        let mut capabilities = everything(1 << 20);
        capabilities.atomic_writes = Some(AtomicWrites {
            max_len,
            alignment,
            granularity,
        });
        let target = Target::with(capabilities, true);
        let page = target.parameters(&[0x12, 1, 0xb0, 0, 64, 0]);
        let limits: Vec<u32> = page[44..]
            .chunks(4)
            .map(|field| u32::from_be_bytes(field.try_into().unwrap()))
            .collect();
        let response = target.no_data(&atomic(0, 0, 0));
        let unknown = Some(AdditionalSense::INVALID_COMMAND_OPERATION_CODE);
        let supported = response.sense.map(|sense| sense.code) != unknown;
        assert_eq!(supported, limits[0] != 0);
        limits
    };
    assert_eq!(limits(1 << 30, 1, 1), [1024, 0, 0, 0, 0]);
    assert_eq!(limits(4096, 512, 512), [8, 0, 0, 0, 0]);
    assert_eq!(limits(4096 + 512, 4096, 1024), [8, 8, 2, 0, 0]);
    assert_eq!(limits(256, 256, 256), [0; 5]);
    let plain = Target::with(Capabilities::new(1 << 20), true);
    let refused = plain.data_out(&atomic(0, 0, 1), &[0; BLOCK]);
    assert_illegal(refused, AdditionalSense::INVALID_COMMAND_OPERATION_CODE);
}
