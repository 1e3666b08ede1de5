//! The arithmetic of an image: clusters, subclusters, tables.

/// log2 of the largest part of a table that is read and written at once, in bytes.
const SLICE_BITS: u32 = 12;

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

    /// log2 of the bytes that one state of an L2 entry covers: a subcluster, or the cluster.
    const fn sub_bits(&self) -> u32 {
        if self.extended {
            self.cluster_bits - 5
        } else {
            self.cluster_bits
        }
    }

    /// Bytes of what one state of an L2 entry covers: a subcluster, or the cluster.
    pub(crate) const fn sub_size(&self) -> u64 {
        1 << self.sub_bits()
    }

    /// Which of its cluster's subclusters a byte lies in; always 0 without subclusters.
    pub(crate) const fn sub_of(&self, offset: u64) -> u64 {
        (offset & (self.cluster_size() - 1)) >> self.sub_bits()
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

    /// Which L2 table describes a byte: its index in the L1 table.
    pub(crate) const fn table_of(&self, offset: u64) -> u64 {
        offset >> (self.table_bits() + self.cluster_bits)
    }

    /// The first byte that another L2 table describes.
    pub(crate) const fn table_end(&self, offset: u64) -> u64 {
        (offset | (self.table_span() - 1)).saturating_add(1)
    }

    const fn slice_bits(&self) -> u32 {
        if self.cluster_bits < SLICE_BITS {
            self.cluster_bits
        } else {
            SLICE_BITS
        }
    }

    /// Bytes of a slice, the part of a metadata table that is cached and written as a whole.
    pub(crate) const fn slice_size(&self) -> u64 {
        1 << self.slice_bits()
    }

    const fn slice_entry_bits(&self) -> u32 {
        self.slice_bits() - if self.extended { 4 } else { 3 }
    }

    /// L2 entries in a slice.
    pub(crate) const fn slice_entries(&self) -> u64 {
        1 << self.slice_entry_bits()
    }

    /// Guest bytes that a slice of an L2 table describes.
    pub(crate) const fn slice_span(&self) -> u64 {
        self.slice_entries() << self.cluster_bits
    }

    /// Which slice describes a byte, counted over the whole virtual disk.
    pub(crate) const fn slice_of(&self, offset: u64) -> u64 {
        offset >> (self.slice_entry_bits() + self.cluster_bits)
    }

    /// The first byte that another slice describes.
    pub(crate) const fn slice_end(&self, offset: u64) -> u64 {
        (offset | (self.slice_span() - 1)).saturating_add(1)
    }

    /// Where in its L2 table a slice lies, in bytes.
    pub(crate) const fn slice_within(&self, number: u64) -> u64 {
        let per_table = self.table_bits() - self.slice_entry_bits();
        (number & ((1 << per_table) - 1)) << self.slice_bits()
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
        assert_eq!(small.slice_within(77), 0);
    }

    #[test]
    fn shifts_are_divisions() {
        for (cluster_bits, extended) in
            [(9, false), (12, false), (16, false), (16, true), (21, true)]
        {
            let layout = Layout {
                version: 3,
                cluster_bits,
                extended,
                external: false,
            };
            for offset in [
                0,
                511,
                1 << 20,
                (1 << 40) + 77_777,
                u64::MAX - (1 << 50),
                u64::MAX,
            ] {
                let (slice, table) = (layout.slice_span(), layout.table_span());
                let number = layout.slice_of(offset);
                assert_eq!(number, offset / slice);
                assert_eq!(layout.table_of(offset), offset / table);
                let within = offset % table / slice * layout.slice_size();
                assert_eq!(layout.slice_within(number), within);
                let next = |span: u64| (offset / span + 1).saturating_mul(span);
                assert_eq!(layout.slice_end(offset), next(slice));
                assert_eq!(layout.table_end(offset), next(table));
                let sub = offset % layout.cluster_size() / layout.sub_size();
                assert_eq!(layout.sub_of(offset), sub);
            }
        }
    }
}
