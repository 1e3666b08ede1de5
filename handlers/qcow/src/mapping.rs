//! From guest offsets to what lies there: the L1 table and the slices of the L2 tables.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::sync::Arc;
use std::task::Poll;

use tcmu_handler::{ErrorKind, Io, Result};
use tokio::sync::Mutex;

use crate::disk::Disk;
use crate::entry::{COPIED, OFFSET, State};
use crate::fault::{Corrupt, refused};
use crate::layout::Layout;
use crate::slices::{Slice, Slices};

/// Bytes of L2 tables that are kept in memory at the most; enough for 256 GiB in clusters of 64 KiB.
const CACHE: u64 = 32 << 20;

/// The tables of one image in a chain.
#[derive(Debug)]
pub(crate) struct Mapping {
    pub(crate) layout: Layout,
    /// Bytes of the virtual disk.
    pub(crate) size: Cell<u64>,
    pub(crate) l1: RefCell<Vec<u64>>,
    pub(crate) l1_offset: Cell<u64>,
    /// Held while the L1 table changes.
    pub(crate) l1_writer: Mutex<()>,
    slices: Slices,
    /// log2 of the guest bytes that a slice describes.
    slice_bits: u32,
    /// Slices with changes that are not in the file.
    dirty: RefCell<Vec<Arc<Slice>>>,
}

/// A range of the guest that is in one state, and contiguous in the host if it is data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Piece {
    pub(crate) state: State,
    pub(crate) len: u64,
    /// The mapping is not in the image file yet.
    pub(crate) dirty: bool,
}

/// What is known of a range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Found {
    /// The state of its beginning.
    Piece(Piece),
    /// Nothing, until this slice is loaded.
    Missing(u64),
}

impl Mapping {
    pub(crate) fn new(layout: Layout, size: u64, l1: Vec<u64>, l1_offset: u64) -> Self {
        let tables = layout.l1_entries(size) * layout.cluster_size();
        let capacity = tables.min(CACHE) / layout.slice_size();
        Self {
            layout,
            size: Cell::new(size),
            l1: RefCell::new(l1),
            l1_offset: Cell::new(l1_offset),
            l1_writer: Mutex::new(()),
            slices: Slices::new((capacity as usize).max(16)),
            slice_bits: layout.slice_span().trailing_zeros(),
            dirty: RefCell::default(),
        }
    }

    /// What there is at `offset`, and how far it reaches, up to `len` bytes.
    pub(crate) fn find(&self, offset: u64, len: u64) -> Result<Found, Corrupt> {
        let layout = &self.layout;
        let number = offset >> self.slice_bits;
        let slice_end = (offset | ((1 << self.slice_bits) - 1)).saturating_add(1);
        let end = offset.saturating_add(len).min(slice_end);
        // Where a slice is in memory, there is a table: it need not be asked for.
        let run = self
            .slices
            .with(number, |slice| run(slice, offset, end, layout));
        match run {
            Some(run) => run.map(Found::Piece),
            None if self.table(offset)?.is_some() => Ok(Found::Missing(number)),
            None => Ok(Found::Piece(Piece {
                state: State::Unallocated,
                len: len.min(layout.table_end(offset) - offset),
                dirty: false,
            })),
        }
    }

    /// Where the L2 table of a guest offset lies, if there is one, and whether nothing else refers
    /// to it.
    pub(crate) fn table(&self, offset: u64) -> Result<Option<(u64, bool)>, Corrupt> {
        let index = self.layout.table_of(offset) as usize;
        let entry = self.l1.borrow().get(index).copied().unwrap_or(0);
        let host = entry & OFFSET;
        if host & (self.layout.cluster_size() - 1) != 0 {
            return Err(Corrupt("an L2 table is not aligned"));
        }
        Ok((host != 0).then_some((host, entry & COPIED != 0)))
    }

    /// The slice with this number from memory or from the file; nothing if there is no table.
    pub(crate) async fn load(
        &self,
        io: &Io,
        disk: &Disk,
        number: u64,
    ) -> Result<Option<Arc<Slice>>> {
        let offset = number.saturating_mul(self.layout.slice_span());
        loop {
            if let Some(slice) = self.slices.get(number) {
                return Ok(Some(slice));
            }
            let Some(_loading) = self.slices.start_loading(number).await else {
                continue;
            };
            let Some(host) = self.host_of(disk, offset)? else {
                return Ok(None);
            };
            let len = self.layout.slice_size() as usize;
            let bytes = disk.read_metadata(io, len, host).await?;
            return Ok(Some(self.slices.insert(Slice::new(number, &bytes))));
        }
    }

    /// Where the slice lies that describes a guest offset.
    fn host_of(&self, disk: &Disk, offset: u64) -> Result<Option<u64>> {
        let table = self
            .table(offset)
            .map_err(|corrupt| corrupt.at(&disk.storage.path, offset))?;
        let number = self.layout.slice_of(offset);
        Ok(table.map(|(host, _)| host + self.layout.slice_within(number)))
    }

    /// Notes that a slice was changed.
    pub(crate) fn changed(&self, slice: &Arc<Slice>) {
        let mut dirty = self.dirty.borrow_mut();
        if !dirty.iter().any(|known| Arc::ptr_eq(known, slice)) {
            dirty.push(Arc::clone(slice));
        }
    }

    /// Writes the changes of a slice, together with those of others who wait for the same.
    pub(crate) async fn write(&self, io: &Io, disk: &Disk, slice: &Arc<Slice>) -> Result<()> {
        let wanted = slice.version();
        if slice.has_written(wanted) {
            return Ok(());
        }
        let _writer = slice.writer.lock().await;
        if slice.has_written(wanted) {
            return Ok(());
        }
        // Requests that came together change the same slice: one write is enough for them.
        let_others_run().await;
        disk.barrier.check(&disk.storage)?;
        let offset = slice.number.saturating_mul(self.layout.slice_span());
        let Some(host) = self.host_of(disk, offset)? else {
            return Err(refused(
                ErrorKind::Internal,
                &disk.storage.path,
                "a slice has lost its table",
            ));
        };
        let version = slice.version();
        disk.write_metadata(io, &slice.bytes(), host, false).await?;
        slice.wrote(version);
        if !slice.is_dirty() {
            let mut dirty = self.dirty.borrow_mut();
            dirty.retain(|known| !Arc::ptr_eq(known, slice));
        }
        Ok(())
    }

    /// Writes all changes that are not in the file: those under way, and those that failed before.
    pub(crate) async fn settle(&self, io: &Io, disk: &Disk) -> Result<()> {
        let dirty = self.dirty.borrow().clone();
        for slice in &dirty {
            self.write(io, disk, slice).await?;
        }
        Ok(())
    }

    /// Writes one entry of the L1 table to the file and then to memory. The caller holds
    /// [`l1_writer`](Self::l1_writer).
    pub(crate) async fn set_table(
        &self,
        io: &Io,
        disk: &Disk,
        index: usize,
        entry: u64,
    ) -> Result<()> {
        let per_part = self.layout.slice_size() as usize / 8;
        let start = index / per_part * per_part;
        let mut bytes = vec![0; per_part * 8];
        {
            let l1 = self.l1.borrow();
            for (at, place) in bytes.as_chunks_mut::<8>().0.iter_mut().enumerate() {
                let value = match start + at {
                    here if here == index => entry,
                    other => l1.get(other).copied().unwrap_or(0),
                };
                *place = value.to_be_bytes();
            }
        }
        let offset = self.l1_offset.get() + start as u64 * 8;
        disk.write_metadata(io, &bytes, offset, false).await?;
        if let Some(place) = self.l1.borrow_mut().get_mut(index) {
            *place = entry;
        }
        Ok(())
    }
}

/// Lets all others run first that are ready to.
async fn let_others_run() {
    let mut has_waited = false;
    poll_fn(|context| {
        if std::mem::replace(&mut has_waited, true) {
            return Poll::Ready(());
        }
        context.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

/// What most requests find: plain data, and that one cluster has all of them.
#[inline]
fn within_a_cluster(slice: &Slice, offset: u64, end: u64, layout: &Layout) -> Option<Piece> {
    let cluster = offset >> layout.cluster_bits;
    if layout.extended || layout.external || end.wrapping_sub(1) >> layout.cluster_bits != cluster {
        return None;
    }
    let word = slice.entry(cluster, layout).word;
    let (host, into) = (word & OFFSET, layout.cluster_size() - 1);
    let is_plain = word & !(OFFSET | COPIED) == 0 && host != 0 && host & into == 0;
    is_plain.then(|| Piece {
        state: State::Data {
            host: host + (offset & into),
            owned: word & COPIED != 0,
        },
        len: end - offset,
        dirty: slice.is_dirty(),
    })
}

/// How far the state at `offset` reaches, up to `end`.
fn run(slice: &Slice, offset: u64, end: u64, layout: &Layout) -> Result<Piece, Corrupt> {
    let state_at = |at: u64| {
        let entry = slice.entry(at >> layout.cluster_bits, layout);
        entry.state(layout.sub_of(at), layout)
    };
    if let Some(piece) = within_a_cluster(slice, offset, end, layout) {
        return Ok(piece);
    }
    let into = offset & (layout.sub_size() - 1);
    let first = match state_at(offset)? {
        State::Data { host, owned } => State::Data {
            host: host + into,
            owned,
        },
        other => other,
    };
    if let State::Data { host, .. } = first
        && layout.external
        && host != offset
    {
        return Err(Corrupt(
            "a cluster of an external data file does not lie at its guest offset",
        ));
    }
    let mut reach = offset - into + layout.sub_size();
    if let State::Compressed(_) = first {
        reach = layout.cluster_start(offset) + layout.cluster_size();
    } else {
        while reach < end && continues(first, state_at(reach)?, reach - offset) {
            reach += layout.sub_size();
        }
    }
    Ok(Piece {
        state: first,
        len: reach.min(end) - offset,
        dirty: slice.is_dirty(),
    })
}

/// Whether `next`, `distance` bytes on, is one piece with `first`.
fn continues(first: State, next: State, distance: u64) -> bool {
    match (first, next) {
        (
            State::Data { host, owned },
            State::Data {
                host: other,
                owned: too,
            },
        ) => host + distance == other && owned == too,
        (State::Unallocated, State::Unallocated) | (State::Zero, State::Zero) => true,
        _ => false,
    }
}
