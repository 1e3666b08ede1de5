//! Which bytes of a read have come.

use crate::reply::Malformed;

/// More separate pieces than this are no server's way to answer.
const MAX_PIECES: usize = 1024;

/// The bytes that have come: pieces in order, none touching another.
#[derive(Debug, Default)]
pub(crate) struct Coverage(Vec<(u32, u32)>);

impl Coverage {
    pub(crate) fn clear(&mut self) {
        self.0.clear();
    }

    /// Adds `len` bytes from `at` on, none of which may have come before; returns `at`.
    pub(crate) fn add(&mut self, at: u32, len: u32) -> Result<usize, Malformed> {
        let end = at.checked_add(len).filter(|_| len > 0);
        let end = end.ok_or(Malformed("data of an impossible length"))?;
        let place = self.0.partition_point(|(start, _)| *start < at);
        let before = place.checked_sub(1).map(|before| self.0[before]);
        let after = self.0.get(place).copied();
        if before.is_some_and(|(_, last)| last > at) || after.is_some_and(|(next, _)| next < end) {
            return Err(Malformed("the same data twice"));
        }
        let joins_before = before.is_some_and(|(_, last)| last == at);
        let joins_after = after.is_some_and(|(next, _)| next == end);
        match (joins_before, joins_after) {
            (true, true) => {
                self.0[place - 1].1 = self.0[place].1;
                self.0.remove(place);
            }
            (true, false) => self.0[place - 1].1 = end,
            (false, true) => self.0[place].0 = at,
            (false, false) if self.0.len() < MAX_PIECES => self.0.insert(place, (at, end)),
            (false, false) => return Err(Malformed("a reply in too many pieces")),
        }
        Ok(at as usize)
    }

    /// Whether all of the first `len` bytes have come.
    pub(crate) fn is_whole(&self, len: u32) -> bool {
        self.0 == [(0, len)]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_in_any_order_make_the_whole_once() {
        let pieces = [(0, 3), (3, 4), (7, 1), (8, 8)];
        let orders = [[0, 1, 2, 3], [3, 2, 1, 0], [0, 2, 1, 3], [2, 0, 3, 1]];
        for order in orders {
            let mut coverage = Coverage::default();
            for index in order {
                assert!(!coverage.is_whole(16));
                let (at, len) = pieces[index];
                assert_eq!(coverage.add(at, len), Ok(at as usize));
                for (other, other_len) in [(at, 1), (at + len - 1, 1), (0, 16), (0, at + 1)] {
                    assert!(
                        coverage.add(other, other_len).is_err(),
                        "{other} {other_len}"
                    );
                }
            }
            assert!(coverage.is_whole(16));
            assert_eq!(coverage.0.len(), 1);
        }
    }

    #[test]
    fn impossible_and_countless_pieces_are_refused() {
        let mut coverage = Coverage::default();
        assert!(coverage.add(0, 0).is_err());
        assert!(coverage.add(u32::MAX, 1).is_err());
        let mut number = 0;
        while coverage.add(number * 2, 1).is_ok() {
            number += 1;
        }
        assert_eq!(number as usize, MAX_PIECES);
    }
}
