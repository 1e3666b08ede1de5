//! A set of bytes, as ranges.

use std::collections::BTreeMap;

use tcmu_handler::Extent;

/// Ranges that neither overlap nor touch: their ends by their starts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Ranges(BTreeMap<u64, u64>);

impl Ranges {
    /// Adds the bytes of `extent`.
    pub(crate) fn insert(&mut self, extent: Extent) {
        let (mut start, mut end) = (extent.offset, extent.end());
        if start == end {
            return;
        }
        // Those that touch it too: they become one.
        while let Some((&first, &last)) = self.0.range(..=end).next_back()
            && last >= start
        {
            self.0.remove(&first);
            start = start.min(first);
            end = end.max(last);
        }
        self.0.insert(start, end);
    }

    /// Takes the bytes of `extent` out.
    pub(crate) fn remove(&mut self, extent: Extent) {
        let (start, end) = (extent.offset, extent.end());
        if start == end {
            return;
        }
        while let Some((&first, &last)) = self.0.range(..end).next_back()
            && last > start
        {
            self.0.remove(&first);
            if first < start {
                self.0.insert(first, start);
            }
            if last > end {
                self.0.insert(end, last);
            }
        }
    }

    /// The parts of `extent` in order, and whether they are in the set.
    pub(crate) fn parts(&self, extent: Extent) -> Vec<(Extent, bool)> {
        let mut parts = Vec::new();
        let mut offset = extent.offset;
        while offset < extent.end() {
            let before = self.0.range(..=offset).next_back();
            let (end, inside) = match before {
                Some((_, &last)) if last > offset => (last, true),
                _ => {
                    let after = self.0.range(offset..).next();
                    (after.map_or(u64::MAX, |(&first, _)| first), false)
                }
            };
            let len = end.min(extent.end()) - offset;
            parts.push((Extent { offset, len }, inside));
            offset += len;
        }
        parts
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tcmu_handler::testing::Random;

    #[test]
    fn is_a_set_of_bytes() {
        const SIZE: u64 = 64;
        let mut random = Random::new(5);
        let (mut ranges, mut model) = (Ranges::default(), [false; SIZE as usize]);
        for _ in 0..4000 {
            let offset = random.below(SIZE);
            let len = random.below(SIZE - offset + 1);
            let extent = Extent { offset, len };
            let inside = random.one_in(2);
            match inside {
                true => ranges.insert(extent),
                false => ranges.remove(extent),
            }
            model[offset as usize..(offset + len) as usize].fill(inside);
            let all = Extent {
                offset: 0,
                len: SIZE,
            };
            let parts = ranges.parts(all);
            let bytes: Vec<bool> = parts
                .iter()
                .flat_map(|(part, inside)| std::iter::repeat_n(*inside, part.len as usize))
                .collect();
            assert_eq!(bytes, model);
            assert!(
                parts.windows(2).all(|two| two[0].1 != two[1].1),
                "{parts:?}"
            );
        }
    }
}
