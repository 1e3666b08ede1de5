//! Maps whose keys count something: slices, parts of refcount blocks.
//!
//! The standard hasher keeps strangers from choosing keys that collide, at a price that every read
//! and write would pay. Here a guest could choose, but the maps are bounded caches: the worst that it
//! reaches is a search through one of them.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

/// A map from small numbers.
pub(crate) type NumberMap<T> = HashMap<u64, T, BuildHasherDefault<Spread>>;

/// 2^64 divided by the golden ratio: neighbours come to lie far apart.
const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;

/// Hashes one number.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Spread(u64);

impl Hasher for Spread {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u64((*byte).into());
        }
    }

    fn write_u64(&mut self, number: u64) {
        // The map looks at the lowest bits first, and the product's highest know most of the number.
        self.0 = (self.0 ^ number).wrapping_mul(GOLDEN).rotate_left(26);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn numbers_in_a_row_and_with_gaps_spread() {
        for step in [1, 16, 1 << 12, 1 << 32] {
            let places: HashSet<u64> = (0..4096)
                .map(|number: u64| {
                    let mut hasher = Spread::default();
                    hasher.write_u64(number * step);
                    hasher.finish() & 0xfff
                })
                .collect();
            // Thrown at random, they would meet 2589 of the places.
            assert!(places.len() > 1500, "{step}: {} places", places.len());
        }
    }
}
