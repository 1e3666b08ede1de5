//! What a server that ends may take with it.
//!
//! A server may keep in its own memory what it has acknowledged, until it is told to flush. When a
//! connection ends, nobody can say whether the server has ended too; and if it has, what it had kept
//! is gone. So if anything was acknowledged since the last flush, the next flush fails: those who wait
//! for it hear, as they would of a disk, that their data may not be there. It fails once, because from
//! then on the new server's flushes say the truth again.

use std::cell::Cell;

/// Counts changes of the export, and their losses.
#[derive(Debug, Default)]
pub(crate) struct Unflushed {
    /// Changes that the server has acknowledged, apart from those that were durable at once.
    changes: Cell<u64>,
    /// How many of them are durable, or known to be lost.
    settled: Cell<u64>,
    /// How often changes may have been lost.
    losses: Cell<u64>,
    /// How many of these losses a flush has told.
    told: Cell<u64>,
}

/// A flush that is under way.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Flush {
    changes: u64,
    told: u64,
}

impl Unflushed {
    /// The counter of acknowledged changes.
    pub(crate) fn changes(&self) -> &Cell<u64> {
        &self.changes
    }

    /// Whether there is anything to flush.
    pub(crate) fn is_any(&self) -> bool {
        self.changes.get() > self.settled.get() || self.losses.get() > self.told.get()
    }

    /// A connection has ended. Returns whether changes may be lost.
    pub(crate) fn connection_lost(&self) -> bool {
        let any = self.changes.get() > self.settled.get();
        if any {
            self.settled.set(self.changes.get());
            self.losses.set(self.losses.get() + 1);
        }
        any
    }

    /// A flush begins.
    pub(crate) fn begin(&self) -> Flush {
        Flush {
            changes: self.changes.get(),
            told: self.told.get(),
        }
    }

    /// The server has done a flush. Returns whether all that it is to cover is durable.
    pub(crate) fn done(&self, flush: Flush) -> bool {
        self.settled.set(self.settled.get().max(flush.changes));
        let losses = self.losses.get();
        self.told.set(losses);
        losses == flush.told
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn change(unflushed: &Unflushed) {
        let changes = unflushed.changes();
        changes.set(changes.get() + 1);
    }

    #[test]
    fn each_flush_that_should_have_covered_what_is_lost_fails() {
        let unflushed = Unflushed::default();
        assert!(!unflushed.connection_lost());
        change(&unflushed);
        let (first, second) = (unflushed.begin(), unflushed.begin());
        assert!(unflushed.connection_lost());
        assert!(!unflushed.connection_lost(), "nothing new was lost");
        assert!(!unflushed.done(first));
        assert!(!unflushed.done(second));
        let third = unflushed.begin();
        assert!(unflushed.done(third));
        assert!(!unflushed.is_any());
    }

    #[test]
    fn a_loss_waits_for_the_flush() {
        let unflushed = Unflushed::default();
        change(&unflushed);
        let flush = unflushed.begin();
        change(&unflushed);
        assert!(unflushed.done(flush));
        assert!(unflushed.is_any(), "the second came after the flush began");
        assert!(unflushed.connection_lost());
        change(&unflushed);
        assert!(unflushed.is_any());
        let flush = unflushed.begin();
        assert!(!unflushed.done(flush));
        assert!(!unflushed.is_any());
    }
}
