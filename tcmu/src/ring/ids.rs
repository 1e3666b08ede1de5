//! The ids of the commands in flight.

/// A set of command ids. The kernel hands out the lowest free id, so it stays small.
#[derive(Debug, Default)]
pub(super) struct InFlight {
    words: Vec<u64>,
    len: usize,
}

impl InFlight {
    /// False if the id is there already.
    pub(super) fn insert(&mut self, id: u16) -> bool {
        let (word, bit) = place(id);
        if word >= self.words.len() {
            self.words.resize(word + 1, 0);
        }
        let new = self.words[word] & bit == 0;
        self.words[word] |= bit;
        self.len += usize::from(new);
        new
    }

    pub(super) fn remove(&mut self, id: u16) {
        let (word, bit) = place(id);
        if let Some(word) = self.words.get_mut(word).filter(|word| **word & bit != 0) {
            *word &= !bit;
            self.len -= 1;
        }
    }

    pub(super) fn len(&self) -> usize {
        self.len
    }
}

fn place(id: u16) -> (usize, u64) {
    (usize::from(id / 64), 1 << (id % 64))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_each_id_once() {
        let mut ids = InFlight::default();
        assert!(ids.insert(1));
        assert!(ids.insert(65535));
        assert!(!ids.insert(1));
        assert_eq!(ids.len(), 2);
        ids.remove(2);
        ids.remove(65535);
        ids.remove(65535);
        assert_eq!(ids.len(), 1);
        assert!(ids.insert(65535));
    }
}
