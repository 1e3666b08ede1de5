//! What survives a power cut.

use super::stand::{Disk, Stand, in_segments, pattern};
use super::{Kept, Verdict, skipped};
use crate::testing::{Left, Random, Together};
use crate::{Backstore, Extent, Handler, OwnedBuffer, WriteFlags, ZeroFlags};

/// What a range may hold after the cut, block by block: one of these.
struct Allowed {
    block: usize,
    blocks: Vec<Vec<Vec<u8>>>,
}

impl Allowed {
    fn new(bytes: &[u8], block: u64) -> Self {
        let block = block as usize;
        let blocks = bytes.chunks(block).map(|bytes| vec![bytes.to_vec()]);
        Self {
            block,
            blocks: blocks.collect(),
        }
    }

    /// It holds `bytes` at `offset` for certain.
    fn certain(&mut self, offset: u64, bytes: &[u8]) {
        self.change(offset, bytes, |allowed| allowed.clear());
    }

    /// It holds `bytes` at `offset`, or what it held before.
    fn possible(&mut self, offset: u64, bytes: &[u8]) {
        self.change(offset, bytes, |_| {});
    }

    fn change(&mut self, offset: u64, bytes: &[u8], forget: impl Fn(&mut Vec<Vec<u8>>)) {
        let first = offset as usize / self.block;
        for (allowed, bytes) in self.blocks[first..]
            .iter_mut()
            .zip(bytes.chunks(self.block))
        {
            forget(allowed);
            allowed.push(bytes.to_vec());
        }
    }

    fn compare(&self, is: &[u8], when: &str) -> Result<(), String> {
        for (number, (bytes, allowed)) in is.chunks(self.block).zip(&self.blocks).enumerate() {
            if !allowed.iter().any(|allowed| allowed == bytes) {
                let lost = match allowed.len() {
                    1 => "is not what was durable",
                    _ => "is neither what was durable nor what was written since",
                };
                return Err(format!(
                    "{when}: the block at {} {lost}",
                    number * self.block
                ));
            }
        }
        Ok(())
    }
}

/// Places in the image, and a pattern for each.
fn places<B: Backstore>(disk: &Disk<B>, random: &mut Random, tag: &mut u64) -> (Extent, Vec<u8>) {
    let total = disk.size / disk.block;
    let block = random.below(total);
    let blocks = 1 + random.below((128 << 10) / disk.block);
    let extent = disk.blocks(block, blocks.min(total - block));
    *tag += 1;
    (extent, pattern(*tag, extent.offset, extent.len))
}

pub(super) fn flush<H: Handler>(stand: &Stand<'_, H>) -> Verdict {
    let mut random = Random::new(11);
    let mut tag = 1;
    for round in 0..6 {
        let stand = stand.another(100 + round)?;
        let disk = stand.open()?;
        let volatile = disk.capabilities().volatile_cache;
        let mut allowed = Allowed::new(&disk.fill(tag)?, disk.block);
        disk.flush()?;
        stand.engine.remember();
        // What the flush has to cover, also what has just come to the image.
        for _ in 0..8 {
            let (extent, bytes) = places(&disk, &mut random, &mut tag);
            disk.write(extent.offset, &bytes)?;
            allowed.certain(extent.offset, &bytes);
        }
        if disk.capabilities().write_zeroes {
            let (extent, _) = places(&disk, &mut random, &mut tag);
            let flags = ZeroFlags {
                may_unmap: round % 2 == 0,
                fua: false,
            };
            disk.zero(extent, flags)?;
            allowed.certain(extent.offset, &vec![0; extent.len as usize]);
        }
        disk.flush()?;
        for _ in 0..6 {
            let (extent, bytes) = places(&disk, &mut random, &mut tag);
            disk.write(extent.offset, &bytes)?;
            match volatile {
                true => allowed.possible(extent.offset, &bytes),
                false => allowed.certain(extent.offset, &bytes),
            }
        }
        in_flight(&disk, &mut random, &mut tag, &mut allowed);
        // The process dies: nothing is closed.
        drop(disk);
        let left = match round % 3 {
            0 => Left::Nothing,
            1 => Left::Some,
            _ => Left::Everything,
        };
        let cut = stand.engine.cut_power(left);
        cut.map_err(|error| format!("the power cannot be cut: {error}"))?;
        let disk = stand.open().map_err(|how| {
            format!("after a power cut that left {left:?} of what was not flushed: {how}")
        })?;
        let when = format!("after a power cut that left {left:?} of what was not flushed");
        allowed.compare(&disk.read_all()?, &when)?;
        disk.close()?;
    }
    Ok(Kept::Tried)
}

/// Begins writes that the cut finds on their way.
fn in_flight<B: Backstore>(
    disk: &Disk<B>,
    random: &mut Random,
    tag: &mut u64,
    allowed: &mut Allowed,
) {
    let writes: Vec<(Extent, OwnedBuffer)> = (0..4)
        .map(|_| {
            let (extent, bytes) = places(disk, random, tag);
            allowed.possible(extent.offset, &bytes);
            (extent, in_segments(&bytes, &[4096]))
        })
        .collect();
    let mut together = Together::new(&disk.engine);
    for (extent, source) in &writes {
        let flags = WriteFlags::default();
        together.add(
            disk.backstore
                .write(&disk.io, source.view(), extent.offset, flags),
        );
    }
    // Those that end at once may as well.
    while together.poll().is_some() {}
}

pub(super) fn fua<H: Handler>(stand: &Stand<'_, H>) -> Verdict {
    let mut random = Random::new(13);
    let mut tag = 1;
    for round in 0..4 {
        let stand = stand.another(200 + round)?;
        let disk = stand.open()?;
        if !disk.has_native_fua() {
            return skipped("the runner flushes after a write with FUA");
        }
        // The first half of the image has storage, the second may have none yet.
        let mut bytes = disk.read_all()?;
        let half = pattern(1, 0, disk.size / 2);
        for (number, piece) in half.chunks(256 << 10).enumerate() {
            disk.write((number * (256 << 10)) as u64, piece)?;
        }
        bytes[..half.len()].copy_from_slice(&half);
        let mut allowed = Allowed::new(&bytes, disk.block);
        disk.flush()?;
        stand.engine.remember();
        for number in 0..12 {
            let (extent, bytes) = places(&disk, &mut random, &mut tag);
            if number % 3 == 0 {
                disk.write(extent.offset, &bytes)?;
                allowed.possible(extent.offset, &bytes);
                continue;
            }
            disk.write_with(extent.offset, &bytes, WriteFlags { fua: true })?;
            allowed.certain(extent.offset, &bytes);
        }
        // Alone: zeroing may flush, which covers writes too.
        if round >= 2 && disk.capabilities().write_zeroes {
            for may_unmap in [false, true] {
                let (extent, _) = places(&disk, &mut random, &mut tag);
                let flags = ZeroFlags {
                    fua: true,
                    may_unmap,
                };
                disk.zero(extent, flags)?;
                allowed.certain(extent.offset, &vec![0; extent.len as usize]);
            }
        }
        drop(disk);
        let left = match round % 2 {
            0 => Left::Nothing,
            _ => Left::Some,
        };
        let cut = stand.engine.cut_power(left);
        cut.map_err(|error| format!("the power cannot be cut: {error}"))?;
        let when = format!("after a power cut that left {left:?} of what had no FUA");
        let disk = stand.open().map_err(|how| format!("{when}: {how}"))?;
        allowed.compare(&disk.read_all()?, &when)?;
        disk.close()?;
    }
    Ok(Kept::Tried)
}
