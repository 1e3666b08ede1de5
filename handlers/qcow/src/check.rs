//! Counts what refers to each host cluster, and compares that with the refcounts.

use tcmu_handler::{ErrorKind, Extent, Result};

use crate::bitmap::Bitmap;
use crate::entry::{COPIED, Entry, OFFSET};
use crate::fault::refused;
use crate::header::Header;
use crate::refcounts;
use crate::snapshot::Snapshot;
use crate::storage::Storage;

/// More clusters are not counted: 4 TiB in clusters of 64 KiB.
const MOST: u64 = 64 << 20;
/// How many errors are described.
const DESCRIBED: usize = 20;

/// Something that an image can be read from.
pub(crate) trait Image {
    /// `len` bytes; zeroes behind the end.
    fn read(&self, len: usize, offset: u64) -> Result<Vec<u8>>;
    /// How many bytes there are.
    fn len(&self) -> Result<u64>;
    /// What errors call it.
    fn path(&self) -> &std::path::Path;
}

impl Image for Storage {
    fn read(&self, len: usize, offset: u64) -> Result<Vec<u8>> {
        Self::read(self, len, offset)
    }

    fn len(&self) -> Result<u64> {
        Self::len(self)
    }

    fn path(&self) -> &std::path::Path {
        &self.path
    }
}

/// What an image's tables say, apart from the header.
#[derive(Clone, Debug, Default)]
pub(crate) struct Contents {
    pub(crate) snapshots: Vec<Snapshot>,
    /// Bytes of the snapshot table.
    pub(crate) snapshot_table: u64,
    pub(crate) bitmaps: Vec<Bitmap>,
}

/// What a check has found.
#[derive(Debug, Default)]
pub(crate) struct Report {
    /// How often each host cluster is referred to.
    pub(crate) counts: Vec<u32>,
    /// Contradictions that refcounts cannot mend, the first of them in words.
    pub(crate) errors: u64,
    pub(crate) words: Vec<String>,
    /// Clusters with a refcount that is too low.
    pub(crate) too_low: u64,
    /// Clusters with a refcount that is too high: lost space, and nothing worse.
    pub(crate) leaks: u64,
}

impl Report {
    fn error(&mut self, words: impl FnOnce() -> String) {
        self.errors += 1;
        if self.words.len() < DESCRIBED {
            self.words.push(words());
        }
    }
}

/// Checks an image that nobody writes to.
pub(crate) fn check(image: &impl Image, header: &Header, contents: &Contents) -> Result<Report> {
    let clusters = image.len()?.div_ceil(header.layout.cluster_size());
    if clusters > MOST {
        return Err(refused(
            ErrorKind::Unsupported,
            image.path(),
            "the image is too large to be checked here; use `qemu-img check`",
        ));
    }
    let mut checker = Checker {
        image,
        header,
        report: Report {
            // The last cluster of a file may be missing, as a hole at its end.
            counts: vec![0; clusters as usize + 1],
            ..Report::default()
        },
        tables_left: (clusters + 1) * (1 + contents.snapshots.len() as u64),
    };
    checker.count_all(contents)?;
    let Extent { offset, len } = header.refcount_table();
    let table = checker.table(offset, len / 8)?;
    checker.count_refcounts(&table);
    checker.compare_refcounts(&table)?;
    checker.check_flags()?;
    Ok(checker.report)
}

struct Checker<'a, I> {
    image: &'a I,
    header: &'a Header,
    report: Report,
    /// How many L2 tables are read before it is clear that they are named more than once.
    tables_left: u64,
}

impl<I: Image> Checker<'_, I> {
    fn count_all(&mut self, contents: &Contents) -> Result<()> {
        let Header {
            l1_offset,
            l1_size,
            snapshots_offset,
            ..
        } = *self.header;
        self.count("the header", 0, 1);
        self.count_tables(l1_offset, l1_size)?;
        self.count(
            "the snapshot table",
            snapshots_offset,
            contents.snapshot_table,
        );
        for snapshot in &contents.snapshots {
            self.count_tables(snapshot.l1_offset, snapshot.l1_size)?;
        }
        let Some(directory) = self.header.bitmaps else {
            return Ok(());
        };
        self.count("the bitmaps", directory.offset, directory.size);
        for bitmap in &contents.bitmaps {
            let size = u64::from(bitmap.table_size);
            self.count("a bitmap's table", bitmap.table_offset, size * 8);
            for entry in self.table(bitmap.table_offset, size.min(1 << 22))? {
                if entry & OFFSET != 0 {
                    self.count("a bitmap", entry & OFFSET, 1);
                }
            }
        }
        Ok(())
    }

    fn count_tables(&mut self, offset: u64, entries: u32) -> Result<()> {
        let layout = self.header.layout;
        self.count("an L1 table", offset, u64::from(entries) * 8);
        for l1 in self.table(offset, entries.into())? {
            let host = l1 & OFFSET;
            if host == 0 {
                continue;
            }
            self.count("an L2 table", host, layout.cluster_size());
            if !host.is_multiple_of(layout.cluster_size()) || !self.may_read_table() {
                self.report
                    .error(|| format!("the L2 table at {host:#x} is not possible"));
                continue;
            }
            for entry in self.entries(host)? {
                match entry.keeps(&layout) {
                    Ok(Some((offset, len))) => self.count("data", offset, len),
                    Ok(None) => {}
                    Err(corrupt) => self.report.error(|| corrupt.0.into()),
                }
            }
        }
        Ok(())
    }

    fn may_read_table(&mut self) -> bool {
        self.tables_left = self.tables_left.saturating_sub(1);
        self.tables_left != 0
    }

    fn count(&mut self, what: &str, offset: u64, len: u64) {
        if len == 0 {
            return;
        }
        let bits = self.header.layout.cluster_bits;
        for cluster in offset >> bits..=offset.saturating_add(len - 1) >> bits {
            match self.report.counts.get_mut(cluster as usize) {
                Some(count) => *count = count.saturating_add(1),
                None => {
                    self.report
                        .error(|| format!("{what} at {offset:#x} lies behind the end of the file"));
                    return;
                }
            }
        }
    }

    fn count_refcounts(&mut self, table: &[u64]) {
        let Header {
            layout,
            reftable_offset,
            ..
        } = *self.header;
        let len = table.len() as u64 * 8;
        self.count("the refcount table", reftable_offset, len);
        for block in table.iter().filter(|block| **block != 0) {
            self.count("a refcount block", *block, layout.cluster_size());
            if block % layout.cluster_size() != 0 {
                self.report
                    .error(|| format!("a refcount block at {block:#x} is not aligned"));
            }
        }
    }

    fn compare_refcounts(&mut self, table: &[u64]) -> Result<()> {
        let Header {
            layout,
            refcount_order: order,
            ..
        } = *self.header;
        let per_block = (layout.cluster_size() * 8) >> order;
        let in_file = self.report.counts.len() as u64;
        for (index, block) in (0..).zip(table) {
            let first = index * per_block;
            if *block == 0 && first >= in_file {
                continue;
            }
            let bytes = match block {
                0 => Vec::new(),
                block => self.image.read(layout.cluster_size() as usize, *block)?,
            };
            for place in 0..per_block {
                let cluster = first + place;
                let stored = refcounts::get(&bytes, order, place);
                let counted = self.report.counts.get(cluster as usize).copied();
                let counted = u64::from(counted.unwrap_or(0));
                if stored < counted {
                    self.report.too_low += 1;
                    if self.report.words.len() < DESCRIBED {
                        self.report.words.push(format!(
                            "cluster {cluster} has the refcount {stored} and {counted} references"
                        ));
                    }
                } else if stored > counted {
                    self.report.leaks += 1;
                }
            }
        }
        let covered = table.len() as u64 * per_block;
        let uncovered = self.report.counts.iter().skip(covered as usize);
        self.report.too_low += uncovered.filter(|count| **count != 0).count() as u64;
        Ok(())
    }

    /// Active entries say of what they refer to whether its refcount is one.
    fn check_flags(&mut self) -> Result<()> {
        let layout = self.header.layout;
        for l1 in self.table(self.header.l1_offset, self.header.l1_size.into())? {
            let host = l1 & OFFSET;
            if host == 0 || !host.is_multiple_of(layout.cluster_size()) {
                continue;
            }
            self.check_flag("an L2 table", host, l1);
            if !self.may_read_table() && !self.report.words.is_empty() {
                return Ok(());
            }
            for entry in self.entries(host)? {
                if let Ok(Some(data)) = entry.host(&layout)
                    && !layout.external
                {
                    self.check_flag("data", data, entry.word);
                }
            }
        }
        Ok(())
    }

    fn check_flag(&mut self, what: &str, host: u64, word: u64) {
        let cluster = host >> self.header.layout.cluster_bits;
        let count = self.report.counts.get(cluster as usize).copied();
        let single = count == Some(1);
        if single != (word & COPIED != 0) {
            self.report.error(|| {
                format!("{what} at {host:#x} has {count:?} references and the entry {word:#x}")
            });
        }
    }

    fn entries(&self, table: u64) -> Result<Vec<Entry>> {
        let layout = &self.header.layout;
        let words = self.table(table, layout.cluster_size() / 8)?;
        let entries = words.chunks_exact(layout.entry_words());
        Ok(entries
            .map(|words| Entry {
                word: words[0],
                bitmap: words.get(1).copied().unwrap_or(0),
            })
            .collect())
    }

    fn table(&self, offset: u64, entries: u64) -> Result<Vec<u64>> {
        let bytes = self.image.read(entries as usize * 8, offset)?;
        let words = bytes.as_chunks::<8>().0.iter();
        Ok(words.map(|word| u64::from_be_bytes(*word)).collect())
    }
}
