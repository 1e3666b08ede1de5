//! Makes the refcounts of a dirty image right again.
//!
//! Who uses "lazy refcounts" sets the dirty bit and then leaves the refcounts alone; after a crash
//! they are wrong. The tables that map the guest's clusters are right, so everything can be counted
//! anew. While the dirty bit is set, the refcounts mean nothing: the order of the writes is free.

use tcmu_handler::{ErrorKind, Extent, Result};

use crate::bitmap;
use crate::check::{Contents, Report, check};
use crate::fault::refused;
use crate::header::Header;
use crate::open::read_table;
use crate::refcounts;
use crate::snapshot;
use crate::storage::Storage;

/// Writes the refcounts that follow from the image's tables, and makes them durable. Nothing is
/// written if there is anything else to repair.
pub(crate) fn repair(storage: &Storage, header: &Header) -> Result<()> {
    let (snapshots, snapshot_table) = snapshot::read(storage, header)?;
    let contents = Contents {
        snapshots,
        snapshot_table,
        bitmaps: bitmap::read(storage, header)?,
    };
    let report = check(storage, header, &contents)?;
    if report.errors != 0 {
        return Err(beyond_repair(storage, &report.words.join("; ")));
    }
    for (offset, block) in blocks(storage, header, &report)? {
        storage.write(&block, offset)?;
    }
    storage.sync()
}

/// The refcount blocks that have to change, and where they lie.
fn blocks(storage: &Storage, header: &Header, report: &Report) -> Result<Vec<(u64, Vec<u8>)>> {
    let cluster = header.layout.cluster_size();
    let order = header.refcount_order;
    let per_block = (cluster * 8) >> order;
    let largest = u64::MAX >> (64 - (1u32 << order));
    let Extent { offset, len } = header.refcount_table();
    let table = read_table(storage, offset, len / 8)?;
    let mut changed = Vec::new();
    for (index, counts) in report.counts.chunks(per_block as usize).enumerate() {
        let offset = table.get(index).copied().unwrap_or(0);
        if offset == 0 {
            if counts.iter().any(|count| *count != 0) {
                return Err(beyond_repair(storage, "a refcount block is missing"));
            }
            continue;
        }
        let old = storage.read(cluster as usize, offset)?;
        let mut block = vec![0; cluster as usize];
        for (place, count) in (0..).zip(counts) {
            if u64::from(*count) > largest {
                return Err(beyond_repair(storage, "a refcount is too large"));
            }
            refcounts::set(&mut block, order, place, (*count).into());
        }
        if block != old {
            changed.push((offset, block));
        }
    }
    Ok(changed)
}

fn beyond_repair(storage: &Storage, why: &str) -> tcmu_handler::Error {
    refused(
        ErrorKind::InvalidConfig,
        &storage.path,
        format!(
            "the image was not closed, and counting its clusters anew is not enough ({why}); \
             `qemu-img check -r all` may repair it"
        ),
    )
}
