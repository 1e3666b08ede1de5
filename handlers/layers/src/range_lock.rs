//! Exclusive use of ranges of an image.

use std::cell::RefCell;

use tcmu_handler::Extent;
use tokio::sync::Notify;

/// The ranges in use.
#[derive(Debug, Default)]
pub(crate) struct RangeLock {
    held: RefCell<Vec<Extent>>,
    released: Notify,
}

/// Holds a range until it is dropped.
#[derive(Debug)]
pub(crate) struct Held<'a> {
    lock: &'a RangeLock,
    extent: Extent,
}

impl RangeLock {
    /// Waits until nobody uses any part of `extent`, and takes it. A request takes one range at a
    /// time, so that none waits for itself or in a circle.
    pub(crate) async fn take(&self, extent: Extent) -> Held<'_> {
        while self.overlaps(extent) {
            self.released.notified().await;
        }
        self.held.borrow_mut().push(extent);
        Held { lock: self, extent }
    }

    fn overlaps(&self, extent: Extent) -> bool {
        let held = self.held.borrow();
        let mut held = held.iter();
        held.any(|held| held.offset < extent.end() && extent.offset < held.end())
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        let mut held = self.lock.held.borrow_mut();
        if let Some(place) = held.iter().position(|extent| *extent == self.extent) {
            held.swap_remove(place);
        }
        drop(held);
        self.lock.released.notify_waiters();
    }
}
