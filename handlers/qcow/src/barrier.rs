//! Flushes of the image, shared by all who wait for one.

use std::cell::Cell;

use tcmu_handler::{Error, ErrorKind, Io, Result};
use tokio::sync::Mutex;

use crate::fault::failed;
use crate::storage::Storage;

/// Counts flushes, and what they cover.
///
/// A flush that fails is remembered for good. Linux reports lost data once, and forgets them: no
/// later flush could promise anything about what was written before. So the metadata stay as they
/// are from then on, and every flush fails until the image is opened again.
#[derive(Debug, Default)]
pub(crate) struct Barrier {
    running: Mutex<()>,
    started: Cell<u64>,
    done: Cell<u64>,
    broken: Cell<bool>,
    /// Metadata writes that have completed, and how many of them are durable.
    written: Cell<u64>,
    durable: Cell<u64>,
}

/// Something that is durable from the next flush on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Mark(u64);

impl Mark {
    /// Of something that is durable already.
    pub(crate) const PAST: Self = Self(0);
}

impl Barrier {
    /// Notes that metadata have been written, and are not durable yet.
    pub(crate) fn wrote(&self) {
        self.written.set(self.written.get() + 1);
    }

    /// Whether all metadata that were written are durable.
    pub(crate) fn is_settled(&self) -> bool {
        self.durable.get() == self.written.get()
    }

    /// Marks what has been written so far.
    pub(crate) fn mark(&self) -> Mark {
        Mark(self.started.get() + 1)
    }

    /// Whether a flush that began after `mark` was made has succeeded.
    pub(crate) fn has_passed(&self, mark: Mark) -> bool {
        self.done.get() >= mark.0
    }

    /// Has everything fail that relies on the order of writes, as after a failed flush.
    pub(crate) fn give_up(&self) {
        self.broken.set(true);
    }

    /// An error if a flush has failed before.
    pub(crate) fn check(&self, storage: &Storage) -> Result<()> {
        if self.broken.get() {
            return Err(Error::new(
                ErrorKind::Write,
                format!(
                    "{}: writing or flushing metadata failed before, and written data may be lost; \
                     open the image again",
                    storage.path.display()
                ),
            ));
        }
        Ok(())
    }

    /// Makes everything durable that has been written before the call: first the external data
    /// file, where there is one.
    pub(crate) async fn pass(
        &self,
        io: &Io,
        storage: &Storage,
        data: Option<&Storage>,
    ) -> Result<()> {
        let mark = self.mark();
        let _running = self.running.lock().await;
        if self.has_passed(mark) {
            return Ok(());
        }
        self.check(storage)?;
        let number = self.started.get() + 1;
        self.started.set(number);
        let written = self.written.get();
        for storage in data.into_iter().chain([storage]) {
            if let Err(error) = io.sync(&storage.file).await {
                self.broken.set(true);
                return Err(failed(ErrorKind::Write, "flushing", &storage.path, error));
            }
        }
        self.done.set(number);
        self.durable.set(written);
        Ok(())
    }
}
