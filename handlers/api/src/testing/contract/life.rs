//! The life of an image: other sizes, its end, and what comes after.

use super::stand::{Stand, compare, in_segments, pattern};
use super::{Kept, Memory, Verdict, skipped};
use crate::testing::{Left, Together};
use crate::{Backstore, Comparison, ErrorKind, Extent, Handler, WriteFlags, ZeroFlags};

pub(super) fn resize<H: Handler>(stand: &Stand<'_, H>) -> Verdict {
    let remembers = stand.contract.memory > Memory::None;
    let disk = stand.open()?;
    if disk.capabilities().read_only {
        return skipped("the image is read-only");
    }
    let should = match remembers {
        true => disk.fill(1)?,
        false => Vec::new(),
    };
    let keeps = |len: u64, when: &str| match remembers {
        true => {
            let is = disk.read(Extent { offset: 0, len })?;
            compare(&is, &should[..len as usize], 0, when)
        }
        false => Ok(()),
    };
    let resize = |size| disk.engine.run(disk.backstore.resize(&disk.io, size));
    let size = |when: &str, least: u64| match disk.capabilities().size >= least {
        true => Ok(()),
        false => Err(format!(
            "{when}, the image has {} bytes",
            disk.capabilities().size
        )),
    };
    let half = disk.size / 2;
    resize(disk.size).map_err(|error| format!("the size that it has is refused: {error}"))?;
    size("after a change to the size that it had", disk.size)?;
    keeps(disk.size, "after a change to the size that it had")?;
    let larger = disk.size + (3 << 20);
    match resize(larger) {
        Ok(()) => {
            size("after it was enlarged", larger)?;
            keeps(disk.size, "after it was enlarged")?;
            let bytes = pattern(2, larger - disk.block, disk.block);
            disk.write(larger - disk.block, &bytes)?;
            let last = Extent {
                offset: larger - disk.block,
                len: disk.block,
            };
            let is = disk.read(last)?;
            if remembers {
                compare(&is, &bytes, last.offset, "the new end")?;
            }
        }
        Err(error) => {
            let kind = error.kind();
            if !matches!(kind, ErrorKind::OutOfRange | ErrorKind::Unsupported) {
                return Err(format!("a larger size is refused as {kind:?}: {error}"));
            }
            size("after a larger size was refused", disk.size)?;
        }
    }
    keeps(disk.size, "after a larger size")?;
    resize(half).map_err(|error| format!("a smaller size is refused: {error}"))?;
    size("after a change to half its size", half)?;
    keeps(half, "after a change to half its size")?;
    disk.close()?;
    Ok(Kept::Tried)
}

pub(super) fn read_only<H: Handler>(stand: &Stand<'_, H>) -> Verdict {
    let Some(options) = &stand.contract.read_only else {
        return skipped("the contract knows no options that make an image read-only");
    };
    let disk = stand.open()?;
    let should = disk.fill(1)?;
    disk.close()?;
    let disk = stand.open_with(options)?;
    if !disk.capabilities().read_only {
        return Err(format!(
            "an image that was opened with {options} does not say read_only"
        ));
    }
    disk.compare_all(&should, "opened for reading only")?;
    // The runner never asks; what is asked all the same is refused.
    let extent = disk.blocks(1, 2);
    let memory = in_segments(&vec![0xaa; extent.len as usize], &[512]);
    let (backstore, io, view) = (&disk.backstore, &disk.io, memory.view());
    let (flags, zero) = (WriteFlags::default(), ZeroFlags::default());
    let results = [
        (
            "write",
            disk.engine
                .run(backstore.write(io, view, extent.offset, flags)),
        ),
        (
            "write_zeroes",
            disk.engine.run(backstore.write_zeroes(io, extent, zero)),
        ),
        ("unmap", disk.engine.run(backstore.unmap(io, extent))),
        (
            "compare_and_write",
            disk.engine
                .run(backstore.compare_and_write(io, view, view, extent.offset, flags))
                .and_then(|found| match found {
                    Comparison::DiffersAt(_) => Err(crate::Error::new(ErrorKind::ReadOnly, "")),
                    Comparison::Equal => Ok(()),
                }),
        ),
    ];
    for (what, result) in results {
        if result.is_ok() {
            return Err(format!("{what} succeeds on an image that is read-only"));
        }
    }
    disk.compare_all(&should, "after changes were refused")?;
    disk.close()?;
    let disk = stand.open()?;
    disk.compare_all(&should, "opened for writing again")?;
    disk.close()?;
    Ok(Kept::Tried)
}

pub(super) fn close<H: Handler>(stand: &Stand<'_, H>) -> Verdict {
    let other = stand.another(400)?;
    let busy = other.open()?;
    let disk = stand.open()?;
    let mut should = disk.fill(1)?;
    stand.engine.remember();
    let extent = disk.blocks(9, 200);
    let bytes = pattern(2, extent.offset, extent.len);
    disk.write(extent.offset, &bytes)?;
    should[extent.offset as usize..extent.end() as usize].copy_from_slice(&bytes);

    // Another image is in use meanwhile.
    let written = busy.blocks(0, 64);
    let source = in_segments(&pattern(3, 0, written.len), &[4096]);
    let mut writes = Together::new(&other.engine);
    let flags = WriteFlags::default();
    writes.add(busy.backstore.write(&busy.io, source.view(), 0, flags));
    let ended = writes.poll();
    disk.close()?;
    if let Some(result) = ended.or_else(|| writes.finish_one()) {
        result
            .map_err(|error| format!("a write to another image while one was closed: {error}"))?;
    }
    drop(writes);
    let is = busy.read(written)?;
    compare(&is, &pattern(3, 0, written.len), 0, "the other image")?;
    busy.close()?;

    let cut = stand.engine.cut_power(Left::Nothing);
    cut.map_err(|error| format!("the power cannot be cut: {error}"))?;
    let disk = stand
        .open()
        .map_err(|how| format!("after it was closed: {how}"))?;
    disk.compare_all(&should, "after it was closed and the power was cut")?;
    disk.close()?;
    Ok(Kept::Tried)
}

pub(super) fn reopen<H: Handler>(stand: &Stand<'_, H>) -> Verdict {
    let disk = stand.open()?;
    let mut should = disk.fill(1)?;
    let claims = disk.capabilities();
    disk.close()?;
    for round in 0..4 {
        let disk = stand
            .open()
            .map_err(|how| format!("opened for the {}th time: {how}", round + 2))?;
        disk.compare_all(&should, "opened again")?;
        if disk.capabilities() != claims {
            return Err(format!(
                "opened again, the capabilities are {:?} and not {claims:?} any more",
                disk.capabilities()
            ));
        }
        let extent = disk.blocks(5 + round * 100, 33);
        let bytes = pattern(10 + round, extent.offset, extent.len);
        disk.write(extent.offset, &bytes)?;
        should[extent.offset as usize..extent.end() as usize].copy_from_slice(&bytes);
        match round % 2 {
            0 => disk.close()?,
            // The process dies, and the machine does not.
            _ => {
                disk.flush()?;
                drop(disk);
            }
        }
    }
    // Several images are opened at once.
    std::thread::scope(|scope| {
        let opens: Vec<_> = (0..4)
            .map(|number| {
                let contract = stand.contract;
                scope.spawn(move || Stand::new(contract, 500 + number)?.open()?.close())
            })
            .collect();
        opens
            .into_iter()
            .try_for_each(|open| open.join().unwrap_or_else(|_| Err("a panic".to_owned())))
            .map_err(|how| format!("several images opened at once: {how}"))
    })?;
    Ok(Kept::Tried)
}
