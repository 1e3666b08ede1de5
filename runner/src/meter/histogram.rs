//! How long commands took: a log-linear histogram, as HdrHistogram's.
//!
//! Each power of two is divided into [`STEPS`] buckets of the same width, so that a figure taken from
//! a bucket is at most 1/16 off. All buckets are there from the start: counting one more is an index
//! out of the time's leading zeros, and one store.

use std::sync::atomic::{AtomicU64, Ordering};

/// The narrowest bucket: 2^8 = 256 ns.
const UNIT_BITS: u32 = 8;
/// 2^38 ns are 275 s: what takes longer counts in the last bucket.
const LIMIT_BITS: u32 = 38;
const STEP_BITS: u32 = 4;
/// How many buckets a power of two has.
const STEPS: usize = 1 << STEP_BITS;
/// The first [`STEPS`] are below the first power of two that is divided.
const BUCKETS: usize = STEPS * (LIMIT_BITS - UNIT_BITS - STEP_BITS + 1) as usize;

/// Counts of times, with one writer.
#[derive(Debug)]
pub(super) struct Histogram([AtomicU64; BUCKETS]);

impl Default for Histogram {
    fn default() -> Self {
        Self([const { AtomicU64::new(0) }; BUCKETS])
    }
}

impl Histogram {
    /// Counts a time in nanoseconds.
    #[inline]
    pub(super) fn count(&self, nanoseconds: u64) {
        super::add(&self.0[index(nanoseconds)], 1);
    }

    /// The buckets that are not empty.
    pub(super) fn read(&self) -> Vec<Bucket> {
        let counts = self.0.iter().map(|count| count.load(Ordering::Relaxed));
        let buckets = counts.enumerate().map(|(index, count)| Bucket {
            limit: start(index + 1),
            count,
        });
        buckets.filter(|bucket| bucket.count > 0).collect()
    }
}

/// Commands that took about as long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Bucket {
    /// In nanoseconds: they took less. Those of the last bucket, 2^38, may have taken longer.
    pub(crate) limit: u64,
    /// How many they are.
    pub(crate) count: u64,
}

/// The bucket of a time in nanoseconds.
#[inline]
fn index(nanoseconds: u64) -> usize {
    let units = nanoseconds >> UNIT_BITS;
    // Below the first power of two that is divided, buckets are as wide as there.
    let shift = (units | STEPS as u64).ilog2() - STEP_BITS;
    let index = shift as usize * STEPS + (units >> shift) as usize;
    index.min(BUCKETS - 1)
}

/// The shortest time of a bucket, in nanoseconds.
fn start(index: usize) -> u64 {
    let shift = (index / STEPS).saturating_sub(1);
    ((index - shift * STEPS) as u64) << shift << UNIT_BITS
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn buckets_follow_each_other() {
        assert_eq!(start(0), 0);
        for bucket in 0..BUCKETS {
            assert!(start(bucket) < start(bucket + 1), "{bucket}");
            assert_eq!(index(start(bucket)), bucket);
            assert_eq!(index(start(bucket + 1) - 1), bucket);
        }
        assert_eq!(start(BUCKETS), 1 << LIMIT_BITS);
        assert_eq!(index(u64::MAX), BUCKETS - 1);
    }

    #[test]
    fn powers_of_two_are_limits() {
        for bits in UNIT_BITS..=LIMIT_BITS {
            let limit = 1 << bits;
            assert!((0..=BUCKETS).any(|index| start(index) == limit), "{bits}");
        }
    }

    #[test]
    fn counts_are_read_back() {
        let histogram = Histogram::default();
        assert_eq!(histogram.read(), []);
        for nanoseconds in [0, 255, 256, 100_000, 100_001, u64::MAX] {
            histogram.count(nanoseconds);
        }
        let buckets: Vec<(u64, u64)> = histogram
            .read()
            .iter()
            .map(|bucket| (bucket.limit, bucket.count))
            .collect();
        assert_eq!(buckets, [(256, 2), (512, 1), (102_400, 2), (1 << 38, 1)]);
    }

    proptest! {
        #[test]
        fn a_bucket_is_narrow(nanoseconds in 4096_u64..1 << LIMIT_BITS) {
            let bucket = index(nanoseconds);
            let (from, to) = (start(bucket), start(bucket + 1));
            prop_assert!((from..to).contains(&nanoseconds));
            prop_assert!((to - from) * STEPS as u64 <= from, "{from} to {to}");
        }
    }
}
