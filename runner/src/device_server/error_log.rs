//! Says in the log what failed, without flooding it.

use std::cell::Cell;
use std::time::{Duration, Instant};

use tcmu_handler::Error;

/// A dying disk fails thousands of commands a second: one line each this often is enough.
const INTERVAL: Duration = Duration::from_secs(1);

/// The errors of one logical unit's backstore.
#[derive(Debug, Default)]
pub(super) struct ErrorLog {
    last: Cell<Option<Instant>>,
    suppressed: Cell<u64>,
}

impl ErrorLog {
    /// Logs that `action` failed on the unit `name`, or counts it if a line was written just now.
    pub(super) fn report(&self, name: &str, action: &str, error: &Error) {
        let now = Instant::now();
        if self
            .last
            .get()
            .is_some_and(|last| now.duration_since(last) < INTERVAL)
        {
            self.suppressed.set(self.suppressed.get() + 1);
            return;
        }
        self.last.set(Some(now));
        tracing::warn!(
            lun = name,
            error = error as &dyn std::error::Error,
            suppressed = self.suppressed.take(),
            "{action} failed"
        );
    }
}
