//! Exclusive use of ranges of clusters by the requests that change their mapping.

use std::cell::RefCell;
use std::ops::RangeInclusive;

use tokio::sync::Notify;

/// The ranges in use.
#[derive(Debug, Default)]
pub(crate) struct RangeLocks {
    held: RefCell<Vec<RangeInclusive<u64>>>,
    released: Notify,
}

/// Holds a range until it is dropped.
#[derive(Debug)]
pub(crate) struct Held<'a> {
    locks: &'a RangeLocks,
    range: RangeInclusive<u64>,
}

impl RangeLocks {
    /// Waits until nobody uses any part of `range`, and takes it. A request takes one range at a
    /// time, so that none waits for itself or in a circle.
    pub(crate) async fn lock(&self, range: RangeInclusive<u64>) -> Held<'_> {
        while self.overlaps(&range) {
            self.released.notified().await;
        }
        self.held.borrow_mut().push(range.clone());
        Held { locks: self, range }
    }

    fn overlaps(&self, range: &RangeInclusive<u64>) -> bool {
        self.held
            .borrow()
            .iter()
            .any(|held| held.start() <= range.end() && range.start() <= held.end())
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        let mut held = self.locks.held.borrow_mut();
        if let Some(place) = held.iter().position(|range| *range == self.range) {
            held.swap_remove(place);
        }
        drop(held);
        self.locks.released.notify_waiters();
    }
}
