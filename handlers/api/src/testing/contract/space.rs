//! Storage that is given back, and zeroes.

use super::data::check_unmapped;
use super::stand::{Disk, Stand, compare};
use super::{Kept, Memory, Verdict, skipped};
use crate::{Backstore, BlockStatus, Extent, Handler, ZeroFlags};

/// Ranges in blocks that begin and end anywhere, small ones and large ones.
fn ranges<B: Backstore>(disk: &Disk<B>) -> Vec<Extent> {
    let last = disk.size / disk.block - 1;
    let mib = (1 << 20) / disk.block;
    [
        (0, 1),
        (last, 1),
        (3, 1),
        (7, 30),
        (mib - 3, 7),
        (mib + 1, mib - 2),
        (2 * mib, mib),
        (mib / 2, last - mib),
        (0, last + 1),
    ]
    .map(|(block, blocks)| disk.blocks(block, blocks))
    .to_vec()
}

fn part(bytes: &[u8], extent: Extent) -> &[u8] {
    &bytes[extent.offset as usize..extent.end() as usize]
}

pub(super) fn write_zeroes<H: Handler>(stand: &Stand<'_, H>) -> Verdict {
    let disk = stand.open()?;
    if !disk.capabilities().write_zeroes {
        return skipped("the runner writes zeroes itself");
    }
    for may_unmap in [false, true] {
        for fua in [false, true] {
            if fua && !disk.has_native_fua() {
                continue;
            }
            let flags = ZeroFlags { fua, may_unmap };
            let mut should = disk.fill(1)?;
            for extent in ranges(&disk) {
                disk.zero(extent, flags)?;
                should[extent.offset as usize..extent.end() as usize].fill(0);
                let when = format!("after zeroing {} bytes at {}", extent.len, extent.offset);
                disk.compare_all(&should, &when)?;
            }
        }
    }
    // What was zeroed can be written to again.
    let should = disk.fill(2)?;
    disk.compare_all(&should, "after writing to what was zeroed")?;
    disk.close()?;
    Ok(Kept::Tried)
}

pub(super) fn unmap<H: Handler>(stand: &Stand<'_, H>) -> Verdict {
    let disk = stand.open()?;
    if disk.capabilities().unmap.is_none() {
        return skipped("the image gives no storage back");
    }
    let mut before = disk.fill(1)?;
    for extent in ranges(&disk) {
        disk.unmap(extent)?;
        let after = disk.read_all()?;
        check_unmapped(&disk, extent, part(&before, extent), part(&after, extent))?;
        let when = format!("after unmapping {} bytes at {}", extent.len, extent.offset);
        let start = extent.offset as usize;
        compare(&after[..start], &before[..start], 0, &when)?;
        let end = extent.end() as usize;
        compare(&after[end..], &before[end..], extent.end(), &when)?;
        disk.compare_all(&after, "read twice after unmapping")?;
        before = after;
    }
    let should = disk.fill(2)?;
    disk.compare_all(&should, "after writing to what was unmapped")?;
    disk.close()?;
    Ok(Kept::Tried)
}

pub(super) fn block_status<H: Handler>(stand: &Stand<'_, H>) -> Verdict {
    let disk = stand.open()?;
    let claims = disk.capabilities();
    let Some(unmap) = claims.unmap else {
        return skipped("the image gives no storage back, so it is not asked");
    };
    walk(&disk, unmap.reads_zeroes, &[])?;
    let mib = 1 << 20;
    let written = [
        disk.blocks(0, 1),
        disk.blocks(mib / disk.block - 1, 3),
        disk.blocks(2 * mib / disk.block + 5, 100),
        disk.blocks(disk.size / disk.block - 1, 1),
    ];
    for extent in written {
        disk.write(extent.offset, &vec![0xc3; extent.len as usize])?;
    }
    walk(&disk, unmap.reads_zeroes, &written)?;
    disk.unmap(disk.blocks(0, disk.size / disk.block / 2))?;
    walk(&disk, unmap.reads_zeroes, &written[3..])?;
    disk.fill(1)?;
    let all = disk.blocks(0, disk.size / disk.block);
    walk(&disk, unmap.reads_zeroes, &[all])?;
    disk.close()?;
    if stand.contract.memory == Memory::Kept {
        let disk = stand.open()?;
        walk(&disk, unmap.reads_zeroes, &[all])
            .map_err(|how| format!("after the image was opened again, {how}"))?;
        disk.close()?;
    }
    Ok(Kept::Tried)
}

/// Asks from one end of the image to the other, and from within; `written` has to have storage.
fn walk<B: Backstore>(
    disk: &Disk<B>,
    reads_zeroes: bool,
    written: &[Extent],
) -> Result<(), String> {
    let bytes = disk.read_all()?;
    for longest in [disk.size, 64 << 10, disk.block] {
        let mut offset = 0;
        while offset < disk.size {
            let len = longest.min(disk.size - offset);
            let extent = Extent { offset, len };
            let what = || format!("block_status of {len} bytes at {offset}");
            let status = disk
                .engine
                .run(disk.backstore.block_status(&disk.io, extent));
            let BlockStatus { len: alike, mapped } =
                status.map_err(|error| format!("{}: {error}", what()))?;
            if !(1..=len).contains(&alike) {
                return Err(format!("{} speaks of {alike} bytes", what()));
            }
            let alike = Extent { offset, len: alike };
            let zero = part(&bytes, alike).iter().all(|byte| *byte == 0);
            if !mapped && reads_zeroes && !zero {
                return Err(format!(
                    "{}: what has no storage does not read as zeroes",
                    what()
                ));
            }
            let holds = |other: &Extent| other.offset < alike.end() && alike.offset < other.end();
            if !mapped && written.iter().any(holds) {
                return Err(format!("{}: what was written has no storage", what()));
            }
            // Small steps are tried in a part only.
            let fast = longest > disk.block || offset > 256 << 10;
            offset = match fast {
                true => alike.end().max(offset + disk.block) / disk.block * disk.block,
                false => offset + disk.block,
            };
            if longest == disk.block && offset > 512 << 10 {
                break;
            }
        }
    }
    Ok(())
}
