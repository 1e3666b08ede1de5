//! Changes of the mapping: new clusters for data, with what they replace copied where it shows.
//!
//! The order is what keeps an image whole:
//!
//! 1. The cluster is counted and zero, durably; see [`Allocator`](crate::allocator::Allocator).
//! 2. The data go there, and around them what the guest saw before (copy on write).
//! 3. If that was anything but zeroes, all of it is flushed: otherwise a power cut could leave a
//!    mapping without the data that were durable elsewhere before.
//! 4. The mapping is written. Where the guest saw zeroes before, it need not wait for the data: the
//!    cluster shows the same zeroes until they are there.
//! 5. What it replaced is let go, and counted down after the next flush.

use std::ops::Range;
use std::sync::Arc;

use tcmu_handler::{Buffer, ErrorKind, Extent, Io, Result};

use crate::barrier::Mark;
use crate::disk::{Below, part};
use crate::entry::{COPIED, Entry, State};
use crate::fault::{Corrupt, refused};
use crate::image::{QcowImage, Writer};
use crate::layer::Layer;
use crate::slices::Slice;
use crate::transfers::{self, Transfers};

/// Bytes that are copied at once.
const COPY: u64 = 128 << 10;

/// What is stored in the clusters.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Payload<'a> {
    Bytes(Buffer<'a>),
    /// So many zeroes.
    Zeroes(u64),
}

impl Payload<'_> {
    fn len(&self) -> u64 {
        match self {
            Self::Bytes(buffer) => buffer.len() as u64,
            Self::Zeroes(len) => *len,
        }
    }
}

/// Where a cluster's bytes go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Target {
    /// To a new cluster.
    New,
    /// To this one, whose other bytes may be anything.
    Existing(u64),
}

/// What is to be done for one guest cluster.
#[derive(Debug)]
struct Plan {
    target: Target,
    /// Guest ranges to copy from what the guest saw before.
    copies: Vec<Range<u64>>,
    /// The bitmap of an extended entry.
    bitmap: u64,
    /// What the old entry keeps.
    replaced: Option<(u64, u64)>,
    /// The bytes have to be durable before the mapping is written.
    flush: bool,
}

impl Plan {
    /// Whether the cluster shows what the guest saw before as long as nothing is written to it.
    fn is_as_before(&self) -> bool {
        self.target == Target::New && self.copies.is_empty() && !self.flush
    }
}

impl QcowImage {
    /// Stores the beginning of `payload` at `offset` where that needs another mapping; returns how
    /// many bytes that was. It is 0 if another request has made the mapping meanwhile.
    pub(crate) async fn allocate(&self, io: &Io, payload: Payload<'_>, offset: u64) -> Result<u64> {
        let Writer {
            allocator,
            changing,
        } = self.writer()?;
        let Layer { disk, mapping, .. } = &self.top;
        let layout = &mapping.layout;
        let bits = layout.cluster_bits;
        let end = (offset + payload.len()).min(layout.slice_end(offset));
        let clusters = offset >> bits..=(end - 1) >> bits;
        let _held = changing.lock(clusters.clone()).await;
        let slice = self.own_slice(io, offset).await?;

        let mut plans: Vec<Plan> = Vec::new();
        for cluster in clusters.clone() {
            let plan = self
                .plan(&slice, cluster, offset..end, &payload)
                .map_err(|corrupt| corrupt.at(&disk.storage.path, offset))?;
            match plan {
                Some(plan) if plans.is_empty() || layout.external => plans.push(plan),
                Some(plan) if plan.target == Target::New && plans[0].target == Target::New => {
                    plans.push(plan);
                }
                _ => break,
            }
        }
        let host = match plans.first() {
            None => return Ok(0),
            Some(plan) => match plan.target {
                Target::Existing(host) => {
                    self.check_place(io, host, layout.cluster_size()).await?;
                    host
                }
                Target::New => {
                    let (host, count) = allocator.take(io, disk, plans.len() as u64).await?;
                    plans.truncate(count as usize);
                    host
                }
            },
        };
        let end = end.min((clusters.start() + plans.len() as u64) << bits);
        let at_once = match payload {
            Payload::Bytes(buffer) if plans.iter().all(Plan::is_as_before) => {
                let bytes = buffer.slice(0..(end - offset) as usize).unwrap_or(buffer);
                let mut transfers = Transfers::new(io, bytes);
                let within = offset - layout.cluster_start(offset);
                transfers
                    .write(disk.data(), 0..bytes.len(), host + within, false)
                    .await;
                Some(transfers)
            }
            _ => {
                let stored = self.store(io, &plans, payload, offset..end, host).await;
                if let Err(error) = stored {
                    if plans[0].target == Target::New {
                        allocator.free(host, (plans.len() as u64) << bits, Mark::PAST);
                    }
                    return Err(error);
                }
                None
            }
        };

        for (index, plan) in plans.iter().enumerate() {
            let index = index as u64;
            let entry = Entry {
                word: (host + (index << bits)) | COPIED,
                bitmap: plan.bitmap,
            };
            slice.set(clusters.start() + index, entry, layout);
        }
        mapping.changed(&slice);
        let mapped = mapping.write(io, disk, &slice).await;
        let stored = match at_once {
            Some(mut transfers) => transfers.finish().await,
            None => Ok(()),
        };
        mapped?;
        let mark = disk.barrier.mark();
        for (offset, len) in plans.iter().filter_map(|plan| plan.replaced) {
            allocator.free(offset, len, mark);
        }
        stored.map(|()| end - offset)
    }

    /// The slice that maps `offset`, in a table that nothing else refers to.
    pub(crate) async fn own_slice(&self, io: &Io, offset: u64) -> Result<Arc<Slice>> {
        let Layer { disk, mapping, .. } = &self.top;
        self.own_table(io, offset).await?;
        let number = mapping.layout.slice_of(offset);
        mapping.load(io, disk, number).await?.ok_or_else(|| {
            refused(
                ErrorKind::Internal,
                &disk.storage.path,
                "an L2 table has gone",
            )
        })
    }

    async fn own_table(&self, io: &Io, offset: u64) -> Result<()> {
        let Layer { disk, mapping, .. } = &self.top;
        let len = mapping.layout.cluster_size();
        let table = || -> Result<Option<(u64, bool)>> {
            let table = mapping
                .table(offset)
                .map_err(|corrupt| corrupt.at(&disk.storage.path, offset))?;
            if let Some((host, _)) = table {
                disk.check_table("an L2 table", host, len)?;
            }
            Ok(table)
        };
        if let Some((_, true)) = table()? {
            return Ok(());
        }
        let _writer = mapping.l1_writer.lock().await;
        let old = match table()? {
            Some((_, true)) => return Ok(()),
            Some((old, false)) => Some(old),
            None => None,
        };
        let allocator = &self.writer()?.allocator;
        let (host, _) = allocator.take(io, disk, 1).await?;
        if let Some(old) = old {
            let bytes = disk.read_metadata(io, len as usize, old).await?;
            disk.write_metadata(io, &bytes, host, false).await?;
            disk.pass_barrier(io).await?;
        }
        let index = mapping.layout.table_of(offset) as usize;
        mapping.set_table(io, disk, index, host | COPIED).await?;
        if let Some(old) = old {
            allocator.free(old, len, disk.barrier.mark());
        }
        Ok(())
    }

    /// What a guest cluster needs for `range` to be stored; nothing if it can be written in place.
    fn plan(
        &self,
        slice: &Slice,
        cluster: u64,
        range: Range<u64>,
        payload: &Payload<'_>,
    ) -> Result<Option<Plan>, Corrupt> {
        let layout = &self.top.mapping.layout;
        let size = self.top.mapping.size.get();
        let start = cluster << layout.cluster_bits;
        let entry = slice.entry(cluster, layout);
        let owned = entry.word & COPIED != 0;
        let target = match entry.host(layout)? {
            _ if layout.external => Target::Existing(start),
            Some(host) if layout.extended && owned => Target::Existing(host),
            _ => Target::New,
        };
        let is_data = matches!(payload, Payload::Bytes(_));
        let mut plan = Plan {
            target,
            copies: Vec::new(),
            bitmap: 0,
            replaced: match target {
                Target::New => entry.keeps(layout)?,
                Target::Existing(_) => None,
            },
            flush: false,
        };
        let mut in_place = true;
        let subs = layout.cluster_size() / layout.sub_size();
        for sub in 0..subs {
            let from = start + sub * layout.sub_size();
            let to = from + layout.sub_size();
            let touched = from < range.end && range.start < to;
            let state = entry.state(sub, layout)?;
            let shows = match state {
                State::Data { .. } | State::Compressed(_) => true,
                State::Unallocated => self.is_backed(from),
                State::Zero => false,
            };
            let has_data = matches!(state, State::Data { owned: true, .. });
            in_place &= !touched || has_data;
            let (copied, allocated) = match target {
                Target::New => (
                    shows,
                    touched || !matches!(state, State::Unallocated) || !shows,
                ),
                Target::Existing(_) => (touched && !has_data, touched || has_data),
            };
            if allocated {
                plan.bitmap |= 1 << sub;
            } else if state == State::Zero {
                plan.bitmap |= 1 << (32 + sub);
            }
            if !(copied && allocated) {
                continue;
            }
            let before = plan.copies.len();
            copy(&mut plan.copies, from..to.min(range.start).min(size));
            copy(&mut plan.copies, from.max(range.end)..to.min(size));
            let copies = plan.copies.len() != before;
            plan.flush |= is_data || copies || target != Target::New;
        }
        if !layout.extended {
            plan.bitmap = 0;
        }
        Ok((!in_place).then_some(plan))
    }

    /// Brings the payload and the copies to where they belong, and makes them durable if need be.
    async fn store(
        &self,
        io: &Io,
        plans: &[Plan],
        payload: Payload<'_>,
        range: Range<u64>,
        host: u64,
    ) -> Result<()> {
        let disk = &self.top.disk;
        let data = disk.data();
        let base = self.top.mapping.layout.cluster_start(range.start);
        let to_host = |guest: u64| host + (guest - base);
        let len = range.end - range.start;
        let existing = plans.iter().any(|plan| plan.target != Target::New);
        let mut transfers = None;
        match payload {
            Payload::Bytes(buffer) => {
                transfers
                    .insert(Transfers::new(io, buffer))
                    .write(data, 0..len as usize, to_host(range.start), false)
                    .await;
            }
            Payload::Zeroes(_) if existing => {
                let offset = to_host(range.start);
                disk.zero(io, data, Extent { offset, len }, Below::Kept)
                    .await?;
            }
            Payload::Zeroes(_) => {} // New clusters are zero.
        }
        let mut copied = Ok(());
        for copy in plans.iter().flat_map(|plan| &plan.copies) {
            copied = self.copy(io, copy.clone(), to_host(copy.start)).await;
            if copied.is_err() {
                break;
            }
        }
        if let Some(mut transfers) = transfers {
            transfers.finish().await.and(copied)?;
        } else {
            copied?;
        }
        if plans.iter().any(|plan| plan.flush) {
            disk.pass_barrier(io).await?;
        }
        Ok(())
    }

    /// Copies what the guest sees in `range` to a host offset.
    async fn copy(&self, io: &Io, range: Range<u64>, host: u64) -> Result<()> {
        let disk = &self.top.disk;
        let memory = disk.bounce(io, (range.end - range.start).min(COPY) as usize)?;
        let mut at = range.start;
        while at < range.end {
            let len = (range.end - at).min(COPY);
            let bytes = part(&memory, len as usize);
            self.fill(io, bytes, at).await?;
            let place = host + (at - range.start);
            transfers::write(io, disk.data(), bytes, place, false).await?;
            at += len;
        }
        Ok(())
    }
}

/// Adds a range to a list, if there is anything in it.
fn copy(copies: &mut Vec<Range<u64>>, range: Range<u64>) {
    if range.is_empty() {
        return;
    }
    match copies.last_mut() {
        Some(last) if last.end == range.start => last.end = range.end,
        _ => copies.push(range),
    }
}
