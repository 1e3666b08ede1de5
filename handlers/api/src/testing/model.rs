//! A disk as everybody imagines it, to hold a backstore against.

use proptest::collection::vec;
use proptest::prelude::*;

use super::{block_on, buffer, contents, io, scattered};
use crate::{Backstore, Comparison, Extent, Fua, Io, WriteFlags, ZeroFlags};

/// One request, its place and length in logical blocks.
#[derive(Clone, Copy, Debug)]
#[allow(missing_docs)] // The fields are those of the backstore's functions.
pub enum Step {
    /// See [`Backstore::read`].
    Read { block: u64, blocks: u64 },
    /// See [`Backstore::write`]; `seed` makes the bytes.
    Write {
        block: u64,
        blocks: u64,
        seed: u8,
        fua: bool,
    },
    /// See [`Backstore::flush`].
    Flush,
    /// See [`Backstore::unmap`].
    Unmap { block: u64, blocks: u64 },
    /// See [`Backstore::write_zeroes`].
    WriteZeroes {
        block: u64,
        blocks: u64,
        may_unmap: bool,
        fua: bool,
    },
    /// See [`Backstore::compare_and_write`]; with `wrong`, the byte there is not as expected.
    CompareAndWrite {
        block: u64,
        blocks: u64,
        seed: u8,
        wrong: Option<usize>,
    },
    /// See [`Backstore::block_status`].
    BlockStatus { block: u64, blocks: u64 },
}

/// Random requests to a disk of `blocks` blocks, each at most `longest` blocks long.
pub fn steps(blocks: u64, longest: u64) -> impl Strategy<Value = Vec<Step>> {
    let range = (0..blocks).prop_flat_map(move |block| {
        let longest = longest.min(blocks - block);
        (Just(block), 1..=longest)
    });
    let step = prop_oneof![
        3 => range.clone().prop_map(|(block, blocks)| Step::Read { block, blocks }),
        4 => (range.clone(), any::<u8>(), any::<bool>()).prop_map(
            |((block, blocks), seed, fua)| Step::Write { block, blocks, seed, fua }
        ),
        1 => Just(Step::Flush),
        2 => range.clone().prop_map(|(block, blocks)| Step::Unmap { block, blocks }),
        2 => (range.clone(), any::<bool>(), any::<bool>()).prop_map(
            |((block, blocks), may_unmap, fua)| Step::WriteZeroes { block, blocks, may_unmap, fua }
        ),
        1 => (range.clone(), any::<u8>(), any::<Option<usize>>()).prop_map(
            |((block, blocks), seed, wrong)| Step::CompareAndWrite { block, blocks, seed, wrong }
        ),
        1 => range.prop_map(|(block, blocks)| Step::BlockStatus { block, blocks }),
    ];
    vec(step, 1..64)
}

/// What a disk of zeroes must hold after the requests so far.
#[derive(Debug)]
pub struct Disk {
    bytes: Vec<u8>,
    block_size: u64,
    io: Io,
}

impl Disk {
    /// A disk of `blocks` blocks of `block_size` bytes, all zero.
    pub fn new(blocks: u64, block_size: u32) -> Self {
        let block_size = u64::from(block_size);
        Self {
            bytes: vec![0; (blocks * block_size) as usize],
            block_size,
            io: io(),
        }
    }

    /// Sends the requests that `backstore` claims to do to it, and to the model, and compares what is read.
    ///
    /// # Panics
    /// Where the backstore fails or returns other bytes.
    pub fn run(&mut self, backstore: &impl Backstore, steps: &[Step]) {
        for (number, step) in steps.iter().enumerate() {
            self.step(backstore, *step, &format!("step {number}, {step:?}"));
        }
        let all = Extent {
            offset: 0,
            len: self.bytes.len() as u64,
        };
        self.compare(backstore, all, "after the last step");
    }

    fn step(&mut self, backstore: &impl Backstore, step: Step, what: &str) {
        let capabilities = backstore.capabilities();
        let fua_is_native = capabilities.volatile_cache && capabilities.fua == Fua::Native;
        let io = self.io.clone();
        let result = match step {
            Step::Read { block, blocks } => {
                self.compare(backstore, self.extent(block, blocks), what);
                Ok(())
            }
            Step::Write {
                block,
                blocks,
                seed,
                fua,
            } => {
                let extent = self.extent(block, blocks);
                let bytes = pattern(seed, extent.len as usize);
                let source = scattered(&bytes, piece(seed));
                self.at(extent).copy_from_slice(&bytes);
                let flags = WriteFlags {
                    fua: fua && fua_is_native,
                };
                block_on(backstore.write(&io, source.view(), extent.offset, flags))
            }
            Step::Flush if capabilities.volatile_cache => block_on(backstore.flush(&io)),
            Step::Flush => Ok(()),
            Step::Unmap { block, blocks } => match capabilities.unmap {
                None => Ok(()),
                Some(unmap) => {
                    let extent = self.extent(block, blocks);
                    let result = block_on(backstore.unmap(&io, extent));
                    if unmap.reads_zeroes {
                        self.at(extent).fill(0);
                    } else {
                        let now = read(backstore, &io, extent, what);
                        self.at(extent).copy_from_slice(&now);
                    }
                    result
                }
            },
            Step::WriteZeroes {
                block,
                blocks,
                may_unmap,
                fua,
            } if capabilities.write_zeroes => {
                let extent = self.extent(block, blocks);
                self.at(extent).fill(0);
                let flags = ZeroFlags {
                    fua: fua && fua_is_native,
                    may_unmap,
                };
                block_on(backstore.write_zeroes(&io, extent, flags))
            }
            Step::WriteZeroes { .. } => Ok(()),
            Step::CompareAndWrite {
                block,
                blocks,
                seed,
                wrong,
            } => {
                let extent = self.extent(block, blocks);
                if extent.len <= capabilities.compare_and_write.into() {
                    self.compare_and_write(backstore, extent, seed, wrong, what);
                }
                Ok(())
            }
            Step::BlockStatus { block, blocks } => {
                if let Some(unmap) = capabilities.unmap {
                    let extent = self.extent(block, blocks);
                    self.check_status(backstore, extent, unmap.reads_zeroes, what);
                }
                Ok(())
            }
        };
        if let Err(error) = result {
            panic!("{what}: {error}");
        }
    }

    fn compare_and_write(
        &mut self,
        backstore: &impl Backstore,
        extent: Extent,
        seed: u8,
        wrong: Option<usize>,
        what: &str,
    ) {
        let mut expected = self.at(extent).to_vec();
        let wrong = wrong.map(|at| at % expected.len());
        if let Some(at) = wrong {
            expected[at] ^= 0x80;
        }
        let new = pattern(seed, expected.len());
        let (expected, source) = (scattered(&expected, piece(seed)), scattered(&new, 512));
        let flags = WriteFlags::default();
        let (io, offset) = (self.io.clone(), extent.offset);
        let swap = backstore.compare_and_write(&io, expected.view(), source.view(), offset, flags);
        match (block_on(swap), wrong) {
            (Ok(Comparison::Equal), None) => self.at(extent).copy_from_slice(&new),
            (Ok(Comparison::DiffersAt(at)), Some(wrong)) if at == wrong => {}
            (result, _) => panic!("{what}: {result:?}"),
        }
    }

    /// What has no storage reads as zeroes where that is claimed, and the answer makes sense.
    fn check_status(
        &mut self,
        backstore: &impl Backstore,
        extent: Extent,
        reads_zeroes: bool,
        what: &str,
    ) {
        match block_on(backstore.block_status(&self.io, extent)) {
            Ok(status) if (1..=extent.len).contains(&status.len) => {
                let Extent { offset, .. } = extent;
                let len = status.len;
                let bytes = self.at(Extent { offset, len });
                assert!(
                    status.mapped || !reads_zeroes || bytes.iter().all(|&byte| byte == 0),
                    "{what}: bytes without storage are not zero"
                );
            }
            status => panic!("{what}: {status:?}"),
        }
    }

    fn extent(&self, block: u64, blocks: u64) -> Extent {
        Extent {
            offset: block * self.block_size,
            len: blocks * self.block_size,
        }
    }

    fn at(&mut self, extent: Extent) -> &mut [u8] {
        &mut self.bytes[extent.offset as usize..extent.end() as usize]
    }

    fn compare(&self, backstore: &impl Backstore, extent: Extent, what: &str) {
        let is = read(backstore, &self.io, extent, what);
        let should = &self.bytes[extent.offset as usize..extent.end() as usize];
        if let Some(at) = is.iter().zip(should).position(|(is, should)| is != should) {
            panic!(
                "{what}: byte {} is {} instead of {}",
                extent.offset + at as u64,
                is[at],
                should[at]
            );
        }
    }
}

fn read(backstore: &impl Backstore, io: &Io, extent: Extent, what: &str) -> Vec<u8> {
    let target = buffer(extent.len as usize);
    target.view().fill(0xee);
    if let Err(error) = block_on(backstore.read(io, target.view(), extent.offset)) {
        panic!("{what}: {error}");
    }
    contents(&target)
}

/// Bytes that tell where in a write they stood.
fn pattern(seed: u8, len: usize) -> Vec<u8> {
    (0..len)
        .map(|at| (at as u8) ^ ((at >> 8) as u8).wrapping_mul(29) ^ seed)
        .collect()
}

/// A length for the segments of a scattered buffer.
fn piece(seed: u8) -> usize {
    512 * (1 + usize::from(seed % 9))
}
