//! Random commands against the simplest model of a disk: a vector of bytes.

use proptest::prelude::*;
use tcmu::scsi::{AdditionalSense, SenseKey};
use tcmu_handler::{Capabilities, Fua};
use tcmu_runner::device_server::Response;

use crate::disk::{GRANULARITY, everything};
use crate::target::{BLOCK, Target, assert_good, assert_sense, cdb};

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
    WriteAndVerify {
        lba: u64,
        blocks: u32,
        byte: u8,
    },
    /// With `wrong`, the byte there is not as expected.
    Verify {
        lba: u64,
        blocks: u32,
        wrong: Option<usize>,
    },
    CompareAndWrite {
        lba: u64,
        blocks: u32,
        byte: u8,
        fua: bool,
        wrong: Option<usize>,
    },
    OrWrite {
        lba: u64,
        blocks: u32,
        byte: u8,
        fua: bool,
    },
    GetLbaStatus {
        lba: u64,
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
        1 => range.clone().prop_map(|(lba, blocks)| Step::Unmap { lba, blocks }),
        1 => (range.clone(), 1..255u8)
            .prop_map(|((lba, blocks), byte)| Step::WriteAndVerify { lba, blocks, byte }),
        1 => (range.clone(), any::<Option<usize>>())
            .prop_map(|((lba, blocks), wrong)| Step::Verify { lba, blocks, wrong }),
        2 => (range.clone(), 1..255u8, any::<bool>(), any::<Option<usize>>()).prop_map(
            |((lba, blocks), byte, fua, wrong)| {
                Step::CompareAndWrite { lba, blocks, byte, fua, wrong }
            }
        ),
        1 => (range, 1..255u8, any::<bool>())
            .prop_map(|((lba, blocks), byte, fua)| Step::OrWrite { lba, blocks, byte, fua }),
        1 => (0..BLOCKS).prop_map(|lba| Step::GetLbaStatus { lba }),
        1 => Just(Step::SynchronizeCache),
        1 => Just(Step::CutPower),
    ]
}

fn any_capabilities() -> impl Strategy<Value = Capabilities> {
    any::<[bool; 4]>().prop_map(|[volatile, native, zeroes, swap]| {
        let mut capabilities = everything(BLOCKS * BLOCK as u64);
        capabilities.volatile_cache = volatile;
        capabilities.write_zeroes = zeroes;
        capabilities.compare_and_write = if swap { 10 * BLOCK as u32 } else { 0 };
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

/// Changes the byte that `wrong` chooses, if it does, and returns where that is.
fn corrupt(bytes: &mut [u8], wrong: Option<usize>) -> Option<usize> {
    let at = wrong? % bytes.len();
    bytes[at] ^= 0x80;
    Some(at)
}

/// GOOD, or the miscompare that has to be reported with this INFORMATION.
fn assert_compared(response: Response, information: Option<u64>) {
    match information {
        None => assert_good(response),
        Some(_) => {
            let code = AdditionalSense::MISCOMPARE_DURING_VERIFY_OPERATION;
            assert_sense(response, SenseKey::Miscompare, code);
            assert_eq!(response.sense.unwrap().information, information);
        }
    }
}

/// Durable on its own, whatever else is in the cache.
fn assert_durable(target: &Target, range: std::ops::Range<usize>) {
    let image = target.disk().image.borrow().clone();
    target.disk().cut_power();
    let kept = target.disk().image.replace(image);
    assert_eq!(kept[range.clone()], target.disk().image.borrow()[range]);
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
                        assert_durable(&target, range(lba, blocks));
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
                Step::WriteAndVerify { lba, blocks, byte } => {
                    let data = data(blocks, byte);
                    assert_good(target.data_out(&cdb::sixteen(0x8e, 0x02, lba, blocks), &data));
                    model[range(lba, blocks)].copy_from_slice(&data);
                    assert_durable(&target, range(lba, blocks));
                }
                Step::Verify { lba, blocks, wrong } => {
                    let mut data = model[range(lba, blocks)].to_vec();
                    let wrong = corrupt(&mut data, wrong);
                    let response = target.data_out(&cdb::sixteen(0x8f, 0x02, lba, blocks), &data);
                    assert_compared(response, wrong.map(|at| lba + (at / BLOCK) as u64));
                    assert_good(target.no_data(&cdb::sixteen(0x8f, 0, lba, blocks)));
                }
                Step::CompareAndWrite { lba, blocks, byte, fua, wrong } => {
                    let most = match capabilities.compare_and_write {
                        0 => 255,
                        bytes => bytes / BLOCK as u32,
                    };
                    let blocks = blocks.min(most);
                    let new = data(blocks, byte);
                    let mut both = model[range(lba, blocks)].to_vec();
                    let wrong = corrupt(&mut both, wrong);
                    both.extend_from_slice(&new);
                    let cdb = cdb::sixteen(0x89, u8::from(fua) << 3, lba, blocks);
                    let response = target.data_out(&cdb, &both);
                    assert_compared(response, wrong.map(|at| at as u64));
                    if wrong.is_none() {
                        model[range(lba, blocks)].copy_from_slice(&new);
                    }
                    if fua && is_cached && wrong.is_none() {
                        assert_durable(&target, range(lba, blocks));
                    }
                }
                Step::OrWrite { lba, blocks, byte, fua } => {
                    let bits = data(blocks, byte);
                    let cdb = cdb::sixteen(0x8b, u8::from(fua) << 3, lba, blocks);
                    assert_good(target.data_out(&cdb, &bits));
                    for (byte, bits) in model[range(lba, blocks)].iter_mut().zip(&bits) {
                        *byte |= bits;
                    }
                    if fua && is_cached {
                        assert_durable(&target, range(lba, blocks));
                    }
                }
                Step::GetLbaStatus { lba } => {
                    let data = target.parameters(&cdb::sixteen(0x9e, 0x12, lba, 4096));
                    let mut next = lba;
                    for descriptor in data[8..].chunks_exact(16) {
                        let first = u64::from_be_bytes(descriptor[..8].try_into().unwrap());
                        let blocks = u32::from_be_bytes(descriptor[8..12].try_into().unwrap());
                        prop_assert_eq!(first, next);
                        next += u64::from(blocks);
                        if descriptor[12] == 1 {
                            prop_assert!(model[range(first, blocks)].iter().all(|&byte| byte == 0));
                        }
                    }
                    prop_assert_eq!(next, BLOCKS);
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
