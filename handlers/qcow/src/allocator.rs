//! Host clusters for new data and tables, and what becomes of those that are let go.
//!
//! Clusters are taken in batches ahead of use. Before a batch is used, its refcounts are durable,
//! and so are the zeroes in its clusters. So nothing has to be flushed between writing data to a
//! fresh cluster and mapping it: whatever the order in which a power cut lets the two reach the
//! medium, the cluster reads as what it held before (zeroes) or as what was written. Clusters of a
//! batch that are not used when the power goes are leaked, which is the only kind of damage that
//! this engine leaves; a clean close gives them back.
//!
//! A cluster that is let go is counted down only when it is durable that nothing refers to it, and
//! used again only when no request is under way that could have looked it up.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;

use tcmu_handler::{ErrorKind, Extent, Io, Result};
use tokio::sync::Mutex;

use crate::barrier::Mark;
use crate::disk::{Below, Disk};
use crate::fault::refused;
use crate::grace::Grace;
use crate::header::field;
use crate::layout::Layout;
use crate::refcounts::{Refcounts, bytes_of};

/// The first batch and the largest, in bytes; each batch is twice the one before.
const FIRST_BATCH: u64 = 1 << 20;
const LAST_BATCH: u64 = 64 << 20;
/// No batch has more clusters than this.
const BATCH_CLUSTERS: u64 = 4096;
/// How many refcounts one batch looks at in search of free clusters.
const SEARCH: u64 = 1 << 16;
/// How many ranges of free clusters are remembered.
const REMEMBERED: usize = 4096;
/// qemu opens no larger refcount table.
const LARGEST_TABLE: u64 = 8 << 20;
/// Changed parts of refcount blocks that are made durable one by one; more are flushed together.
const FEW: usize = 4;

/// Clusters in a row: the first, and how many.
type Run = (u64, u64);

/// What was let go, and when.
#[derive(Clone, Copy, Debug)]
struct Freed {
    /// Bytes of the image file; compressed clusters share theirs with others.
    extent: Extent,
    mark: Mark,
    generation: u64,
}

/// What is counted in the file.
#[derive(Debug)]
struct Space {
    refcounts: Refcounts,
    /// The cluster behind all that were ever used.
    end: u64,
    /// Where the search for free clusters goes on, and where it ends.
    search: u64,
    search_end: u64,
    /// Free clusters that were let go since the image was opened.
    recycled: VecDeque<Run>,
}

/// The host clusters of an image.
#[derive(Debug)]
pub(crate) struct Allocator {
    layout: Layout,
    space: Mutex<Space>,
    /// Clusters that are counted, zero, and durably so, but not used.
    ready: RefCell<VecDeque<Run>>,
    batch: Cell<u64>,
    freed: RefCell<VecDeque<Freed>>,
    pub(crate) grace: Grace,
}

impl Allocator {
    /// The clusters of an image file of `len` bytes.
    pub(crate) fn new(layout: Layout, refcounts: Refcounts, len: u64) -> Self {
        let cluster = layout.cluster_size();
        let end = len.div_ceil(cluster);
        Self {
            layout,
            space: Mutex::new(Space {
                refcounts,
                end,
                search: 0,
                search_end: end,
                recycled: VecDeque::new(),
            }),
            ready: RefCell::default(),
            batch: Cell::new((FIRST_BATCH / cluster).clamp(8, BATCH_CLUSTERS)),
            freed: RefCell::default(),
            grace: Grace::default(),
        }
    }

    /// Whether all clusters of a range have exactly one reference.
    pub(crate) async fn counts_once(
        &self,
        io: &Io,
        disk: &Disk,
        host: u64,
        len: u64,
    ) -> Result<bool> {
        let mut space = self.space.lock().await;
        let bits = self.layout.cluster_bits;
        for cluster in host >> bits..=(host + len - 1) >> bits {
            if space.refcounts.get(io, disk, cluster).await? != 1 {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Up to `wanted` clusters in a row, zero and counted: where they begin, and how many.
    pub(crate) async fn take(&self, io: &Io, disk: &Disk, wanted: u64) -> Result<Run> {
        loop {
            if let Some((cluster, count)) = self.take_ready(wanted) {
                return Ok((cluster << self.layout.cluster_bits, count));
            }
            self.refill(io, disk).await?;
        }
    }

    fn take_ready(&self, wanted: u64) -> Option<Run> {
        let mut ready = self.ready.borrow_mut();
        let (cluster, count) = ready.front_mut()?;
        let taken = (*cluster, wanted.min(*count));
        *cluster += taken.1;
        *count -= taken.1;
        if *count == 0 {
            ready.pop_front();
        }
        Some(taken)
    }

    async fn refill(&self, io: &Io, disk: &Disk) -> Result<()> {
        let mut space = self.space.lock().await;
        if !self.ready.borrow().is_empty() {
            return Ok(());
        }
        self.add_batch(io, disk, &mut space).await
    }

    /// Whether the clusters that are ready will soon be used up.
    pub(crate) fn is_low(&self) -> bool {
        let enough = self.batch.get() / 4;
        let mut left = 0;
        let ready = self.ready.borrow();
        !ready.iter().any(|(_, count)| {
            left += count;
            left >= enough
        })
    }

    /// Makes clusters ready, unless somebody does so already. The request that calls this waits for
    /// the flushes that it takes, and no other.
    pub(crate) async fn look_ahead(&self, io: &Io, disk: &Disk) {
        if let Ok(mut space) = self.space.try_lock() {
            // Whoever needs a cluster that is not there will say what is wrong.
            let _ = self.add_batch(io, disk, &mut space).await;
        }
    }

    async fn add_batch(&self, io: &Io, disk: &Disk, space: &mut Space) -> Result<()> {
        disk.barrier.check(&disk.storage)?;
        let batch = self.batch.get();
        let result = self.fill(io, disk, space, batch).await;
        match result {
            Ok(runs) => {
                self.ready.borrow_mut().extend(runs);
                let largest = (LAST_BATCH >> self.layout.cluster_bits).clamp(8, BATCH_CLUSTERS);
                self.batch.set((batch * 2).min(largest));
                Ok(())
            }
            Err(error) => {
                space.refcounts.forget_changes();
                Err(error)
            }
        }
    }

    /// Finds clusters, counts them and makes that durable.
    async fn fill(&self, io: &Io, disk: &Disk, space: &mut Space, wanted: u64) -> Result<Vec<Run>> {
        let mut runs = self.find_free(io, disk, space, wanted).await?;
        let reused: u64 = runs.iter().map(|run| run.1).sum();
        for (cluster, count) in &runs {
            let extent = self.extent(*cluster, *count);
            disk.zero(io, &disk.storage, extent, Below::Punched).await?;
        }
        let mut together = reused != 0;
        let mut linked = false;
        if reused < wanted / 2 {
            let area = self.extend(io, disk, space, wanted - reused).await?;
            linked = area.has_new_blocks;
            runs.push(area.run);
        }
        together |= linked || space.refcounts.dirty().len() > FEW;
        space.refcounts.write(io, disk, !together).await?;
        if together {
            disk.pass_barrier(io).await?;
        }
        if linked {
            space.refcounts.link(io, disk).await?;
        }
        Ok(runs)
    }

    /// Free clusters below the end of the file, counted in memory.
    async fn find_free(
        &self,
        io: &Io,
        disk: &Disk,
        space: &mut Space,
        wanted: u64,
    ) -> Result<Vec<Run>> {
        let mut runs: Vec<Run> = Vec::new();
        let mut found = 0;
        let mut budget = SEARCH;
        while found < wanted && budget > 0 {
            let cluster = match space.recycled.front_mut() {
                Some((cluster, count)) => {
                    let next = *cluster;
                    *cluster += 1;
                    *count -= 1;
                    if *count == 0 {
                        space.recycled.pop_front();
                    }
                    next
                }
                None if space.search < space.search_end => {
                    space.search += 1;
                    space.search - 1
                }
                None => break,
            };
            budget -= 1;
            if !space.refcounts.counts(cluster) {
                // Where nothing is counted there is nothing; go on behind the block's range.
                let per_block = space.refcounts.per_block();
                space.search = space.search.max((cluster / per_block + 1) * per_block);
                continue;
            }
            if space.refcounts.get(io, disk, cluster).await? != 0 {
                continue;
            }
            space.refcounts.set(io, disk, cluster, 1).await?;
            found += 1;
            match runs.last_mut() {
                Some((first, count)) if *first + *count == cluster => *count += 1,
                _ => runs.push((cluster, 1)),
            }
        }
        Ok(runs)
    }

    /// `count` clusters in a row behind the end of the file, zero and counted in memory, with the
    /// refcount blocks that they need in front of them.
    async fn extend(&self, io: &Io, disk: &Disk, space: &mut Space, count: u64) -> Result<Area> {
        self.skip_counted(io, disk, space).await?;
        let per_block = space.refcounts.per_block();
        let room = space.refcounts.capacity() * per_block;
        let mut blocks = missing_blocks(space, count);
        let end = space.end + blocks.len() as u64 + count;
        if end > room {
            self.grow_table(io, disk, space, count).await?;
            blocks = missing_blocks(space, count);
        }
        let first = space.end;
        let all = blocks.len() as u64 + count;
        self.make_room(io, disk, first, all).await?;
        space.end += all;
        for (place, block) in blocks.iter().enumerate() {
            let offset = (first + place as u64) << self.layout.cluster_bits;
            space.refcounts.add_block(*block, offset);
        }
        for cluster in first..first + all {
            space.refcounts.set(io, disk, cluster, 1).await?;
        }
        Ok(Area {
            run: (first + blocks.len() as u64, count),
            has_new_blocks: !blocks.is_empty(),
        })
    }

    /// Moves the end behind clusters that are counted although the file does not reach so far.
    async fn skip_counted(&self, io: &Io, disk: &Disk, space: &mut Space) -> Result<()> {
        let mut clear = 0;
        let mut budget = SEARCH;
        while clear < BATCH_CLUSTERS {
            let cluster = space.end + clear;
            if !space.refcounts.counts(cluster) {
                return Ok(());
            }
            if space.refcounts.get(io, disk, cluster).await? == 0 {
                clear += 1;
                continue;
            }
            space.end = cluster + 1;
            clear = 0;
            budget = budget.saturating_sub(1);
            if budget == 0 {
                return Err(refused(
                    ErrorKind::Write,
                    &disk.storage.path,
                    "refcounts are set far behind the end of the file; `qemu-img check -r all` \
                     repairs that",
                ));
            }
        }
        Ok(())
    }

    /// Makes clusters behind the end readable as zeroes.
    async fn make_room(&self, io: &Io, disk: &Disk, first: u64, count: u64) -> Result<()> {
        let extent = self.extent(first, count);
        // The file has to be as long as what refers to it; a table's part is a sector or more.
        let last = vec![0; self.layout.slice_size() as usize];
        let offset = extent.end() - last.len() as u64;
        disk.extend(io, &last, offset).await
    }

    /// Makes a larger refcount table, with room for `count` clusters behind it.
    async fn grow_table(&self, io: &Io, disk: &Disk, space: &mut Space, count: u64) -> Result<()> {
        let cluster = self.layout.cluster_size();
        let per_block = space.refcounts.per_block();
        let (old_offset, old_len) = space.refcounts.place();
        let mut clusters = (old_len * 2).div_ceil(cluster);
        let fresh = loop {
            let fresh = missing_blocks(space, clusters);
            // Behind it, each of the clusters needs a block of its own at the worst.
            let end = space.end + fresh.len() as u64 + clusters + 2 * count;
            let needed = (end.div_ceil(per_block) * 8).div_ceil(cluster);
            if needed <= clusters {
                break fresh;
            }
            clusters = needed;
        };
        if clusters * cluster > LARGEST_TABLE.max(cluster) {
            return Err(refused(
                ErrorKind::NoSpace,
                &disk.storage.path,
                "the image file cannot grow any more: its refcount table is as large as it can be",
            ));
        }
        let first = space.end;
        let all = fresh.len() as u64 + clusters;
        self.make_room(io, disk, first, all).await?;
        space.end += all;
        for (place, block) in fresh.iter().enumerate() {
            let offset = (first + place as u64) << self.layout.cluster_bits;
            space.refcounts.add_block(*block, offset);
        }
        for cluster in first..first + all {
            space.refcounts.set(io, disk, cluster, 1).await?;
        }
        space.refcounts.write(io, disk, false).await?;
        let table = space.refcounts.grown(clusters * cluster / 8);
        let offset = (first + fresh.len() as u64) << self.layout.cluster_bits;
        disk.write_metadata(io, &bytes_of(&table), offset, false)
            .await?;
        disk.pass_barrier(io).await?;
        disk.patch_header(
            io,
            &[
                (field::REFTABLE_OFFSET, &offset.to_be_bytes()),
                (field::REFTABLE_CLUSTERS, &(clusters as u32).to_be_bytes()),
            ],
        )
        .await?;
        space.refcounts.replace(table, offset);
        let len = clusters * cluster;
        disk.bounds.set_refcount_table(Extent { offset, len });
        self.free(old_offset, old_len, Mark::PAST);
        Ok(())
    }

    /// `count` clusters in a row, durably counted and zero, for a table.
    pub(crate) async fn take_row(&self, io: &Io, disk: &Disk, count: u64) -> Result<u64> {
        let mut space = self.space.lock().await;
        disk.barrier.check(&disk.storage)?;
        let row = async {
            let area = self.extend(io, disk, &mut space, count).await?;
            space.refcounts.write(io, disk, false).await?;
            disk.pass_barrier(io).await?;
            if area.has_new_blocks {
                space.refcounts.link(io, disk).await?;
            }
            Ok(area.run.0 << self.layout.cluster_bits)
        };
        let result = row.await;
        if result.is_err() {
            space.refcounts.forget_changes();
        }
        result
    }

    /// Lets a range of the image file go, which nothing refers to any more from `mark` on.
    pub(crate) fn free(&self, offset: u64, len: u64, mark: Mark) {
        let generation = self.grace.now();
        let extent = Extent { offset, len };
        let mut freed = self.freed.borrow_mut();
        freed.push_back(Freed {
            extent,
            mark,
            generation,
        });
    }

    /// How many ranges have been let go and not yet counted down.
    pub(crate) fn waiting(&self) -> usize {
        self.freed.borrow().len()
    }

    /// Counts down what was let go and can be by now, and gives its storage back. The caller must
    /// not be counted as a request. What fails leaks.
    pub(crate) async fn reclaim(&self, io: &Io, disk: &Disk) -> Result<()> {
        if self.waiting() == 0 || disk.barrier.check(&disk.storage).is_err() {
            return Ok(());
        }
        let mut space = self.space.lock().await;
        let over = |freed: &mut Freed| {
            disk.barrier.has_passed(freed.mark) && self.grace.is_over(freed.generation)
        };
        let mut clusters = Vec::new();
        while let Some(Freed { extent, .. }) = self.freed.borrow_mut().pop_front_if(over) {
            let bits = self.layout.cluster_bits;
            clusters.extend(extent.offset >> bits..=(extent.end() - 1) >> bits);
        }
        let result = self.count_down(io, disk, &mut space, clusters).await;
        if result.is_err() {
            space.refcounts.forget_changes();
        }
        result
    }

    async fn count_down(
        &self,
        io: &Io,
        disk: &Disk,
        space: &mut Space,
        mut clusters: Vec<u64>,
    ) -> Result<()> {
        clusters.sort_unstable();
        let mut runs: Vec<Run> = Vec::new();
        for cluster in clusters {
            // A damaged mapping kept it; what lies there is not the guest's to let go.
            if disk.bounds.is_table(cluster << self.layout.cluster_bits, 1) {
                continue;
            }
            let count = space.refcounts.get(io, disk, cluster).await?;
            if count == 0 {
                continue; // Damaged refcounts; to go below zero would be worse.
            }
            space.refcounts.set(io, disk, cluster, count - 1).await?;
            if count == 1 {
                match runs.last_mut() {
                    Some((first, count)) if *first + *count == cluster => *count += 1,
                    _ => runs.push((cluster, 1)),
                }
            }
        }
        for (cluster, count) in &runs {
            disk.punch(io, self.extent(*cluster, *count)).await;
        }
        space.refcounts.write(io, disk, false).await?;
        space.recycled.extend(runs);
        space.recycled.truncate(REMEMBERED);
        Ok(())
    }

    /// Counts the clusters down that are ready and not used. Nothing must be running.
    pub(crate) async fn give_back(&self, io: &Io, disk: &Disk) -> Result<()> {
        let mut space = self.space.lock().await;
        let ready: Vec<Run> = self.ready.borrow_mut().drain(..).collect();
        for (cluster, count) in ready {
            for cluster in cluster..cluster + count {
                space.refcounts.set(io, disk, cluster, 0).await?;
            }
        }
        space.refcounts.write(io, disk, false).await
    }

    fn extent(&self, cluster: u64, count: u64) -> Extent {
        Extent {
            offset: cluster << self.layout.cluster_bits,
            len: count << self.layout.cluster_bits,
        }
    }
}

/// Clusters at the end of the file.
struct Area {
    run: Run,
    has_new_blocks: bool,
}

/// The refcount blocks that are missing for `count` clusters behind the end and for themselves.
fn missing_blocks(space: &Space, count: u64) -> Vec<u64> {
    let per_block = space.refcounts.per_block();
    let mut missing = Vec::new();
    loop {
        let end = space.end + missing.len() as u64 + count;
        let blocks = space.end / per_block..end.div_ceil(per_block);
        let now: Vec<u64> = blocks
            .filter(|block| !space.refcounts.counts(block * per_block))
            .collect();
        if now.len() == missing.len() {
            return now;
        }
        missing = now;
    }
}
