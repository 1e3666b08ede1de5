//! The log of commands that took long.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tcmu::scsi::{Status, opcode as op};

use crate::meter::Class;

/// When storage gets slow, all commands do: one line per LUN this often is enough.
const INTERVAL: Duration = Duration::from_secs(1);

const OFF: u64 = u64::MAX;

/// How long a command may take before it is logged. All reactors look at the same.
#[derive(Debug)]
pub(crate) struct SlowLimit(AtomicU64);

impl Default for SlowLimit {
    /// No command is too slow.
    fn default() -> Self {
        Self(AtomicU64::new(OFF))
    }
}

impl SlowLimit {
    /// Changes the limit; without one, nothing is logged.
    pub(crate) fn set(&self, limit: Option<Duration>) {
        let nanoseconds = limit.map(|limit| u64::try_from(limit.as_nanos()).unwrap_or(OFF));
        self.0.store(nanoseconds.unwrap_or(OFF), Ordering::Relaxed);
    }
}

/// A command that has ended.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ended<'a> {
    pub(crate) cdb: &'a [u8],
    pub(crate) status: Status,
    /// When it was fetched, and what time it is: the reactor's clock, in nanoseconds.
    pub(crate) since: u64,
    pub(crate) now: u64,
    /// How many other commands of the LUN are in flight.
    pub(crate) others: usize,
}

/// One LUN's log of slow commands.
#[derive(Debug)]
pub(crate) struct SlowLog {
    limit: Arc<SlowLimit>,
    /// When a line was written last.
    last: Option<u64>,
    /// How many were not written since.
    suppressed: u64,
}

impl SlowLog {
    pub(crate) fn new(limit: Arc<SlowLimit>) -> Self {
        Self {
            limit,
            last: None,
            suppressed: 0,
        }
    }

    /// Whether it has to be known how long commands take.
    #[inline]
    pub(crate) fn is_on(&self) -> bool {
        self.limit.0.load(Ordering::Relaxed) != OFF
    }

    /// Logs a command of the LUN `lun` if it was slow, unless that was said of another just now.
    /// Returns whether it was slow.
    pub(crate) fn look(&mut self, lun: &str, ended: &Ended<'_>) -> bool {
        let took = ended.now.saturating_sub(ended.since);
        if took < self.limit.0.load(Ordering::Relaxed) {
            return false;
        }
        let Some(suppressed) = self.due(ended.now) else {
            return true;
        };
        let took = Duration::from_nanos(took);
        let (lba, blocks) = extent(ended.cdb).unzip();
        let class = match Class::of(ended.cdb) {
            Class::Other => "command",
            class => class.name(),
        };
        tracing::warn!(
            lun,
            cdb = hex(ended.cdb),
            lba,
            blocks,
            milliseconds = took.as_millis() as u64,
            status = ?ended.status,
            in_flight = ended.others,
            suppressed,
            "slow: the backstore took {took:.3?} for a {class}"
        );
        true
    }

    /// Whether a line may be written now, and how many were not before it.
    fn due(&mut self, now: u64) -> Option<u64> {
        let interval = INTERVAL.as_nanos() as u64;
        if self.last.is_some_and(|last| now - last < interval) {
            self.suppressed += 1;
            return None;
        }
        self.last = Some(now);
        Some(std::mem::take(&mut self.suppressed))
    }
}

fn hex(cdb: &[u8]) -> String {
    let bytes: Vec<String> = cdb.iter().map(|byte| format!("{byte:02x}")).collect();
    bytes.join(" ")
}

/// The first block of a command and how many there are, where the CDB says so (SBC-3).
fn extent(cdb: &[u8]) -> Option<(u64, u32)> {
    let number = |at: usize, len: usize| {
        let bytes = cdb.get(at..at + len)?;
        Some(
            bytes
                .iter()
                .fold(0, |sum, &byte| sum << 8 | u64::from(byte)),
        )
    };
    let ((at, len), (count_at, count_len)) = match *cdb.first()? {
        op::READ_6 | op::WRITE_6 => {
            let lba = number(1, 3)? & 0x1f_ffff;
            let blocks = number(4, 1)? as u32;
            return Some((lba, if blocks == 0 { 256 } else { blocks }));
        }
        op::READ_10
        | op::WRITE_10
        | op::WRITE_AND_VERIFY_10
        | op::VERIFY_10
        | op::PRE_FETCH_10
        | op::SYNCHRONIZE_CACHE_10
        | op::WRITE_SAME_10 => ((2, 4), (7, 2)),
        op::READ_12 | op::WRITE_12 | op::WRITE_AND_VERIFY_12 => ((2, 4), (6, 4)),
        op::WRITE_ATOMIC_16 => ((2, 8), (12, 2)),
        op::COMPARE_AND_WRITE => ((2, 8), (13, 1)),
        op::READ_16
        | op::WRITE_16
        | op::ORWRITE_16
        | op::WRITE_AND_VERIFY_16
        | op::VERIFY_16
        | op::PRE_FETCH_16
        | op::SYNCHRONIZE_CACHE_16
        | op::WRITE_SAME_16 => ((2, 8), (10, 4)),
        op::VARIABLE_LENGTH => ((12, 8), (28, 4)),
        _ => return None,
    };
    Some((number(at, len)?, number(count_at, count_len)? as u32))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_line_in_each_interval() {
        let limit = Arc::new(SlowLimit::default());
        let mut log = SlowLog::new(Arc::clone(&limit));
        let cdb = [0x28, 0, 0, 0, 0, 7, 0, 0, 1, 0];
        let mut slow = |since, now| {
            let ended = Ended {
                cdb: &cdb,
                status: Status::Good,
                since,
                now,
                others: 3,
            };
            log.look("disk", &ended)
        };
        assert!(!slow(0, u64::MAX - 1), "it is off");
        limit.set(Some(Duration::from_millis(5)));
        assert!(!slow(0, 4_999_999));
        assert!(slow(0, 5_000_000));
        limit.set(None);
        assert!(!slow(0, 5_000_000));

        assert!(!log.is_on());
        let mut log = SlowLog::new(limit);
        let second = INTERVAL.as_nanos() as u64;
        assert_eq!(log.due(5), Some(0));
        assert_eq!(log.due(6), None);
        assert_eq!(log.due(4 + second), None);
        assert_eq!(log.due(5 + second), Some(2));
        assert_eq!(log.due(6 + second), None);
    }

    #[test]
    fn the_blocks_of_a_command_are_named() {
        let with = |opcode: u8, len: usize, fields: &[(usize, u8)]| {
            let mut cdb = vec![0; len];
            cdb[0] = opcode;
            for &(at, value) in fields {
                cdb[at] = value;
            }
            extent(&cdb)
        };
        assert_eq!(with(0x08, 6, &[(1, 0xff), (3, 2)]), Some((0x1f_0002, 256)));
        assert_eq!(
            with(0x2a, 10, &[(2, 1), (5, 2), (7, 3)]),
            Some((0x100_0002, 0x300))
        );
        assert_eq!(with(0xa8, 12, &[(5, 2), (9, 4)]), Some((2, 4)));
        assert_eq!(with(0x88, 16, &[(2, 1), (13, 4)]), Some((1 << 56, 4)));
        assert_eq!(with(0x89, 16, &[(9, 3), (13, 1)]), Some((3, 1)));
        assert_eq!(with(0x9c, 16, &[(9, 3), (11, 9), (13, 1)]), Some((3, 1)));
        assert_eq!(with(0x7f, 32, &[(7, 0x18), (19, 5), (31, 6)]), Some((5, 6)));
        assert_eq!(with(0x42, 10, &[(8, 24)]), None);
        assert_eq!(with(0x12, 6, &[(4, 96)]), None);
        assert_eq!(with(0x88, 10, &[]), None, "too short");
    }
}
