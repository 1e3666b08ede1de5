//! The cache of L2 tables, in slices of at most 4 KiB.
//!
//! The cache is written through: a mapping is in the image file (if not on the medium) before the
//! request that made it ends. So a daemon that is killed loses nothing that was acknowledged.
//! Requests that change the same slice at the same time share the write.

use std::cell::RefCell;
use std::collections::{HashSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use tokio::sync::{Mutex, Notify};

use crate::entry::Entry;
use crate::layout::Layout;
use crate::number_map::NumberMap;

/// How many slices are looked at before the cache is allowed to be too large for a moment.
const ATTEMPTS: usize = 64;

/// A part of an L2 table. Used by one thread; the atomics only make it `Send`.
#[derive(Debug)]
pub(crate) struct Slice {
    /// Counts the slices of the whole virtual disk.
    pub(crate) number: u64,
    words: Box<[AtomicU64]>,
    /// Counts changes, and which of them are in the file.
    version: AtomicU64,
    written: AtomicU64,
    pub(crate) writer: Mutex<()>,
    used: AtomicBool,
}

impl Slice {
    pub(crate) fn new(number: u64, bytes: &[u8]) -> Self {
        let words = bytes
            .as_chunks::<8>()
            .0
            .iter()
            .map(|word| AtomicU64::new(u64::from_be_bytes(*word)))
            .collect();
        Self {
            number,
            words,
            version: AtomicU64::new(0),
            written: AtomicU64::new(0),
            writer: Mutex::new(()),
            used: AtomicBool::new(true),
        }
    }

    /// The entry of the guest cluster `cluster`, which the slice covers.
    pub(crate) fn entry(&self, cluster: u64, layout: &Layout) -> Entry {
        let at = self.place(cluster, layout);
        let word = |at: usize| {
            self.words
                .get(at)
                .map_or(0, |word| word.load(Ordering::Relaxed))
        };
        Entry {
            word: word(at),
            bitmap: if layout.extended { word(at + 1) } else { 0 },
        }
    }

    /// Changes an entry. The slice has to be written afterwards.
    pub(crate) fn set(&self, cluster: u64, entry: Entry, layout: &Layout) {
        let at = self.place(cluster, layout);
        if let Some(word) = self.words.get(at) {
            word.store(entry.word, Ordering::Relaxed);
        }
        if layout.extended
            && let Some(bitmap) = self.words.get(at + 1)
        {
            bitmap.store(entry.bitmap, Ordering::Relaxed);
        }
        self.version.fetch_add(1, Ordering::Relaxed);
    }

    fn place(&self, cluster: u64, layout: &Layout) -> usize {
        (cluster & (layout.slice_entries() - 1)) as usize * layout.entry_words()
    }

    /// The slice as it stands in the file.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        let mut bytes = vec![0; self.words.len() * 8];
        for (place, word) in bytes.as_chunks_mut::<8>().0.iter_mut().zip(&self.words) {
            *place = word.load(Ordering::Relaxed).to_be_bytes();
        }
        bytes
    }

    /// Whether there are changes that are not in the file.
    pub(crate) fn is_dirty(&self) -> bool {
        self.version() != self.written.load(Ordering::Relaxed)
    }

    pub(crate) fn version(&self) -> u64 {
        self.version.load(Ordering::Relaxed)
    }

    /// Whether the changes up to `version` are in the file.
    pub(crate) fn has_written(&self, version: u64) -> bool {
        self.written.load(Ordering::Relaxed) >= version
    }

    pub(crate) fn wrote(&self, version: u64) {
        self.written.store(version, Ordering::Relaxed);
    }
}

/// The slices in memory.
#[derive(Debug)]
pub(crate) struct Slices {
    cached: RefCell<NumberMap<Arc<Slice>>>,
    /// The order in which slices are looked at for eviction.
    queue: RefCell<VecDeque<u64>>,
    loading: RefCell<HashSet<u64>>,
    loaded: Notify,
    capacity: usize,
}

impl Slices {
    /// A cache of `capacity` slices. Those in use and those with changes stay beyond that.
    pub(crate) fn new(capacity: usize) -> Self {
        Self {
            cached: RefCell::default(),
            queue: RefCell::default(),
            loading: RefCell::default(),
            loaded: Notify::new(),
            capacity,
        }
    }

    /// Calls `look` with the slice, if it is in memory.
    pub(crate) fn with<T>(&self, number: u64, look: impl FnOnce(&Slice) -> T) -> Option<T> {
        let cached = self.cached.borrow();
        let slice = cached.get(&number)?;
        slice.used.store(true, Ordering::Relaxed);
        Some(look(slice))
    }

    pub(crate) fn get(&self, number: u64) -> Option<Arc<Slice>> {
        self.cached.borrow().get(&number).map(Arc::clone)
    }

    /// The right to load a slice, or nothing if somebody had it meanwhile: look again then.
    pub(crate) async fn start_loading(&self, number: u64) -> Option<Loading<'_>> {
        if self.loading.borrow_mut().insert(number) {
            return Some(Loading {
                slices: self,
                number,
            });
        }
        self.loaded.notified().await;
        None
    }

    /// Keeps a slice, and lets others go.
    pub(crate) fn insert(&self, slice: Slice) -> Arc<Slice> {
        let number = slice.number;
        let slice = Arc::new(slice);
        self.cached.borrow_mut().insert(number, Arc::clone(&slice));
        self.queue.borrow_mut().push_back(number);
        self.evict();
        slice
    }

    fn evict(&self) {
        let mut cached = self.cached.borrow_mut();
        let mut queue = self.queue.borrow_mut();
        for _ in 0..ATTEMPTS {
            if cached.len() <= self.capacity {
                return;
            }
            let Some(number) = queue.pop_front() else {
                return;
            };
            let Some(slice) = cached.get(&number) else {
                continue;
            };
            let kept = Arc::strong_count(slice) > 1
                || slice.is_dirty()
                || slice.used.swap(false, Ordering::Relaxed);
            if kept {
                queue.push_back(number);
            } else {
                cached.remove(&number);
            }
        }
    }
}

/// The right to load a slice.
#[derive(Debug)]
pub(crate) struct Loading<'a> {
    slices: &'a Slices,
    number: u64,
}

impl Drop for Loading<'_> {
    fn drop(&mut self) {
        self.slices.loading.borrow_mut().remove(&self.number);
        self.slices.loaded.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_used_or_dirty_or_held_stays() {
        let slices = Slices::new(2);
        let layout = Layout {
            version: 3,
            cluster_bits: 9,
            extended: false,
            external: false,
        };
        let held = slices.insert(Slice::new(0, &[0; 512]));
        let dirty = slices.insert(Slice::new(1, &[0; 512]));
        dirty.set(64, Entry { word: 5, bitmap: 0 }, &layout);
        drop(dirty);
        for number in 2..20 {
            slices.insert(Slice::new(number, &[0; 512]));
        }
        assert!(slices.get(0).is_some());
        assert_eq!(slices.get(1).unwrap().entry(64, &layout).word, 5);
        assert!(slices.cached.borrow().len() <= 4);
        drop(held);
    }
}
