//! The memory of a request: scattered over a LUN's data area, shared with the kernel.
//!
//! Handlers see it as a [`Buffer`]: a cheap view that can be cut into parts, copied into and out of,
//! or handed to the I/O engine as it is. Nobody gets a reference to the bytes, because the other
//! side may change them at any time.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

/// How many bytes are compared at a time: they are copied to the stack first, since they may change
/// at any time where they are.
const COMPARED_AT_ONCE: usize = 4096;

/// A piece of memory that requests read from and write to.
///
/// # Safety
/// From [`base`](Memory::base) on, [`len`](Memory::len) bytes must be valid for reads and writes,
/// by this process and by the kernel on its behalf, for as long as the value lives, and both must
/// always return the same. I/O engines rely on it.
#[allow(unsafe_code)] // Declares the contract; what fulfils it lives elsewhere.
pub unsafe trait Memory: Send + Sync + 'static {
    /// The address of the first byte.
    fn base(&self) -> *mut u8;

    /// The size in bytes.
    fn len(&self) -> usize;

    /// Whether there is no byte.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Copies bytes out, from `offset` on. The range lies within the memory.
    fn load(&self, offset: usize, to: &mut [u8]);

    /// Copies bytes in, from `offset` on. The range lies within the memory.
    fn store(&self, offset: usize, from: &[u8]);

    /// Sets `len` bytes from `offset` on. The range lies within the memory.
    fn fill(&self, offset: usize, len: usize, byte: u8);
}

/// A contiguous range of a [`Memory`], in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Where it begins.
    pub offset: usize,
    /// How long it is.
    pub len: usize,
}

/// A segment that does not lie within its memory, or a part that does not lie within its buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{len} bytes at {offset} reach beyond the end at {end}")]
pub struct OutOfBounds {
    /// Where the range begins.
    pub offset: usize,
    /// How long it is.
    pub len: usize,
    /// How much there is.
    pub end: usize,
}

/// A request's memory together with the list of its segments.
#[derive(Clone)]
pub struct OwnedBuffer {
    memory: Arc<dyn Memory>,
    segments: Vec<Segment>,
    len: usize,
}

impl OwnedBuffer {
    /// The buffer made of `segments` of `memory`, in this order.
    ///
    /// # Errors
    /// [`OutOfBounds`] if a segment does not lie within the memory.
    pub fn new(memory: Arc<dyn Memory>, segments: Vec<Segment>) -> Result<Self, OutOfBounds> {
        let end = memory.len();
        let mut len = 0usize;
        for segment in &segments {
            let out = OutOfBounds {
                offset: segment.offset,
                len: segment.len,
                end,
            };
            match segment.offset.checked_add(segment.len) {
                Some(last) if last <= end => {}
                _ => return Err(out),
            }
            len = len.checked_add(segment.len).ok_or(out)?;
        }
        Ok(Self {
            memory,
            segments,
            len,
        })
    }

    /// The whole of `memory`.
    pub fn whole(memory: Arc<dyn Memory>) -> Self {
        let len = memory.len();
        Self {
            memory,
            segments: vec![Segment { offset: 0, len }],
            len,
        }
    }

    /// A view of the whole buffer.
    pub fn view(&self) -> Buffer<'_> {
        Buffer {
            memory: &self.memory,
            segments: &self.segments,
            skip: 0,
            len: self.len,
        }
    }

    /// Gives the list of segments back, for its storage to be used again.
    pub fn into_segments(self) -> Vec<Segment> {
        self.segments
    }
}

impl fmt::Debug for OwnedBuffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.view().fmt(f)
    }
}

/// A view of a request's memory, or of a part of it.
///
/// Copying the view copies no bytes.
#[derive(Clone, Copy)]
pub struct Buffer<'a> {
    memory: &'a Arc<dyn Memory>,
    segments: &'a [Segment],
    /// Bytes of the first segment that lie before the view; less than its length, or 0.
    skip: usize,
    len: usize,
}

impl<'a> Buffer<'a> {
    /// The length in bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is no byte.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The memory that the buffer is a part of.
    pub fn memory(&self) -> &'a Arc<dyn Memory> {
        self.memory
    }

    /// The segments of the view, in order; none is empty.
    pub fn segments(&self) -> impl Iterator<Item = Segment> + use<'a> {
        let mut skip = self.skip;
        let mut left = self.len;
        self.segments
            .iter()
            .map_while(move |segment| {
                if left == 0 {
                    return None;
                }
                let offset = segment.offset + skip;
                let len = (segment.len - skip).min(left);
                skip = 0;
                left -= len;
                Some(Segment { offset, len })
            })
            .filter(|segment| segment.len != 0)
    }

    /// The part of the view from byte `range.start` up to `range.end`.
    ///
    /// # Errors
    /// [`OutOfBounds`] if the view has no such part.
    pub fn slice(&self, range: Range<usize>) -> Result<Buffer<'a>, OutOfBounds> {
        let Range { start, end } = range;
        if start > end || end > self.len {
            return Err(OutOfBounds {
                offset: start,
                len: end.saturating_sub(start),
                end: self.len,
            });
        }
        let mut skip = self.skip + start;
        let mut segments = self.segments;
        while let Some((first, rest)) = segments.split_first() {
            if skip < first.len {
                break;
            }
            skip -= first.len;
            segments = rest;
        }
        Ok(Buffer {
            memory: self.memory,
            segments,
            skip,
            len: end - start,
        })
    }

    /// Copies the bytes from `at` on out; returns how many there were.
    pub fn copy_to(&self, at: usize, mut to: &mut [u8]) -> usize {
        let mut copied = 0;
        for segment in self.part_from(at, to.len()) {
            let (now, later) = to.split_at_mut(segment.len);
            self.memory.load(segment.offset, now);
            to = later;
            copied += segment.len;
        }
        copied
    }

    /// Copies `from` in, from byte `at` on; returns how much there was room for.
    pub fn copy_from(&self, at: usize, mut from: &[u8]) -> usize {
        let mut copied = 0;
        for segment in self.part_from(at, from.len()) {
            let (now, later) = from.split_at(segment.len);
            self.memory.store(segment.offset, now);
            from = later;
            copied += segment.len;
        }
        copied
    }

    /// Sets every byte.
    pub fn fill(&self, byte: u8) {
        for segment in self.segments() {
            self.memory.fill(segment.offset, segment.len, byte);
        }
    }

    /// Where the bytes from `at` on first differ from `bytes`, counted from `at`; `None` where they
    /// are the same as far as the view goes.
    pub fn difference(&self, at: usize, bytes: &[u8]) -> Option<usize> {
        let mut part = [0; COMPARED_AT_ONCE];
        let mut compared = 0;
        for expected in bytes.chunks(COMPARED_AT_ONCE) {
            let len = self.copy_to(at.saturating_add(compared), &mut part[..expected.len()]);
            let (is, expected) = (&part[..len], &expected[..len]);
            if is != expected {
                let first = is
                    .iter()
                    .zip(expected)
                    .position(|(is, expected)| is != expected);
                return first.map(|first| compared + first);
            }
            compared += len;
        }
        None
    }

    /// Where this view and `other` first differ; `None` where they are the same as far as the
    /// shorter one goes.
    pub fn difference_from(&self, other: Buffer<'_>) -> Option<usize> {
        let mut part = [0; COMPARED_AT_ONCE];
        let mut compared = 0;
        loop {
            let len = other.copy_to(compared, &mut part);
            if len == 0 {
                return None;
            }
            if let Some(first) = self.difference(compared, &part[..len]) {
                return Some(compared + first);
            }
            compared += len;
        }
    }

    /// Keeps the memory and the list of segments beyond the life of the request's own.
    pub fn to_owned(&self) -> OwnedBuffer {
        OwnedBuffer {
            memory: Arc::clone(self.memory),
            segments: self.segments().collect(),
            len: self.len,
        }
    }

    /// The segments of at most `len` bytes from `at` on.
    fn part_from(&self, at: usize, len: usize) -> impl Iterator<Item = Segment> + use<'a> {
        let start = at.min(self.len);
        let end = start.saturating_add(len).min(self.len);
        let part = self.slice(start..end).unwrap_or(Buffer { len: 0, ..*self });
        part.segments()
    }
}

impl fmt::Debug for Buffer<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.segments()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::HeapMemory;

    fn scattered() -> OwnedBuffer {
        let memory = Arc::new(HeapMemory::new(100));
        let segments = [(50, 10), (0, 5), (0, 0), (90, 10)]
            .map(|(offset, len)| Segment { offset, len })
            .to_vec();
        OwnedBuffer::new(memory, segments).unwrap()
    }

    #[test]
    fn copies_across_segments() {
        let buffer = scattered();
        let bytes: Vec<u8> = (1..=25).collect();
        assert_eq!(buffer.view().copy_from(0, &bytes), 25);
        let mut back = [0; 25];
        assert_eq!(buffer.view().copy_to(0, &mut back), 25);
        assert_eq!(back.as_slice(), bytes);
        let mut part = [0; 8];
        assert_eq!(buffer.view().copy_to(9, &mut part), 8);
        assert_eq!(part, [10, 11, 12, 13, 14, 15, 16, 17]);
        let memory = buffer.view().memory().clone();
        let mut first = [0; 5];
        memory.load(0, &mut first);
        assert_eq!(first, [11, 12, 13, 14, 15]);
    }

    #[test]
    fn a_copy_stops_at_the_end() {
        let buffer = scattered();
        assert_eq!(buffer.view().copy_from(20, &[7; 30]), 5);
        assert_eq!(buffer.view().copy_to(25, &mut [0; 4]), 0);
        assert_eq!(buffer.view().copy_to(usize::MAX, &mut [0; 4]), 0);
    }

    #[test]
    fn every_slice_is_that_part_of_the_bytes() {
        let buffer = scattered();
        let bytes: Vec<u8> = (1..=25).collect();
        buffer.view().copy_from(0, &bytes);
        for start in 0..=25 {
            for end in start..=25 {
                let slice = buffer.view().slice(start..end).unwrap();
                assert_eq!(slice.len(), end - start);
                assert_eq!(slice.segments().map(|s| s.len).sum::<usize>(), end - start);
                let mut back = vec![0; end - start];
                assert_eq!(slice.copy_to(0, &mut back), end - start);
                assert_eq!(back, bytes[start..end]);
                let again = slice.slice(0..slice.len() / 2).unwrap();
                let mut half = vec![0; again.len()];
                again.copy_to(0, &mut half);
                assert_eq!(half, bytes[start..start + again.len()]);
            }
        }
        assert!(buffer.view().slice(3..26).is_err());
    }

    #[test]
    fn the_first_difference_is_found() {
        let (first, second) = (scattered(), crate::testing::scattered(&[0; 25], 4));
        let bytes: Vec<u8> = (1..=25).collect();
        for buffer in [&first, &second] {
            buffer.view().copy_from(0, &bytes);
        }
        assert_eq!(first.view().difference_from(second.view()), None);
        for at in 0..25 {
            second.view().copy_from(at, &[0]);
            assert_eq!(first.view().difference_from(second.view()), Some(at));
            assert_eq!(second.view().difference(0, &bytes), Some(at));
            assert_eq!(second.view().difference(at, &bytes[at..]), Some(0));
            assert_eq!(second.view().difference(at + 1, &bytes[at + 1..]), None);
            second.view().copy_from(at, &bytes[at..=at]);
        }
        let shorter = first.view().slice(0..7).unwrap();
        assert_eq!(shorter.difference_from(second.view()), None);
        assert_eq!(second.view().difference_from(shorter), None);
    }

    #[test]
    fn differences_of_long_buffers() {
        let len = 3 * COMPARED_AT_ONCE + 100;
        let buffer = crate::testing::buffer(len);
        for at in [0, COMPARED_AT_ONCE - 1, COMPARED_AT_ONCE, len - 1] {
            let other = crate::testing::buffer(len);
            other.view().copy_from(at, &[1]);
            assert_eq!(buffer.view().difference_from(other.view()), Some(at));
        }
    }

    #[test]
    fn fill_touches_the_view_only() {
        let buffer = scattered();
        buffer.view().fill(1);
        buffer.view().slice(8..12).unwrap().fill(9);
        let mut back = [0; 25];
        buffer.view().copy_to(0, &mut back);
        assert_eq!(&back[6..14], [1, 1, 9, 9, 9, 9, 1, 1]);
    }

    #[test]
    fn segments_outside_the_memory_are_refused() {
        let memory: Arc<dyn Memory> = Arc::new(HeapMemory::new(100));
        for (offset, len) in [(100, 1), (0, 101), (usize::MAX, 2), (usize::MAX, 0)] {
            let segments = vec![Segment { offset, len }];
            assert!(
                OwnedBuffer::new(memory.clone(), segments).is_err(),
                "{offset} {len}"
            );
        }
    }
}
