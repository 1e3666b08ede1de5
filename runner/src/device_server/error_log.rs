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
        if let Some(suppressed) = self.due(Instant::now()) {
            tracing::warn!(
                lun = name,
                error = error as &dyn std::error::Error,
                suppressed,
                "{action} failed"
            );
        }
    }

    /// Whether a line may be written at the time `now`, and how many were not before it.
    fn due(&self, now: Instant) -> Option<u64> {
        let last = self.last.get();
        if last.is_some_and(|last| now.duration_since(last) < INTERVAL) {
            self.suppressed.set(self.suppressed.get() + 1);
            return None;
        }
        self.last.set(Some(now));
        Some(self.suppressed.take())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_line_in_each_interval() {
        let log = ErrorLog::default();
        let start = Instant::now();
        assert_eq!(log.due(start), Some(0));
        assert_eq!(log.due(start), None);
        assert_eq!(log.due(start + INTERVAL / 2), None);
        assert_eq!(log.due(start + INTERVAL), Some(2));
        assert_eq!(log.due(start + INTERVAL), None);
    }
}
