//! Random commands against the simplest model of a disk: a vector of bytes.

use proptest::prelude::*;
use tcmu_handler::{Capabilities, Fua};

use crate::disk::{GRANULARITY, everything};
use crate::target::{BLOCK, Target, assert_good, cdb};

const BLOCKS: u64 = 96;
const UNMAP: u8 = 0x08;
const NDOB: u8 = 0x01;

#[derive(Clone, Debug)]
enum Step {
    Read {
        lba: u64,
        blocks: u32,
        layout: usize,
        fua: bool,
    },
    Write {
        lba: u64,
        blocks: u32,
        layout: usize,
        fua: bool,
        byte: u8,
    },
    WriteSame {
        lba: u64,
        blocks: u32,
        byte: u8,
        unmap: bool,
        ndob: bool,
    },
    Unmap {
        lba: u64,
        blocks: u32,
    },
    SynchronizeCache,
    /// What has to be there afterwards depends on the write cache.
    CutPower,
}

fn any_step() -> impl Strategy<Value = Step> {
    let range = (0..BLOCKS).prop_flat_map(|lba| (Just(lba), 1..=(BLOCKS - lba).min(40) as u32));
    let layout = any::<usize>;
    prop_oneof![
        3 => (range.clone(), layout(), any::<bool>())
            .prop_map(|((lba, blocks), layout, fua)| Step::Read { lba, blocks, layout, fua }),
        4 => (range.clone(), layout(), any::<bool>(), 1..255u8).prop_map(
            |((lba, blocks), layout, fua, byte)| Step::Write { lba, blocks, layout, fua, byte }
        ),
        2 => (range.clone(), 0..3u8, any::<bool>(), any::<bool>()).prop_map(
            |((lba, blocks), byte, unmap, ndob)| Step::WriteSame { lba, blocks, byte, unmap, ndob }
        ),
        1 => range.prop_map(|(lba, blocks)| Step::Unmap { lba, blocks }),
        1 => Just(Step::SynchronizeCache),
        1 => Just(Step::CutPower),
    ]
}

fn any_capabilities() -> impl Strategy<Value = Capabilities> {
    any::<[bool; 3]>().prop_map(|[volatile, native, zeroes]| {
        let mut capabilities = everything(BLOCKS * BLOCK as u64);
        capabilities.volatile_cache = volatile;
        capabilities.write_zeroes = zeroes;
        if !native {
            capabilities.fua = Fua::Emulate;
        }
        capabilities
    })
}

/// The bytes of the blocks.
fn range(lba: u64, blocks: u32) -> std::ops::Range<usize> {
    let start = lba as usize * BLOCK;
    start..start + blocks as usize * BLOCK
}

/// Bytes that differ from block to block.
fn data(blocks: u32, byte: u8) -> Vec<u8> {
    (0..blocks as usize * BLOCK)
        .map(|at| byte.wrapping_add((at / BLOCK) as u8))
        .collect()
}

proptest! {
    #[test]
    fn the_disk_is_a_vector_of_bytes(
        capabilities in any_capabilities(),
        write_cache: bool,
        steps in prop::collection::vec(any_step(), 1..40),
    ) {
        let target = Target::with(capabilities, write_cache);
        let is_cached = capabilities.volatile_cache && write_cache;
        let mut model = vec![0; BLOCKS as usize * BLOCK];
        for step in steps {
            match step {
                Step::Read { lba, blocks, layout, fua } => {
                    let cdbs = cdb::every_layout(false, u8::from(fua) << 3, lba, blocks);
                    let cdb = &cdbs[layout % cdbs.len()];
                    let wanted = &model[range(lba, blocks)];
                    let (response, read) = target.data_in(cdb, wanted.len());
                    assert_good(response);
                    prop_assert_eq!(&read, wanted);
                }
                Step::Write { lba, blocks, layout, fua, byte } => {
                    let cdbs = cdb::every_layout(true, u8::from(fua) << 3, lba, blocks);
                    let data = data(blocks, byte);
                    assert_good(target.data_out(&cdbs[layout % cdbs.len()], &data));
                    model[range(lba, blocks)].copy_from_slice(&data);
                    if fua && is_cached {
                        // Durable on its own, whatever else is in the cache.
                        let image = target.disk().image.borrow().clone();
                        target.disk().cut_power();
                        let kept = target.disk().image.replace(image);
                        prop_assert_eq!(&kept[range(lba, blocks)], &data);
                    }
                }
                Step::WriteSame { lba, blocks, byte, unmap, ndob } => {
                    let unmap = unmap && capabilities.write_zeroes;
                    let flags = if unmap { UNMAP } else { 0 } | if ndob { NDOB } else { 0 };
                    let block = vec![byte; BLOCK];
                    let cdb = cdb::sixteen(0x93, flags, lba, blocks);
                    let response = if ndob {
                        target.no_data(&cdb)
                    } else {
                        target.data_out(&cdb, &block)
                    };
                    assert_good(response);
                    model[range(lba, blocks)].fill(if ndob { 0 } else { byte });
                }
                Step::Unmap { lba, blocks } => {
                    let mut list = vec![0, 22, 0, 16, 0, 0, 0, 0];
                    list.extend_from_slice(&lba.to_be_bytes());
                    list.extend_from_slice(&blocks.to_be_bytes());
                    list.extend_from_slice(&[0; 4]);
                    assert_good(target.data_out(&cdb::ten(0x42, 0, 0, 24), &list));
                    let bytes = range(lba, blocks);
                    let unit = GRANULARITY as usize;
                    let start = bytes.start.next_multiple_of(unit);
                    let end = bytes.end / unit * unit;
                    if start < end {
                        model[start..end].fill(0);
                    }
                }
                Step::SynchronizeCache => assert_good(target.no_data(&cdb::ten(0x35, 0, 0, 0))),
                Step::CutPower => {
                    if is_cached {
                        assert_good(target.no_data(&cdb::sixteen(0x91, 0, 0, 0)));
                    }
                    target.disk().cut_power();
                }
            }
            prop_assert_eq!(&*target.disk().image.borrow(), &model);
        }
    }
}
