//! Operations below that fail.

use super::stand::{Disk, Stand, compare, in_segments, pattern};
use super::{Kept, Verdict, skipped};
use crate::testing::{Fault, OperationKind, contents};
use crate::{Backstore, Error, ErrorKind, Extent, Handler, WriteFlags, ZeroFlags};

/// `EIO` and `ENOSPC` of Linux's include/uapi/asm-generic/errno-base.h.
const EIO: i32 = 5;
const ENOSPC: i32 = 28;

/// So many operations of each kind are made to fail, one at a time.
const MOST: usize = 6;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Request {
    Read,
    Write,
    Flush,
    Zero,
    Unmap,
}

/// What is tried: during this request, an operation of this kind fails so.
const TRIALS: [(Request, OperationKind, i32); 8] = [
    (Request::Read, OperationKind::Read, EIO),
    (Request::Write, OperationKind::Write, EIO),
    (Request::Write, OperationKind::Write, ENOSPC),
    (Request::Write, OperationKind::Read, EIO),
    (Request::Write, OperationKind::Allocate, ENOSPC),
    (Request::Flush, OperationKind::Sync, EIO),
    (Request::Zero, OperationKind::Allocate, EIO),
    (Request::Unmap, OperationKind::Allocate, EIO),
];

pub(super) fn errors<H: Handler>(stand: &Stand<'_, H>) -> Verdict {
    let mut struck = false;
    for (request, kind, errno) in TRIALS {
        for nth in 1..=MOST {
            let stand = stand.another(300 + nth as u64)?;
            let disk = stand.open()?;
            let fault = Fault {
                kind,
                nth,
                errno,
                for_good: false,
            };
            match trial(&disk, request, fault) {
                Ok(true) => struck = true,
                Ok(false) => break,
                Err(how) => {
                    return Err(format!(
                        "error {errno} of {kind:?} number {nth} during {request:?}: {how}"
                    ));
                }
            }
        }
    }
    match struck {
        true => Ok(Kept::Tried),
        false => skipped("no request leads to an operation of the I/O engine"),
    }
}

/// Has one operation fail; says whether the request came to it.
fn trial<B: Backstore>(disk: &Disk<B>, request: Request, fault: Fault) -> Result<bool, String> {
    let claims = disk.capabilities();
    let possible = match request {
        Request::Read => true,
        Request::Write => !claims.read_only,
        Request::Flush => claims.volatile_cache,
        Request::Zero => claims.write_zeroes,
        Request::Unmap => claims.unmap.is_some(),
    };
    if !possible {
        return Ok(false);
    }
    // Only a part of the image, so that the request also comes to what has no storage yet.
    let written = disk.blocks(0, (1 << 20) / disk.block);
    let before = pattern(1, 0, written.len);
    for (number, piece) in before.chunks(256 << 10).enumerate() {
        disk.write((number * (256 << 10)) as u64, piece)?;
    }
    let extent = match request {
        Request::Flush => disk.blocks(0, 0),
        _ => disk.blocks(written.len / disk.block - 20, 300),
    };
    let new = pattern(2, extent.offset, extent.len);
    disk.engine.set_fault(Some(fault));
    let result = run(disk, request, extent, &new);
    let struck = disk.engine.has_struck();
    disk.engine.set_fault(None);
    if !struck {
        return result
            .map(|()| false)
            .map_err(|error| format!("nothing has failed, but {error}"));
    }
    match &result {
        // There was another way: then it has to be as good.
        Ok(()) if request == Request::Flush => {
            return Err("the flush succeeds all the same".to_owned());
        }
        Ok(()) => {
            let should = match request {
                Request::Zero => vec![0; new.len()],
                Request::Write => new,
                Request::Read | Request::Unmap | Request::Flush => return Ok(true),
            };
            compare(
                &disk.read(extent)?,
                &should,
                extent.offset,
                "it succeeds all the same, and",
            )?;
        }
        Err(error) => check_kind(request, fault, error)?,
    }
    // What comes next may fail too, but must not show anything wrong.
    let untouched = Extent {
        offset: 0,
        len: match request {
            Request::Flush => written.len,
            _ => extent.offset,
        },
    };
    if let Ok(bytes) = disk.read(untouched) {
        let should = &before[..untouched.len as usize];
        compare(
            &bytes,
            should,
            0,
            "outside of the range of the request that failed",
        )?;
    }
    Ok(true)
}

fn check_kind(request: Request, fault: Fault, error: &Error) -> Result<(), String> {
    let kind = error.kind();
    let good = match (fault.errno, request) {
        (ENOSPC, _) => kind == ErrorKind::NoSpace,
        (_, Request::Read) => kind == ErrorKind::Read,
        // A write may have to read first.
        _ if fault.kind == OperationKind::Read => {
            matches!(kind, ErrorKind::Read | ErrorKind::Write)
        }
        _ => kind == ErrorKind::Write,
    };
    match good {
        true => Ok(()),
        false => Err(format!("the request fails as {kind:?}: {error}")),
    }
}

fn run<B: Backstore>(
    disk: &Disk<B>,
    request: Request,
    extent: Extent,
    new: &[u8],
) -> Result<(), Error> {
    let (backstore, io) = (&disk.backstore, &disk.io);
    let memory = in_segments(new, &[4096]);
    let (view, offset) = (memory.view(), extent.offset);
    match request {
        Request::Read => {
            disk.engine.run(backstore.read(io, view, offset))?;
            // A read that succeeds although something failed must have found the bytes.
            let known = pattern(1, offset, disk.block);
            match contents(&memory).starts_with(&known) {
                true => Ok(()),
                false => Err(Error::new(
                    ErrorKind::Internal,
                    "the read returned other bytes",
                )),
            }
        }
        Request::Write => disk
            .engine
            .run(backstore.write(io, view, offset, WriteFlags::default())),
        Request::Flush => disk.engine.run(backstore.flush(io)),
        Request::Zero => {
            let zero = backstore.write_zeroes(io, extent, ZeroFlags::default());
            disk.engine.run(zero)
        }
        Request::Unmap => disk.engine.run(backstore.unmap(io, extent)),
    }
}
