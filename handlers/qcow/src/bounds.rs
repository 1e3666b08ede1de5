//! Where damaged tables must not lead writes to: into the image's own tables, and far behind the end
//! of the file, which would become as long as the entry says.
//!
//! What is read behind the end is zero, as with qemu. What is written there depends on its kind:
//!
//! - The L1 table and the refcount table are there before the header names them: an image that has
//!   lost them is not opened for writing.
//! - So are L2 tables and refcount blocks before anything refers to them: never written there.
//! - A guest's cluster can lie there after a power cut, when its mapping has reached the medium and the
//!   length of the file has not. Then the cluster is counted, for refcounts come first: exactly those
//!   are written.
//! - A cluster of an external data file lies at its guest offset; see `mapping.rs`.
//! - Compressed clusters are only read, and let go by their refcounts.
//!
//! A request that is refused says so with a medium error; the image is not marked as corrupt, because
//! everything else in it can be used as before.

use std::cell::Cell;

use tcmu_handler::{Error, ErrorKind, Extent, Io, Result};

use crate::disk::Disk;
use crate::fault::refused;
use crate::image::QcowImage;

/// What is known of the space in an image file that is written to.
#[derive(Debug)]
pub(crate) struct Bounds {
    cluster: u64,
    /// The end of the file, and of its last cluster.
    end: Cell<u64>,
    /// The L1 table and the refcount table.
    tables: Cell<[Extent; 2]>,
}

impl Bounds {
    /// Those of a file of `len` bytes in clusters of `cluster` bytes.
    pub(crate) fn new(cluster: u64, len: u64, l1: Extent, refcount_table: Extent) -> Self {
        Self {
            cluster,
            end: Cell::new(len.div_ceil(cluster).saturating_mul(cluster)),
            tables: Cell::new([l1, refcount_table]),
        }
    }

    /// Those of a file that is only read: there is no place to write to.
    pub(crate) fn nothing() -> Self {
        let none = Extent { offset: 0, len: 0 };
        Self::new(1, 0, none, none)
    }

    /// Whether the file has all clusters of a range.
    pub(crate) fn holds(&self, host: u64, len: u64) -> bool {
        host.saturating_add(len) <= self.end.get()
    }

    /// The file has clusters up to here now.
    pub(crate) fn reach(&self, end: u64) {
        let end = end.div_ceil(self.cluster).saturating_mul(self.cluster);
        self.end.set(self.end.get().max(end));
    }

    /// Whether part of a range belongs to the header, the L1 table or the refcount table.
    pub(crate) fn is_table(&self, host: u64, len: u64) -> bool {
        let end = host.saturating_add(len);
        host < self.cluster
            || self
                .tables
                .get()
                .iter()
                .any(|table| host < table.end() && table.offset < end)
    }

    /// Whether a range is in the file, and belongs to nothing that is known to be something else.
    pub(crate) fn admits(&self, host: u64, len: u64) -> bool {
        self.holds(host, len) && !self.is_table(host, len)
    }

    /// Where the L1 table lies now.
    pub(crate) fn set_l1(&self, l1: Extent) {
        let [_, refcount_table] = self.tables.get();
        self.tables.set([l1, refcount_table]);
    }

    /// Where the refcount table lies now.
    pub(crate) fn set_refcount_table(&self, refcount_table: Extent) {
        let [l1, _] = self.tables.get();
        self.tables.set([l1, refcount_table]);
    }
}

impl Disk {
    /// Refuses a table of the second level, which `what` says, where none can lie.
    pub(crate) fn check_table(&self, what: &str, host: u64, len: u64) -> Result<()> {
        if self.bounds.admits(host, len) {
            return Ok(());
        }
        let where_to = if self.bounds.holds(host, len) {
            "in other tables"
        } else {
            "behind the end of the file"
        };
        Err(self.corrupt(&format!("{what} at {host:#x} lies {where_to}")))
    }

    /// What is wrong, for a request that would do harm.
    pub(crate) fn corrupt(&self, what: &str) -> Error {
        refused(
            ErrorKind::Write,
            &self.storage.path,
            format!("the image is corrupt: {what}; `qemu-img check` tells more"),
        )
    }
}

impl QcowImage {
    /// Whether guest data may be written to a range without further questions.
    pub(crate) fn admits(&self, host: u64, len: u64) -> bool {
        let disk = &self.top.disk;
        disk.data.is_some() || disk.bounds.admits(host, len)
    }

    /// Refuses guest data where none can lie, whatever a mapping says.
    pub(crate) async fn check_place(&self, io: &Io, host: u64, len: u64) -> Result<()> {
        if self.admits(host, len) {
            return Ok(());
        }
        Box::pin(self.check_doubtful(io, host, len)).await
    }

    async fn check_doubtful(&self, io: &Io, host: u64, len: u64) -> Result<()> {
        let disk = &self.top.disk;
        if disk.bounds.is_table(host, len) {
            return Err(disk.corrupt(&format!("guest data at {host:#x} lie in its tables")));
        }
        let allocator = &self.writer()?.allocator;
        if !allocator.counts_once(io, disk, host, len).await? {
            return Err(disk.corrupt(&format!(
                "guest data at {host:#x} lie behind the end of the file, and are not counted"
            )));
        }
        disk.bounds.reach(host + len);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CLUSTER: u64 = 4096;

    fn extent(cluster: u64, clusters: u64) -> Extent {
        Extent {
            offset: cluster * CLUSTER,
            len: clusters * CLUSTER,
        }
    }

    #[test]
    fn the_last_cluster_counts_as_a_whole() {
        let bounds = Bounds::new(CLUSTER, 9 * CLUSTER + 1, extent(1, 1), extent(2, 1));
        assert!(bounds.admits(9 * CLUSTER, CLUSTER));
        assert!(!bounds.holds(9 * CLUSTER, CLUSTER + 1));
        assert!(!bounds.holds(1 << 55, 512));
        assert!(!bounds.holds(u64::MAX, 512));
        bounds.reach(11 * CLUSTER + 512);
        assert!(bounds.admits(11 * CLUSTER, CLUSTER));
        assert!(!bounds.holds(12 * CLUSTER, 512));
        bounds.reach(512);
        assert!(bounds.holds(11 * CLUSTER, CLUSTER), "it only grows");
    }

    #[test]
    fn tables_move() {
        let bounds = Bounds::new(CLUSTER, 99 * CLUSTER, extent(1, 2), extent(5, 1));
        for (cluster, taken) in [(0, true), (1, true), (2, true), (3, false), (5, true)] {
            assert_eq!(bounds.is_table(cluster * CLUSTER, 512), taken, "{cluster}");
        }
        assert!(bounds.is_table(4 * CLUSTER, 2 * CLUSTER));
        bounds.set_l1(extent(7, 1));
        bounds.set_refcount_table(extent(8, 1));
        for (cluster, taken) in [(1, false), (5, false), (7, true), (8, true), (9, false)] {
            assert_eq!(bounds.is_table(cluster * CLUSTER, 512), taken, "{cluster}");
        }
    }
}
