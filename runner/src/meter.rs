//! What is counted about a LUN while it is served.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

/// The figures of one LUN, written by its reactor and read by anyone at any time.
///
/// There is one writer, so plain stores do, and a reader may see figures of two moments.
#[derive(Debug, Default)]
pub(crate) struct Meter {
    size: AtomicU64,
    block_size: AtomicU32,
    completed: AtomicU64,
    in_flight: AtomicU32,
}

/// What a [`Meter`] showed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Reading {
    /// The LUN's size in bytes; 0 before it was opened.
    pub(crate) size: u64,
    /// Its logical block size in bytes; 0 before it was opened.
    pub(crate) block_size: u32,
    /// How many commands were completed since the LUN was opened, whatever their status.
    pub(crate) completed: u64,
    /// How many commands have been fetched and not completed.
    pub(crate) in_flight: u32,
}

impl Meter {
    /// The LUN has been opened with this geometry.
    pub(crate) fn opened(&self, size: u64, block_size: u32) {
        self.block_size.store(block_size, Ordering::Relaxed);
        self.resized(size);
    }

    /// The LUN's size in bytes has changed.
    pub(crate) fn resized(&self, size: u64) {
        self.size.store(size, Ordering::Relaxed);
    }

    /// How many commands have been completed in all, and how many are being executed.
    pub(crate) fn commands(&self, completed: u64, in_flight: usize) {
        self.completed.store(completed, Ordering::Relaxed);
        let in_flight = u32::try_from(in_flight).unwrap_or(u32::MAX);
        self.in_flight.store(in_flight, Ordering::Relaxed);
    }

    pub(crate) fn read(&self) -> Reading {
        Reading {
            size: self.size.load(Ordering::Relaxed),
            block_size: self.block_size.load(Ordering::Relaxed),
            completed: self.completed.load(Ordering::Relaxed),
            in_flight: self.in_flight.load(Ordering::Relaxed),
        }
    }
}
