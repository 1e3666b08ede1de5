//! The data area: which blocks are free, and whether anyone writes to those.

use std::sync::Arc;

use crate::mapping::Mapping;
use crate::ring::Segment;

/// What freed blocks are filled with, so that a late write shows, and a command that does not
/// fill its data-in buffer too.
pub(super) const POISON: u8 = 0x6b;

#[derive(Debug)]
pub(super) struct Blocks {
    memory: Arc<Mapping>,
    start: usize,
    size: usize,
    states: Vec<State>,
    free: usize,
    poison: bool,
    late_writes: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Never used; zeroes, like a page that the kernel has just allocated.
    Fresh,
    InUse,
    /// Free again, and full of [`POISON`] if that is wanted.
    Freed,
}

impl Blocks {
    pub(super) fn new(
        memory: Arc<Mapping>,
        start: usize,
        size: usize,
        count: usize,
        poison: bool,
    ) -> Self {
        let states = vec![State::Fresh; count];
        Self {
            memory,
            start,
            size,
            states,
            free: count,
            poison,
            late_writes: 0,
        }
    }

    pub(super) fn count(&self, len: usize) -> usize {
        len.div_ceil(self.size)
    }

    pub(super) fn total(&self) -> usize {
        self.states.len()
    }

    pub(super) fn free(&self) -> usize {
        self.free
    }

    /// Takes the lowest free blocks for `len` bytes, which the caller knows to be there, and
    /// returns the segments that they make: neighbours are merged.
    pub(super) fn take(&mut self, len: usize, blocks: &mut Vec<usize>) -> Vec<Segment> {
        let mut segments: Vec<Segment> = Vec::new();
        let mut left = len;
        for block in 0..self.states.len() {
            if left == 0 {
                break;
            }
            if self.states[block] == State::InUse {
                continue;
            }
            self.check(block);
            self.states[block] = State::InUse;
            self.free -= 1;
            blocks.push(block);
            let part = Segment {
                offset: self.at(block),
                len: left.min(self.size),
            };
            left -= part.len;
            match segments.last_mut() {
                Some(last) if last.offset + last.len == part.offset => last.len += part.len,
                _ => segments.push(part),
            }
        }
        assert_eq!(left, 0, "the caller has counted the free blocks");
        segments
    }

    pub(super) fn release(&mut self, blocks: &[usize]) {
        for &block in blocks {
            self.states[block] = State::Freed;
            self.free += 1;
            if self.poison {
                self.memory
                    .fill(self.at(block), self.size, POISON)
                    .expect("blocks lie in the mapping");
            }
        }
    }

    /// How many freed blocks were written to, each time it was found.
    pub(super) fn late_writes(&mut self) -> u64 {
        for block in 0..self.states.len() {
            self.check(block);
        }
        self.late_writes
    }

    /// Counts a write to a freed block, once.
    fn check(&mut self, block: usize) {
        if !self.poison || self.states[block] != State::Freed {
            return;
        }
        let mut bytes = vec![0; self.size];
        self.memory
            .read(self.at(block), &mut bytes)
            .expect("blocks lie in the mapping");
        if bytes.iter().any(|byte| *byte != POISON) {
            self.late_writes += 1;
            self.memory
                .fill(self.at(block), self.size, POISON)
                .expect("blocks lie in the mapping");
        }
    }

    fn at(&self, block: usize) -> usize {
        self.start + block * self.size
    }
}
