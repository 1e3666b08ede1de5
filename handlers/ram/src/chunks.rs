//! Sparse bytes: a map of those chunks that hold something.

use std::collections::BTreeMap;
use std::collections::TryReserveError;

use tcmu_handler::{Buffer, Extent};

/// The size in bytes of the pieces in which memory is taken and given back.
pub(crate) const CHUNK: u64 = 64 << 10;

/// How many chunks are looked at to answer how many there are in a row.
const COUNTED: usize = 1024;

/// Bytes at 64-bit offsets, zero where nothing was stored. A chunk is found by its number.
#[derive(Debug, Default)]
pub(crate) struct Chunks(BTreeMap<u64, Vec<u8>>);

impl Chunks {
    /// Fills `buffer` with the bytes from `offset` on.
    pub(crate) fn load(&self, buffer: Buffer<'_>, offset: u64) {
        for part in parts(extent_of(buffer, offset)) {
            match self.0.get(&part.chunk) {
                Some(bytes) => {
                    buffer.copy_from(part.done, &bytes[part.start..part.end]);
                }
                None => {
                    if let Ok(hole) = buffer.slice(part.done..part.done + part.len()) {
                        hole.fill(0);
                    }
                }
            }
        }
    }

    /// Stores `buffer` from `offset` on, or nothing if there is no memory for all of it.
    pub(crate) fn store(&mut self, buffer: Buffer<'_>, offset: u64) -> Result<(), TryReserveError> {
        let extent = extent_of(buffer, offset);
        let mut new = Vec::new();
        for part in parts(extent).filter(|part| !self.0.contains_key(&part.chunk)) {
            let mut bytes = Vec::new();
            bytes.try_reserve_exact(CHUNK as usize)?;
            bytes.resize(CHUNK as usize, 0);
            new.push((part.chunk, bytes));
        }
        self.0.extend(new);
        for part in parts(extent) {
            if let Some(bytes) = self.0.get_mut(&part.chunk) {
                buffer.copy_to(part.done, &mut bytes[part.start..part.end]);
            }
        }
        Ok(())
    }

    /// Where the bytes from `offset` on first differ from those of `buffer`.
    pub(crate) fn difference(&self, buffer: Buffer<'_>, offset: u64) -> Option<usize> {
        static HOLE: [u8; CHUNK as usize] = [0; CHUNK as usize];
        parts(extent_of(buffer, offset)).find_map(|part| {
            let bytes = self.0.get(&part.chunk).map_or(&HOLE[..], Vec::as_slice);
            let differs = buffer.difference(part.done, &bytes[part.start..part.end]);
            differs.map(|at| part.done + at)
        })
    }

    /// How many of the first bytes of `extent`, which is not empty, are all in chunks that take
    /// memory, or all in chunks that do not, and which of both.
    pub(crate) fn status(&self, extent: Extent) -> (u64, bool) {
        let (first, last) = (extent.offset / CHUNK, (extent.end() - 1) / CHUNK);
        let mut stored = self.0.range(first..=last).map(|(&chunk, _)| chunk);
        let (mapped, next) = match stored.next() {
            Some(chunk) if chunk == first => {
                let after = (first + 1..).zip(stored.take(COUNTED));
                let more = after.take_while(|(next, chunk)| next == chunk).count();
                (true, first + 1 + more as u64)
            }
            Some(chunk) => (false, chunk),
            None => (false, last + 1),
        };
        let end = next.saturating_mul(CHUNK).min(extent.end());
        (end - extent.offset, mapped)
    }

    /// Makes a range zero and gives the memory of the chunks within it back.
    pub(crate) fn clear(&mut self, extent: Extent) {
        let Extent { offset, .. } = extent;
        let end = extent.end();
        let whole = offset.div_ceil(CHUNK)..end / CHUNK;
        if whole.start < whole.end {
            self.zero(offset, whole.start * CHUNK);
            self.zero(whole.end * CHUNK, end);
            let emptied: Vec<u64> = self.0.range(whole).map(|(chunk, _)| *chunk).collect();
            for chunk in emptied {
                self.0.remove(&chunk);
            }
        } else {
            self.zero(offset, end);
        }
    }

    /// Makes the bytes from `start` up to `end`, which span two chunks at most, zero.
    fn zero(&mut self, start: u64, end: u64) {
        let extent = Extent {
            offset: start,
            len: end - start,
        };
        for part in parts(extent) {
            if let Some(bytes) = self.0.get_mut(&part.chunk) {
                bytes[part.start..part.end].fill(0);
            }
        }
    }

    /// The number of chunks that take memory.
    #[cfg(test)]
    pub(crate) fn count(&self) -> usize {
        self.0.len()
    }
}

/// What of a request lies in one chunk.
struct Part {
    /// The chunk's number.
    chunk: u64,
    /// The first byte within the chunk.
    start: usize,
    /// The first byte within the chunk that belongs to the request no more.
    end: usize,
    /// How many of the request's bytes lie in chunks before.
    done: usize,
}

impl Part {
    fn len(&self) -> usize {
        self.end - self.start
    }
}

fn parts(extent: Extent) -> impl Iterator<Item = Part> {
    let mut at = extent.offset;
    std::iter::from_fn(move || {
        let start = at % CHUNK;
        let len = (CHUNK - start).min(extent.end().saturating_sub(at));
        let part = Part {
            chunk: at / CHUNK,
            start: start as usize,
            end: (start + len) as usize,
            done: (at - extent.offset) as usize,
        };
        at += len;
        (len != 0).then_some(part)
    })
}

fn extent_of(buffer: Buffer<'_>, offset: u64) -> Extent {
    Extent {
        offset,
        len: buffer.len() as u64,
    }
}
