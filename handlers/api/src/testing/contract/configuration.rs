//! What a handler takes, and what an image says of itself.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

use super::stand::{Disk, Stand};
use super::{Kept, Verdict};
use crate::testing::scattered;
use crate::{Backstore, Config, Error, ErrorKind, Extent, Handler, WriteFlags, ZeroFlags};

/// No handler has it.
const UNKNOWN_OPTION: &str = ";no_such_option=1";

pub(super) fn configuration<H: Handler>(stand: &Stand<'_, H>) -> Verdict {
    let handler = &stand.contract.handler;
    let subtype = handler.subtype();
    if subtype.is_empty() || subtype.contains(['/', ',', ';', '=']) {
        return Err(format!(
            "\"{subtype}\" cannot stand before the / of a configuration string"
        ));
    }
    let parse = |options: &str| -> Result<Config, String> {
        stand
            .config(options)
            .parse()
            .map_err(|error| format!("{}: {error}", stand.config(options)))
    };
    let before = files(stand)?;
    handler
        .check(&parse("")?)
        .map_err(|error| format!("check refuses {}: {error}", stand.config("")))?;
    if files(stand)? != before {
        return Err("check has changed files".to_owned());
    }
    if stand.contract.strict {
        let config = parse(UNKNOWN_OPTION)?;
        refused("check", handler.check(&config))?;
        let opened = stand.try_open(UNKNOWN_OPTION, stand.contract.size);
        refused("open", opened.map(drop))?;
        if files(stand)? != before {
            return Err("an image that was refused has changed".to_owned());
        }
    }
    stand.open()?.close()?;
    Ok(Kept::Tried)
}

fn refused(who: &str, result: Result<(), Error>) -> Result<(), String> {
    match result {
        Ok(()) => Err(format!("{who} takes the unknown option {UNKNOWN_OPTION}")),
        Err(error) if error.kind() == ErrorKind::InvalidConfig => Ok(()),
        Err(error) => Err(format!(
            "{who} refuses the unknown option {UNKNOWN_OPTION} as {:?}: {error}",
            error.kind()
        )),
    }
}

/// The files in the image's folder and what they hold.
fn files<H: Handler>(stand: &Stand<'_, H>) -> Result<BTreeMap<PathBuf, Vec<u8>>, String> {
    let entries = fs::read_dir(stand.folder()).map_err(|error| error.to_string())?;
    let files = entries
        .flatten()
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_file()));
    files
        .map(|entry| {
            let bytes = fs::read(entry.path()).map_err(|error| error.to_string())?;
            Ok((entry.path(), bytes))
        })
        .collect()
}

pub(super) fn capabilities<H: Handler>(stand: &Stand<'_, H>) -> Verdict {
    let disk = stand.open()?;
    let claims = disk.capabilities();
    let holds = |what: &str, holds: bool| match holds {
        true => Ok(()),
        false => Err(format!("{what} does not hold for {claims:?}")),
    };
    let block = u64::from(claims.block_size);
    holds(
        "they are the same when asked again",
        disk.capabilities() == claims,
    )?;
    holds("the image is as large as the LUN", claims.size >= disk.size)?;
    holds(
        "block_size is a power of two",
        claims.block_size.is_power_of_two(),
    )?;
    holds("block_size is at most the LUN's", block <= disk.block)?;
    let physical = claims.physical_block_size;
    holds(
        "physical_block_size is a power of two",
        physical.is_power_of_two(),
    )?;
    holds(
        "physical_block_size is at least block_size",
        physical >= claims.block_size,
    )?;
    let optimal = claims.optimal_io_size;
    holds(
        "optimal_io_size is a multiple of block_size",
        optimal % claims.block_size == 0,
    )?;
    if let Some(unmap) = claims.unmap {
        let granularity = unmap.granularity;
        let good = granularity >= block && granularity % block == 0;
        holds("the granularity of unmap is a multiple of block_size", good)?;
    }
    let swap = claims.compare_and_write;
    let good = swap == 0 || u64::from(swap) >= disk.block;
    holds("compare_and_write is 0, or takes a block", good)?;
    if let Some(atomic) = claims.atomic_writes {
        let good = atomic.alignment.is_power_of_two() && atomic.granularity.is_power_of_two();
        holds(
            "alignment and granularity of atomic writes are powers of two",
            good,
        )?;
        let good = atomic.max_len > 0 && atomic.max_len % claims.block_size == 0;
        holds("the longest atomic write is a multiple of block_size", good)?;
    }
    if claims.read_only {
        let changes = claims.unmap.is_some() || claims.write_zeroes || swap != 0;
        holds("a read-only image claims no changes", !changes)?;
    }
    works(&disk)?;
    holds("they are the same after use", disk.capabilities() == claims)?;
    disk.close()?;
    Ok(Kept::Tried)
}

/// Does everything once that is claimed.
fn works<B: Backstore>(disk: &Disk<B>) -> Result<(), String> {
    let (backstore, io) = (&disk.backstore, &disk.io);
    let claims = disk.capabilities();
    let extent = Extent {
        offset: 0,
        len: disk.block,
    };
    let memory = scattered(&vec![1; disk.block as usize], disk.block as usize);
    let run = |what: &str, result: Result<(), Error>| {
        result.map_err(|error| format!("{what} is claimed, and fails: {error}"))
    };
    run(
        "reading",
        disk.engine.run(backstore.read(io, memory.view(), 0)),
    )?;
    run("prefetch", disk.engine.run(backstore.prefetch(io, extent)))?;
    if claims.read_only {
        return Ok(());
    }
    let flags = WriteFlags {
        fua: disk.has_native_fua(),
    };
    let write = backstore.write(io, memory.view(), 0, flags);
    run("writing", disk.engine.run(write))?;
    if claims.volatile_cache {
        run("flush", disk.engine.run(backstore.flush(io)))?;
    }
    if claims.write_zeroes {
        for may_unmap in [false, true] {
            let fua = disk.has_native_fua();
            let flags = ZeroFlags { fua, may_unmap };
            let zero = backstore.write_zeroes(io, extent, flags);
            run("write_zeroes", disk.engine.run(zero))?;
        }
    }
    if claims.compare_and_write != 0 {
        let (view, flags) = (memory.view(), WriteFlags::default());
        let swap = backstore.compare_and_write(io, view, view, 0, flags);
        run("compare_and_write", disk.engine.run(swap).map(drop))?;
    }
    if claims.unmap.is_some() {
        run("unmap", disk.engine.run(backstore.unmap(io, extent)))?;
        let status = disk.engine.run(backstore.block_status(io, extent));
        run("block_status", status.map(drop))?;
    }
    if claims.usage {
        run("usage", disk.engine.run(backstore.usage(io)).map(drop))?;
    }
    Ok(())
}
