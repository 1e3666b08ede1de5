//! Comparing and writing as one step.

use super::stand::{Disk, Stand, compare, in_segments, pattern};
use super::{Kept, Verdict, skipped};
use crate::testing::Together;
use crate::{Backstore, Comparison, Extent, Handler, OwnedBuffer, Result as Answer, WriteFlags};

fn swap<B: Backstore>(
    disk: &Disk<B>,
    offset: u64,
    expected: &[u8],
    new: &[u8],
) -> Result<Comparison, String> {
    let (expected, new) = (in_segments(expected, &[512, 100]), in_segments(new, &[700]));
    let flags = WriteFlags::default();
    let (io, backstore) = (&disk.io, &disk.backstore);
    let swap = backstore.compare_and_write(io, expected.view(), new.view(), offset, flags);
    let answer = disk.engine.run(swap);
    answer.map_err(|error| format!("comparing and writing at {offset}: {error}"))
}

pub(super) fn compare_and_write<H: Handler>(stand: &Stand<'_, H>) -> Verdict {
    let disk = stand.open()?;
    let longest = u64::from(disk.capabilities().compare_and_write);
    if longest == 0 {
        return skipped("the runner compares and writes itself");
    }
    let mut should = disk.fill(1)?;
    let longest = disk.blocks(0, longest.min(disk.size / 2) / disk.block).len;
    for (tag, len) in (2..).zip([disk.block, disk.block * 8, longest]) {
        let len = len.min(longest);
        let offset = disk.block * 3;
        let extent = Extent { offset, len };
        let at = offset as usize..extent.end() as usize;
        let new = pattern(tag, offset, len);
        let mut expected = should[at.clone()].to_vec();
        for wrong in [0, 1, len / 2, len - 1] {
            expected[wrong as usize] ^= 1;
            // What comes after the first difference does not count.
            expected[len as usize - 1] ^= 2;
            let found = swap(&disk, offset, &expected, &new)?;
            if found != Comparison::DiffersAt(wrong as usize) {
                return Err(format!(
                    "{len} bytes that differ at byte {wrong} first: {found:?}"
                ));
            }
            expected[len as usize - 1] ^= 2;
            expected[wrong as usize] ^= 1;
        }
        disk.compare_all(&should, "after comparisons that found differences")?;
        let found = swap(&disk, offset, &expected, &new)?;
        if found != Comparison::Equal {
            return Err(format!("{len} bytes that are the same: {found:?}"));
        }
        should[at].copy_from_slice(&new);
        disk.compare_all(&should, "after a comparison that found none")?;
    }
    one_wins(&disk, &should)?;
    count(&disk)?;
    disk.close()?;
    Ok(Kept::Tried)
}

/// Of those that expect the same and write something else, one wins.
fn one_wins<B: Backstore>(disk: &Disk<B>, now: &[u8]) -> Result<(), String> {
    let len = disk
        .blocks(0, 4)
        .len
        .min(disk.capabilities().compare_and_write.into());
    for round in 0..8 {
        let offset = disk.block * (100 + round * 4);
        let expected = in_segments(&now[offset as usize..][..len as usize], &[512]);
        let news: Vec<Vec<u8>> = (0..8)
            .map(|number| pattern(1000 + round * 8 + number, offset, len))
            .collect();
        let buffers: Vec<OwnedBuffer> = news.iter().map(|new| in_segments(new, &[512])).collect();
        let mut together = Together::new(&disk.engine);
        for (number, new) in buffers.iter().enumerate() {
            let flags = WriteFlags::default();
            let (io, expected) = (&disk.io, expected.view());
            let swap = disk
                .backstore
                .compare_and_write(io, expected, new.view(), offset, flags);
            together.add(async move { (number, swap.await) });
        }
        let mut winners = Vec::new();
        while let Some((number, answer)) = together.finish_one() {
            match answer {
                Ok(Comparison::Equal) => winners.push(number),
                Ok(Comparison::DiffersAt(_)) => {}
                Err(error) => return Err(format!("comparing at once: {error}")),
            }
        }
        let [winner] = winners[..] else {
            return Err(format!(
                "{} of 8 at once found what they all expected",
                winners.len()
            ));
        };
        let extent = Extent { offset, len };
        compare(
            &disk.read(extent)?,
            &news[winner],
            offset,
            "after comparing at once",
        )?;
    }
    Ok(())
}

/// Counts in a block, several at a time; none of the counts is lost.
fn count<B: Backstore>(disk: &Disk<B>) -> Result<(), String> {
    const TOGETHER: u64 = 4;
    const EACH: u64 = 8;
    let extent = disk.blocks(7, 1);
    disk.write(extent.offset, &vec![0; extent.len as usize])?;
    let mut together: Together<'_, Answer<()>> = Together::new(&disk.engine);
    for _ in 0..TOGETHER {
        together.add(async {
            for _ in 0..EACH {
                increment(disk, extent).await?;
            }
            Ok(())
        });
    }
    while let Some(answer) = together.finish_one() {
        answer.map_err(|error| format!("counting: {error}"))?;
    }
    drop(together);
    let count = number(&disk.read(extent)?);
    match count == TOGETHER * EACH {
        true => Ok(()),
        false => Err(format!(
            "{TOGETHER} counted to {EACH} together, and the count is {count}"
        )),
    }
}

async fn increment<B: Backstore>(disk: &Disk<B>, extent: Extent) -> Answer<()> {
    let Extent { offset, len } = extent;
    let (io, backstore) = (&disk.io, &disk.backstore);
    loop {
        let old = in_segments(&vec![0xee; len as usize], &[512]);
        backstore.read(io, old.view(), offset).await?;
        let mut bytes = crate::testing::contents(&old);
        let next = number(&bytes) + 1;
        bytes[..8].copy_from_slice(&next.to_le_bytes());
        let new = in_segments(&bytes, &[512]);
        let flags = WriteFlags::default();
        let swap = backstore.compare_and_write(io, old.view(), new.view(), offset, flags);
        if swap.await? == Comparison::Equal {
            return Ok(());
        }
    }
}

fn number(bytes: &[u8]) -> u64 {
    let mut first = [0; 8];
    first.copy_from_slice(&bytes[..8]);
    u64::from_le_bytes(first)
}
