//! When it is certain that no request uses a cluster any more that was let go.
//!
//! Requests look up where their data lie and then wait for the transfer. Meanwhile another request
//! can unmap the same blocks. The cluster must not be given to anything else until every request
//! has ended that could have looked it up before. Requests are counted in two generations; when
//! the older one is empty, the younger becomes the older. What was let go in generation *n* is
//! unused from generation *n* + 2 on.

use std::cell::Cell;

/// Counts requests by generation.
#[derive(Debug, Default)]
pub(crate) struct Grace {
    generation: Cell<u64>,
    running: [Cell<usize>; 2],
}

/// A request that may know where clusters lie.
#[derive(Debug)]
pub(crate) struct Inside<'a> {
    count: &'a Cell<usize>,
}

impl Grace {
    /// Counts a request until the value is dropped.
    pub(crate) fn enter(&self) -> Inside<'_> {
        let count = &self.running[(self.generation.get() % 2) as usize];
        count.set(count.get() + 1);
        Inside { count }
    }

    /// The generation that what is let go now belongs to.
    pub(crate) fn now(&self) -> u64 {
        self.generation.get()
    }

    /// Whether all requests have ended that ran when `generation` was the present one.
    pub(crate) fn is_over(&self, generation: u64) -> bool {
        while self.generation.get() < generation + 2 {
            let next = self.generation.get() + 1;
            if self.running[(next % 2) as usize].get() != 0 {
                return false;
            }
            self.generation.set(next);
        }
        true
    }
}

impl Drop for Inside<'_> {
    fn drop(&mut self) {
        self.count.set(self.count.get() - 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_that_runs_keeps_what_was_let_go() {
        let grace = Grace::default();
        let old = grace.enter();
        let freed = grace.now();
        assert!(!grace.is_over(freed));
        let young = grace.enter();
        let freed_later = grace.now();
        assert!(!grace.is_over(freed));
        drop(old);
        assert!(grace.is_over(freed));
        assert!(!grace.is_over(freed_later));
        drop(young);
        assert!(grace.is_over(freed_later));
    }

    #[test]
    fn later_requests_do_not_keep_it() {
        let grace = Grace::default();
        let freed = grace.now();
        assert!(grace.is_over(freed));
        let _later = grace.enter();
        assert!(grace.is_over(freed));
        assert!(!grace.is_over(grace.now()));
    }
}
