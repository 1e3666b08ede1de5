//! What is written can be read, wherever and however.

use super::stand::{Disk, Stand, compare, failed, in_segments, pattern};
use super::{Kept, Verdict};
use crate::testing::{Random, Together, contents};
use crate::{Backstore, Comparison, Error, Extent, Handler, OwnedBuffer, WriteFlags, ZeroFlags};

pub(super) fn bounds<H: Handler>(stand: &Stand<'_, H>) -> Verdict {
    let disk = stand.open()?;
    let mut should = disk.fill(1)?;
    disk.compare_all(&should, "after writing everywhere")?;
    let last = disk.size / disk.block - 1;
    let ranges = [
        (0, 1),
        (last, 1),
        (0, 3),
        (last - 2, 3),
        (0, 256),
        (last - 255, 256),
        (0, last + 1),
        (last, 1),
        (0, 1),
    ];
    for (tag, (block, blocks)) in (2..).zip(ranges) {
        let extent = disk.blocks(block, blocks);
        let bytes = pattern(tag, extent.offset, extent.len);
        disk.write(extent.offset, &bytes)?;
        should[extent.offset as usize..extent.end() as usize].copy_from_slice(&bytes);
        compare(&disk.read(extent)?, &bytes, extent.offset, "read back")?;
        let when = format!("after writing {blocks} blocks at block {block}");
        disk.compare_all(&should, &when)?;
    }
    disk.close()?;
    Ok(Kept::Tried)
}

pub(super) fn alignment<H: Handler>(stand: &Stand<'_, H>) -> Verdict {
    let disk = stand.open()?;
    let mut should = disk.fill(1)?;
    // Around a place where the units of most image formats meet.
    let base = (1 << 20) / disk.block - 9;
    let region = disk.blocks(base - 20, 60);
    for start in 0..18 {
        for blocks in 1..=18 {
            let extent = disk.blocks(base + start, blocks);
            let bytes = pattern(start * 100 + blocks, extent.offset, extent.len);
            disk.write(extent.offset, &bytes)?;
            should[extent.offset as usize..extent.end() as usize].copy_from_slice(&bytes);
            let when = format!("after writing {} bytes at {}", extent.len, extent.offset);
            let part = &should[region.offset as usize..region.end() as usize];
            compare(&disk.read(region)?, part, region.offset, &when)?;
        }
        for blocks in 1..=18 {
            let extent = disk.blocks(base + start, blocks);
            let when = format!("reading {} bytes at {}", extent.len, extent.offset);
            let part = &should[extent.offset as usize..extent.end() as usize];
            compare(&disk.read(extent)?, part, extent.offset, &when)?;
        }
    }
    disk.compare_all(&should, "in the end")?;
    disk.close()?;
    Ok(Kept::Tried)
}

pub(super) fn segments<H: Handler>(stand: &Stand<'_, H>) -> Verdict {
    const LISTS: [&[usize]; 7] = [
        &[usize::MAX],
        &[512],
        &[4096, 0, 4096],
        &[1, 511],
        &[3, 4093, 0, 0, 100],
        &[8191, 1, 7],
        &[0, 65536, 12],
    ];
    let disk = stand.open()?;
    let mut should = disk.fill(1)?;
    let long = disk.blocks(0, (200 << 10) / disk.block).len;
    for (tag, list) in (2..).zip(LISTS) {
        for len in [disk.block, long] {
            let offset = disk.block * (5 + tag);
            let bytes = pattern(tag, offset, len);
            let memory = in_segments(&bytes, list);
            let flags = WriteFlags::default();
            let write = disk.backstore.write(&disk.io, memory.view(), offset, flags);
            let how = |what: &str| format!("{what} {len} bytes in segments of {list:?}");
            disk.engine
                .run(write)
                .map_err(|error| format!("{}: {error}", how("writing")))?;
            should[offset as usize..][..len as usize].copy_from_slice(&bytes);
            let extent = Extent { offset, len };
            compare(&disk.read(extent)?, &bytes, offset, &how("after writing"))?;

            let memory = in_segments(&vec![0xee; len as usize], list);
            let read = disk.backstore.read(&disk.io, memory.view(), offset);
            disk.engine
                .run(read)
                .map_err(|error| format!("{}: {error}", how("reading")))?;
            compare(&contents(&memory), &bytes, offset, &how("reading"))?;
        }
    }
    disk.compare_all(&should, "in the end")?;
    disk.close()?;
    Ok(Kept::Tried)
}

pub(super) fn overlap<H: Handler>(stand: &Stand<'_, H>) -> Verdict {
    const BLOCKS: u64 = 48;
    const TOGETHER: u64 = 8;
    let disk = stand.open()?;
    let mut random = Random::new(7);
    let first = (1 << 20) / disk.block - BLOCKS / 2;
    let region = disk.blocks(first, BLOCKS);
    let mut now = pattern(1, region.offset, region.len);
    disk.write(region.offset, &now)?;
    for round in 0..24 {
        let mut extents = Vec::new();
        for _ in 0..TOGETHER {
            let block = random.below(BLOCKS);
            let blocks = 1 + random.below(BLOCKS - block);
            extents.push(disk.blocks(first + block, blocks));
        }
        let tags: Vec<u64> = (0..TOGETHER)
            .map(|number| 10 + round * TOGETHER + number)
            .collect();
        let sources: Vec<OwnedBuffer> = extents
            .iter()
            .zip(&tags)
            .map(|(extent, tag)| in_segments(&pattern(*tag, extent.offset, extent.len), &[4096]))
            .collect();
        let targets: Vec<OwnedBuffer> = (0..2)
            .map(|_| in_segments(&vec![0xee; region.len as usize], &[4096]))
            .collect();
        let mut together = Together::new(&disk.engine);
        for (extent, source) in extents.iter().zip(&sources) {
            let flags = WriteFlags::default();
            together.add(
                disk.backstore
                    .write(&disk.io, source.view(), extent.offset, flags),
            );
        }
        for target in &targets {
            together.add(disk.backstore.read(&disk.io, target.view(), region.offset));
        }
        while let Some(result) = together.finish_one() {
            result.map_err(|error| format!("overlapping requests: {error}"))?;
        }
        drop(together);
        let after = disk.read(region)?;
        for block in 0..BLOCKS {
            let extent = disk.blocks(first + block, 1);
            let at =
                (extent.offset - region.offset) as usize..(extent.end() - region.offset) as usize;
            let written: Vec<Vec<u8>> = extents
                .iter()
                .zip(&tags)
                .filter(|(other, _)| other.offset <= extent.offset && extent.end() <= other.end())
                .map(|(_, tag)| pattern(*tag, extent.offset, extent.len))
                .collect();
            let before = &now[at.clone()];
            let is = &after[at.clone()];
            let good = match written.is_empty() {
                true => is == before,
                false => written.iter().any(|bytes| bytes == is),
            };
            if !good {
                return Err(format!(
                    "the block at {} holds what none of {} overlapping writes has written",
                    extent.offset,
                    written.len()
                ));
            }
            for target in targets.iter().map(contents) {
                for (place, byte) in target[at.clone()].iter().enumerate() {
                    let known =
                        *byte == before[place] || written.iter().any(|bytes| bytes[place] == *byte);
                    if !known {
                        return Err(format!(
                            "byte {} was read as {byte:#04x} during overlapping writes, and was \
                             never that",
                            extent.offset + place as u64
                        ));
                    }
                }
            }
        }
        now = after;
        compare(&disk.read(region)?, &now, region.offset, "read again")?;
    }
    disk.close()?;
    Ok(Kept::Tried)
}

/// What a request of the workload does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Action {
    Read,
    Write { fua: bool },
    Zero { fua: bool, may_unmap: bool },
    Unmap,
    Swap { wrong: bool },
    Flush,
}

/// How a request ended.
struct Ended {
    action: Action,
    extent: Extent,
    what: Result<Outcome, Error>,
}

enum Outcome {
    Done,
    Bytes(Vec<u8>),
    Compared(Comparison),
}

pub(super) fn workload<H: Handler>(stand: &Stand<'_, H>) -> Verdict {
    const REQUESTS: usize = 300;
    let disk = stand.open()?;
    let mut model = disk.fill(1)?;
    let mut random = Random::new(3);
    for depth in [1, 8, 32] {
        work(&disk, &mut model, &mut random, depth, REQUESTS)
            .map_err(|how| format!("{depth} requests at once: {how}"))?;
        disk.compare_all(&model, &format!("after {depth} requests at once"))?;
    }
    disk.close()?;
    Ok(Kept::Tried)
}

fn work<B: Backstore>(
    disk: &Disk<B>,
    model: &mut [u8],
    random: &mut Random,
    depth: usize,
    mut requests: usize,
) -> Result<(), String> {
    let mut together = Together::new(&disk.engine);
    let mut running: Vec<(Action, Extent)> = Vec::new();
    let mut tag = 1000;
    loop {
        while requests > 0 && running.len() < depth {
            requests -= 1;
            let (action, extent) = choose(disk, random);
            let conflicts = |(other, place): &(Action, Extent)| {
                let changes = |action| !matches!(action, Action::Read | Action::Flush);
                (changes(action) || changes(*other)) && overlaps(*place, extent)
            };
            if action != Action::Flush && running.iter().any(conflicts) {
                continue;
            }
            tag += 1;
            let at = extent.offset as usize..extent.end() as usize;
            let old = model[at.clone()].to_vec();
            let new = pattern(tag, extent.offset, extent.len);
            match action {
                Action::Write { .. } | Action::Swap { wrong: false } => {
                    model[at].copy_from_slice(&new)
                }
                Action::Zero { .. } => model[at].fill(0),
                Action::Read | Action::Unmap | Action::Flush | Action::Swap { wrong: true } => {}
            }
            running.push((action, extent));
            together.add(request(disk, action, extent, old, new));
        }
        let Some(Ended {
            action,
            extent,
            what,
        }) = together.finish_one()
        else {
            return Ok(());
        };
        let place = running.iter().position(|other| *other == (action, extent));
        running.swap_remove(place.ok_or("a request ended twice")?);
        let what = what
            .map_err(|error| failed(&format!("{action:?}"), extent.offset, extent.len, &error))?;
        let at = extent.offset as usize..extent.end() as usize;
        match (action, what) {
            (Action::Read, Outcome::Bytes(bytes)) => {
                compare(&bytes, &model[at], extent.offset, "a read")?;
            }
            (Action::Unmap, Outcome::Bytes(bytes)) => {
                check_unmapped(disk, extent, &model[at.clone()], &bytes)?;
                model[at].copy_from_slice(&bytes);
            }
            (Action::Swap { wrong }, Outcome::Compared(comparison)) => {
                let right = match wrong {
                    false => Comparison::Equal,
                    true => Comparison::DiffersAt(WRONG_BYTE),
                };
                if comparison != right {
                    return Err(format!(
                        "comparing {} bytes at {} found {comparison:?} instead of {right:?}",
                        extent.len, extent.offset
                    ));
                }
            }
            _ => {}
        }
    }
}

/// Which byte of a wrong comparison is wrong.
const WRONG_BYTE: usize = 77;

async fn request<B: Backstore>(
    disk: &Disk<B>,
    action: Action,
    extent: Extent,
    mut old: Vec<u8>,
    new: Vec<u8>,
) -> Ended {
    let (backstore, io) = (&disk.backstore, &disk.io);
    let Extent { offset, .. } = extent;
    let new = in_segments(&new, &[4096]);
    let what = match action {
        Action::Read => {
            let read = backstore.read(io, new.view(), offset).await;
            read.map(|()| Outcome::Bytes(contents(&new)))
        }
        Action::Write { fua } => {
            let flags = WriteFlags { fua };
            let write = backstore.write(io, new.view(), offset, flags).await;
            write.map(|()| Outcome::Done)
        }
        Action::Zero { fua, may_unmap } => {
            let flags = ZeroFlags { fua, may_unmap };
            let zero = backstore.write_zeroes(io, extent, flags).await;
            zero.map(|()| Outcome::Done)
        }
        // What it holds then is only known when it was read.
        Action::Unmap => match backstore.unmap(io, extent).await {
            Ok(()) => {
                let read = backstore.read(io, new.view(), offset).await;
                read.map(|()| Outcome::Bytes(contents(&new)))
            }
            Err(error) => Err(error),
        },
        Action::Swap { wrong } => {
            if wrong {
                old[WRONG_BYTE] ^= 0x10;
            }
            let (old, flags) = (in_segments(&old, &[512]), WriteFlags::default());
            let swap = backstore.compare_and_write(io, old.view(), new.view(), offset, flags);
            swap.await.map(Outcome::Compared)
        }
        Action::Flush => backstore.flush(io).await.map(|()| Outcome::Done),
    };
    Ended {
        action,
        extent,
        what,
    }
}

fn choose<B: Backstore>(disk: &Disk<B>, random: &mut Random) -> (Action, Extent) {
    let claims = disk.capabilities();
    let total = disk.size / disk.block;
    let block = random.below(total);
    let longest = match random.one_in(8) {
        true => (256 << 10) / disk.block,
        false => (16 << 10) / disk.block,
    };
    let blocks = 1 + random.below(longest.max(1).min(total - block));
    let mut extent = disk.blocks(block, blocks);
    let fua = disk.has_native_fua() && random.one_in(4);
    let action = match random.below(12) {
        0..=3 => Action::Read,
        4..=7 => Action::Write { fua },
        8 if claims.write_zeroes => Action::Zero {
            fua,
            may_unmap: random.one_in(2),
        },
        9 if claims.unmap.is_some() => Action::Unmap,
        10 if claims.compare_and_write != 0 => {
            let longest = u64::from(claims.compare_and_write) / disk.block;
            extent = disk.blocks(block, blocks.min(longest));
            Action::Swap {
                wrong: random.one_in(2),
            }
        }
        11 if claims.volatile_cache => Action::Flush,
        _ => Action::Read,
    };
    (action, extent)
}

fn overlaps(one: Extent, other: Extent) -> bool {
    one.offset < other.end() && other.offset < one.end()
}

/// Whether a range may hold `after` when it was unmapped and held `before`.
pub(super) fn check_unmapped<B: Backstore>(
    disk: &Disk<B>,
    extent: Extent,
    before: &[u8],
    after: &[u8],
) -> Result<(), String> {
    let Some(unmap) = disk.capabilities().unmap.filter(|unmap| unmap.reads_zeroes) else {
        return Ok(());
    };
    let unit = disk.block as usize;
    for (number, (after, before)) in after.chunks(unit).zip(before.chunks(unit)).enumerate() {
        let offset = extent.offset + number as u64 * disk.block;
        let granule = offset / unmap.granularity * unmap.granularity;
        let whole = granule >= extent.offset && granule + unmap.granularity <= extent.end();
        let zero = after.iter().all(|byte| *byte == 0);
        // Parts of the units may be kept as they are.
        if !zero && (whole || after != before) {
            return Err(format!(
                "the block at {offset} is not zero after unmapping {} bytes at {}",
                extent.len, extent.offset
            ));
        }
    }
    Ok(())
}
