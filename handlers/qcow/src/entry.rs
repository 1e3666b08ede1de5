//! Entries of L1 and L2 tables.

use crate::fault::Corrupt;
use crate::layout::Layout;

/// The refcount of what the entry points to is exactly one: it may be changed in place.
pub(crate) const COPIED: u64 = 1 << 63;
const COMPRESSED: u64 = 1 << 62;
const ZERO: u64 = 1;
/// The host offset in an entry.
pub(crate) const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;

/// All 32 subclusters, as one half of an extended entry's bitmap.
const ALL: u64 = 0xffff_ffff;

/// A compressed cluster's place in the image file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Compressed {
    /// Where it begins; any byte.
    pub(crate) offset: u64,
    /// How many bytes it has at the most.
    pub(crate) len: u64,
}

/// What a cluster or a subcluster of the guest holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    /// What the backing file has there, or zeroes.
    Unallocated,
    /// Zeroes.
    Zero,
    /// The bytes at a host offset, that of the state's first byte.
    Data {
        /// Where it begins.
        host: u64,
        /// Nothing else refers to it.
        owned: bool,
    },
    /// A whole cluster.
    Compressed(Compressed),
}

/// An L2 entry.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Entry {
    /// The first word.
    pub(crate) word: u64,
    /// The second word of extended entries: which subclusters are allocated (low half), and which
    /// read as zeroes (high half).
    pub(crate) bitmap: u64,
}

impl Entry {
    /// A whole cluster of zeroes with no storage; version 3 only.
    pub(crate) fn zero(layout: &Layout) -> Self {
        if layout.extended {
            Self {
                word: 0,
                bitmap: ALL << 32,
            }
        } else {
            Self {
                word: ZERO,
                bitmap: 0,
            }
        }
    }

    /// Whether the cluster is compressed.
    pub(crate) fn is_compressed(self) -> bool {
        self.word & COMPRESSED != 0
    }

    /// Where the compressed bytes lie.
    fn compressed(self, layout: &Layout) -> Compressed {
        let shift = 62 - (layout.cluster_bits - 8);
        let offset = self.word & ((1 << shift) - 1);
        let sectors = ((self.word & (COMPRESSED - 1)) >> shift) + 1;
        Compressed {
            offset,
            len: sectors * 512 - offset % 512,
        }
    }

    /// The host cluster that the entry refers to, compressed ones aside.
    pub(crate) fn host(self, layout: &Layout) -> Result<Option<u64>, Corrupt> {
        let host = self.word & OFFSET;
        if self.is_compressed() {
            return Ok(None);
        }
        if host & (layout.cluster_size() - 1) != 0 {
            return Err(Corrupt("a data cluster is not aligned"));
        }
        // With an external data file there is a cluster at 0, told by the flag.
        let present = host != 0 || (layout.external && self.word & COPIED != 0);
        Ok(present.then_some(host))
    }

    /// What the subcluster number `sub` holds (always 0 without subclusters).
    pub(crate) fn state(self, sub: u64, layout: &Layout) -> Result<State, Corrupt> {
        if self.is_compressed() {
            return if layout.external {
                Err(Corrupt("a compressed cluster with an external data file"))
            } else {
                Ok(State::Compressed(self.compressed(layout)))
            };
        }
        let host = self.host(layout)?;
        let (allocated, zero) = if layout.extended {
            (
                self.bitmap >> sub & 1 != 0,
                self.bitmap >> (32 + sub) & 1 != 0,
            )
        } else {
            let zero = self.word & ZERO != 0;
            if zero && layout.version < 3 {
                return Err(Corrupt("a zero cluster in an image of version 2"));
            }
            (host.is_some() && !zero, zero)
        };
        match (allocated, zero, host) {
            (true, true, _) => Err(Corrupt("a subcluster is allocated and zero at once")),
            (true, false, None) => Err(Corrupt("a subcluster is allocated, its cluster is not")),
            (true, false, Some(host)) => Ok(State::Data {
                host: host + sub * layout.sub_size(),
                owned: layout.external || self.word & COPIED != 0,
            }),
            (false, true, _) => Ok(State::Zero),
            (false, false, _) => Ok(State::Unallocated),
        }
    }

    /// The range of the image file that the entry keeps, in bytes: what is let go when the entry is
    /// replaced. Clusters of an external data file are not counted.
    pub(crate) fn keeps(self, layout: &Layout) -> Result<Option<(u64, u64)>, Corrupt> {
        if layout.external {
            return Ok(None);
        }
        if self.is_compressed() {
            let Compressed { offset, len } = self.compressed(layout);
            return Ok(Some((offset, len)));
        }
        Ok(self.host(layout)?.map(|host| (host, layout.cluster_size())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLAIN: Layout = Layout {
        version: 3,
        cluster_bits: 16,
        extended: false,
        external: false,
    };

    fn entry(word: u64, bitmap: u64) -> Entry {
        Entry { word, bitmap }
    }

    #[test]
    fn standard_entries() {
        let state = |word| entry(word, 0).state(0, &PLAIN);
        assert_eq!(state(0), Ok(State::Unallocated));
        assert_eq!(state(1), Ok(State::Zero));
        assert_eq!(state(0x5_0001), Ok(State::Zero));
        let shared = State::Data {
            host: 0x5_0000,
            owned: false,
        };
        assert_eq!(state(0x5_0000), Ok(shared));
        assert!(state(0x5_0200).is_err());
        let old = Layout {
            version: 2,
            ..PLAIN
        };
        assert!(entry(1, 0).state(0, &old).is_err());
    }

    #[test]
    fn compressed_entries() {
        // 16-bit clusters: 8 bits of sectors above 54 bits of offset.
        let word = COMPRESSED | 3 << 54 | 0x12_3456;
        assert_eq!(
            entry(word, 0).state(0, &PLAIN),
            Ok(State::Compressed(Compressed {
                offset: 0x12_3456,
                len: 4 * 512 - 0x56,
            }))
        );
    }

    #[test]
    fn extended_entries() {
        let layout = Layout {
            extended: true,
            ..PLAIN
        };
        let one = entry(COPIED | 0x5_0000, 0b10 | 0b100 << 32);
        assert_eq!(one.state(0, &layout), Ok(State::Unallocated));
        assert_eq!(
            one.state(1, &layout),
            Ok(State::Data {
                host: 0x5_0800,
                owned: true
            })
        );
        assert_eq!(one.state(2, &layout), Ok(State::Zero));
        assert!(entry(0x5_0000, 1 | 1 << 32).state(0, &layout).is_err());
        assert!(entry(0, 1).state(0, &layout).is_err());
        assert_eq!(Entry::zero(&layout).state(31, &layout), Ok(State::Zero));
    }
}
