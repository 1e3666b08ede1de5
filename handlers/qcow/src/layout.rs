//! The arithmetic of an image: clusters, subclusters, tables.

/// The largest part of a table that is read and written at once, in bytes.
const SLICE: u64 = 4096;

/// How an image divides its space. Names follow the qcow2 specification.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Layout {
    /// 2 or 3.
    pub(crate) version: u32,
    /// log2 of the cluster size in bytes, 9 to 21.
    pub(crate) cluster_bits: u32,
    /// L2 entries have 16 bytes and describe 32 subclusters each.
    pub(crate) extended: bool,
    /// Guest data lie in another file, each cluster at its guest offset.
    pub(crate) external: bool,
}

impl Layout {
    /// Bytes of a cluster.
    pub(crate) const fn cluster_size(&self) -> u64 {
        1 << self.cluster_bits
    }

    /// Bytes of what one state of an L2 entry covers: a subcluster, or the cluster.
    pub(crate) const fn sub_size(&self) -> u64 {
        if self.extended {
            self.cluster_size() / 32
        } else {
            self.cluster_size()
        }
    }

    /// Words of 8 bytes in an L2 entry.
    pub(crate) const fn entry_words(&self) -> usize {
        if self.extended { 2 } else { 1 }
    }

    /// log2 of the number of entries of an L2 table.
    pub(crate) const fn table_bits(&self) -> u32 {
        self.cluster_bits - if self.extended { 4 } else { 3 }
    }

    /// Guest bytes that an L2 table describes.
    pub(crate) const fn table_span(&self) -> u64 {
        1 << (self.table_bits() + self.cluster_bits)
    }

    /// Bytes of a slice, the part of a metadata table that is cached and written as a whole.
    pub(crate) const fn slice_size(&self) -> u64 {
        if self.cluster_size() < SLICE {
            self.cluster_size()
        } else {
            SLICE
        }
    }

    /// L2 entries in a slice.
    pub(crate) const fn slice_entries(&self) -> u64 {
        self.slice_size() / (8 * self.entry_words() as u64)
    }

    /// Guest bytes that a slice of an L2 table describes.
    pub(crate) const fn slice_span(&self) -> u64 {
        self.slice_entries() << self.cluster_bits
    }

    /// Where the cluster of a byte begins.
    pub(crate) const fn cluster_start(&self, offset: u64) -> u64 {
        offset & !(self.cluster_size() - 1)
    }

    /// How many L1 entries an image of `size` bytes needs.
    pub(crate) const fn l1_entries(&self, size: u64) -> u64 {
        size.div_ceil(self.table_span())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_numbers_of_the_specification() {
        let plain = Layout {
            version: 3,
            cluster_bits: 16,
            extended: false,
            external: false,
        };
        assert_eq!(plain.table_span(), 512 << 20);
        assert_eq!(plain.slice_span(), 32 << 20);
        assert_eq!(plain.l1_entries((512 << 20) + 1), 2);
        let extended = Layout {
            extended: true,
            ..plain
        };
        assert_eq!(extended.table_span(), 256 << 20);
        assert_eq!(extended.sub_size(), 2048);
        let small = Layout {
            cluster_bits: 9,
            ..plain
        };
        assert_eq!(small.slice_size(), 512);
        assert_eq!(small.table_span(), small.slice_span());
    }
}
