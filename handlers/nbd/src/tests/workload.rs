//! Random requests, many at a time, against a model.
//!
//! Each of as many workers as requests are to be outstanding has a part of the disk for itself, and so
//! knows what it must read.

use futures_util::future::join_all;
use tcmu_handler::testing::{Random, block_on, buffer, contents, scattered};
use tcmu_handler::{Backstore, Extent, Io, WriteFlags, ZeroFlags};

use crate::NbdImage;

/// How a workload is made.
#[derive(Clone, Copy, Debug)]
pub(super) struct Workload {
    pub(super) seed: u64,
    pub(super) depth: usize,
    /// Requests of each worker.
    pub(super) requests: usize,
    /// Bytes of the longest request.
    pub(super) longest: u64,
    /// The workers flush now and then.
    pub(super) flushes: bool,
}

/// Runs a workload on a whole image, and reads it in the end.
///
/// # Panics
/// Where a request fails, or reads other bytes than the model has.
pub(super) fn run(image: &NbdImage, io: &Io, workload: Workload) {
    let size = image.capabilities().size;
    let part = size / workload.depth as u64 / 512 * 512;
    let workers = (0..workload.depth as u64).map(|number| {
        let extent = Extent {
            offset: number * part,
            len: part,
        };
        worker(image, io, extent, number, workload)
    });
    block_on(join_all(workers));
}

async fn worker(image: &NbdImage, io: &Io, area: Extent, number: u64, workload: Workload) {
    let mut random = Random::new(workload.seed << 8 | number);
    let capabilities = image.capabilities();
    let mut model = take(image, io, area).await;
    for step in 0..workload.requests {
        let blocks = area.len / 512;
        let block = random.below(blocks);
        let longest = (blocks - block).min(workload.longest / 512);
        // Many are short.
        let most = if random.one_in(3) {
            longest
        } else {
            longest.min(8)
        };
        let len = 512 * (1 + random.below(most));
        let extent = Extent {
            offset: area.offset + block * 512,
            len,
        };
        let here = (block * 512) as usize..(block * 512 + len) as usize;
        let fua = random.one_in(4);
        let what = random.below(10);
        let result = match what {
            0..=3 => {
                let bytes = take(image, io, extent).await;
                let wrong = bytes.iter().zip(&model[here]).position(|(a, b)| a != b);
                assert_eq!(wrong, None, "worker {number}, step {step}, {extent:?}");
                Ok(())
            }
            4..=6 => {
                let bytes: Vec<u8> = (0..len).map(|_| random.number() as u8).collect();
                model[here].copy_from_slice(&bytes);
                let piece = 512 * (1 + random.below(9)) as usize;
                let source = scattered(&bytes, piece);
                let flags = WriteFlags { fua };
                image.write(io, source.view(), extent.offset, flags).await
            }
            7 if capabilities.write_zeroes => {
                model[here].fill(0);
                let flags = ZeroFlags {
                    fua,
                    may_unmap: random.one_in(2),
                };
                image.write_zeroes(io, extent, flags).await
            }
            8 if capabilities.unmap.is_some() => {
                let trimmed = image.unmap(io, extent).await;
                model[here].copy_from_slice(&take(image, io, extent).await);
                trimmed
            }
            9 if workload.flushes && capabilities.volatile_cache => image.flush(io).await,
            9 => {
                let status = image.block_status(io, extent).await;
                status.map(|status| assert!((1..=len).contains(&status.len)))
            }
            _ => Ok(()),
        };
        if let Err(error) = result {
            panic!("worker {number}, step {step}, {what}, {extent:?}: {error}");
        }
    }
    let all = take(image, io, area).await;
    let wrong = all.iter().zip(&model).position(|(a, b)| a != b);
    assert_eq!(wrong, None, "worker {number} in the end");
}

/// Reads a range.
async fn take(image: &NbdImage, io: &Io, extent: Extent) -> Vec<u8> {
    let target = buffer(extent.len as usize);
    target.view().fill(0xee);
    if let Err(error) = image.read(io, target.view(), extent.offset).await {
        panic!("{extent:?}: {error}");
    }
    contents(&target)
}
