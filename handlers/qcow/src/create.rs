//! New images.

use std::fs;
use std::path::Path;

use rustix::fs::{FallocateFlags, Mode, OFlags};
use tcmu_handler::{Config, Error, ErrorKind, Result};

use crate::chain;
use crate::entry::COPIED;
use crate::fault::{failed, refused};
use crate::header::{Backing, MAGIC, extension, incompatible};
use crate::layout::Layout;
use crate::lock::{Claim, lock};
use crate::options::{Create, Preallocation};
use crate::refcounts::{self, bytes_of};
use crate::storage::Storage;

/// Refcounts of 16 bits, as everybody uses them.
const ORDER: u32 = 4;
/// qemu's limits for the tables of an image.
const LARGEST_L1: u64 = (32 << 20) / 8;
const LARGEST_REFTABLE: u64 = 8 << 20;
/// A header of version 3 with the byte for the compression type.
const HEADER: u32 = 112;
const ZEROES: usize = 1 << 20;

/// Makes an image for a disk of `size` bytes at `path`, unless there is a file already.
pub(crate) fn create(path: &Path, how: &Create, size: u64, config: &Config) -> Result<()> {
    if path.exists() {
        return Ok(());
    }
    let plan = Plan::new(path, how, size)?;
    check_backing(path, how, config)?;
    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::RDWR | OFlags::CLOEXEC;
    let file = match rustix::fs::open(path, flags, Mode::RUSR | Mode::WUSR) {
        Ok(file) => file,
        Err(rustix::io::Errno::EXIST) => return Ok(()),
        Err(errno) => {
            return Err(Error::os(
                format!("cannot create {}", path.display()),
                errno.into(),
            ));
        }
    };
    let made = Storage::new(file, path).and_then(|storage| {
        lock(&*storage.file, path, Claim::Write)?;
        plan.write(&storage, how)
    });
    if made.is_err() {
        // Half an image is of no use to anybody, and the lock is held until here.
        let _ = fs::remove_file(path);
    }
    made
}

/// Says whether the image that is to lie below a new one can: before there is a new one, which nobody
/// could use.
pub(crate) fn check_backing(path: &Path, how: &Create, config: &Config) -> Result<()> {
    let Some((name, format)) = &how.backing else {
        return Ok(());
    };
    let backing = Backing {
        name: name.into(),
        format: Some(format.clone()),
    };
    chain::check(path, &backing, config)
}

/// Where everything lies in a new image, in clusters: one after the other.
struct Plan {
    layout: Layout,
    size: u64,
    l1_entries: u64,
    l1_clusters: u64,
    blocks: u64,
    table_clusters: u64,
    /// L2 tables and data clusters that exist from the beginning.
    tables: u64,
    data: u64,
}

impl Plan {
    fn new(path: &Path, how: &Create, size: u64) -> Result<Self> {
        let layout = Layout {
            version: 3,
            cluster_bits: how.cluster_bits,
            extended: how.extended,
            external: false,
        };
        let cluster = layout.cluster_size();
        let l1_entries = layout.l1_entries(size);
        let (tables, data) = match how.preallocation {
            Preallocation::Off => (0, 0),
            _ => (l1_entries, size.div_ceil(cluster)),
        };
        let mut plan = Self {
            layout,
            size,
            l1_entries,
            l1_clusters: (l1_entries * 8).div_ceil(cluster),
            blocks: 1,
            table_clusters: 1,
            tables,
            data,
        };
        let per_block = (cluster * 8) >> ORDER;
        loop {
            let blocks = plan.end().div_ceil(per_block);
            let table_clusters = (blocks * 8).div_ceil(cluster);
            if (blocks, table_clusters) == (plan.blocks, plan.table_clusters) {
                break;
            }
            (plan.blocks, plan.table_clusters) = (blocks, table_clusters);
        }
        if l1_entries > LARGEST_L1 || plan.table_clusters * cluster > LARGEST_REFTABLE.max(cluster)
        {
            return Err(refused(
                ErrorKind::InvalidConfig,
                path,
                format!("clusters of {cluster} bytes are too small for a disk of {size} bytes"),
            ));
        }
        Ok(plan)
    }

    fn blocks_at(&self) -> u64 {
        1 + self.table_clusters
    }

    fn l1_at(&self) -> u64 {
        self.blocks_at() + self.blocks
    }

    fn tables_at(&self) -> u64 {
        self.l1_at() + self.l1_clusters
    }

    fn data_at(&self) -> u64 {
        self.tables_at() + self.tables
    }

    fn end(&self) -> u64 {
        self.data_at() + self.data
    }

    fn offset(&self, cluster: u64) -> u64 {
        cluster << self.layout.cluster_bits
    }

    fn write(&self, storage: &Storage, how: &Create) -> Result<()> {
        let end = self.offset(self.end());
        rustix::fs::ftruncate(&*storage.file, end)
            .map_err(|errno| failed(ErrorKind::Write, "enlarging", &storage.path, errno.into()))?;
        let places = |first: u64, count: u64, flag: u64| {
            let places = (first..first + count).map(|cluster| self.offset(cluster) | flag);
            bytes_of(&places.collect::<Vec<_>>())
        };
        storage.write(&places(self.blocks_at(), self.blocks, 0), self.offset(1))?;
        self.write_refcounts(storage)?;
        storage.write(
            &places(self.tables_at(), self.tables, COPIED),
            self.offset(self.l1_at()),
        )?;
        let per_table = 1 << self.layout.table_bits();
        for table in 0..self.tables {
            let first = table * per_table;
            let count = per_table.min(self.data - first);
            let words = (0..count).flat_map(|place| {
                let host = self.offset(self.data_at() + first + place) | COPIED;
                let all_allocated = 0xffff_ffff;
                [host, all_allocated]
                    .into_iter()
                    .take(self.layout.entry_words())
            });
            let bytes = bytes_of(&words.collect::<Vec<_>>());
            storage.write(&bytes, self.offset(self.tables_at() + table))?;
        }
        self.allocate_data(storage, how.preallocation)?;
        storage.write(&self.header(how, &storage.path)?, 0)?;
        storage.sync()
    }

    fn write_refcounts(&self, storage: &Storage) -> Result<()> {
        let cluster = self.layout.cluster_size();
        let per_block = (cluster * 8) >> ORDER;
        for block in 0..self.blocks {
            let mut bytes = vec![0; cluster as usize];
            for place in 0..per_block.min(self.end() - block * per_block) {
                refcounts::set(&mut bytes, ORDER, place, 1);
            }
            storage.write(&bytes, self.offset(self.blocks_at() + block))?;
        }
        Ok(())
    }

    fn allocate_data(&self, storage: &Storage, preallocation: Preallocation) -> Result<()> {
        let (start, end) = (self.offset(self.data_at()), self.offset(self.end()));
        match preallocation {
            Preallocation::Falloc if end > start => {
                let mode = FallocateFlags::empty();
                rustix::fs::fallocate(&*storage.file, mode, start, end - start).map_err(|errno| {
                    failed(ErrorKind::Write, "allocating", &storage.path, errno.into())
                })
            }
            Preallocation::Full => {
                let zeroes = vec![0; ZEROES];
                let mut at = start;
                while at < end {
                    let len = (end - at).min(ZEROES as u64);
                    storage.write(&zeroes[..len as usize], at)?;
                    at += len;
                }
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// The header with its extensions, and the name of the image below.
    fn header(&self, how: &Create, path: &Path) -> Result<Vec<u8>> {
        let mut rest = Vec::new();
        if let Some((_, format)) = &how.backing {
            rest.extend(extension::BACKING_FORMAT.to_be_bytes());
            rest.extend((format.len() as u32).to_be_bytes());
            rest.extend(format.as_bytes());
            rest.resize(rest.len().next_multiple_of(8), 0);
        }
        rest.extend([0; 8]); // The end of the extensions.
        let name = how.backing.as_ref().map_or("", |(name, _)| name);
        let name_at = match name {
            "" => 0,
            _ => u64::from(HEADER) + rest.len() as u64,
        };
        rest.extend(name.as_bytes());
        let features = if how.extended {
            incompatible::EXTENDED_L2
        } else {
            0
        };
        let words = |values: &[u64]| bytes_of(values);
        let header = [
            MAGIC.to_be_bytes().to_vec(),
            3u32.to_be_bytes().to_vec(),
            words(&[name_at]),
            (name.len() as u32).to_be_bytes().to_vec(),
            self.layout.cluster_bits.to_be_bytes().to_vec(),
            words(&[self.size]),
            0u32.to_be_bytes().to_vec(), // Not encrypted.
            (self.l1_entries as u32).to_be_bytes().to_vec(),
            words(&[self.offset(self.l1_at()), self.offset(1)]),
            (self.table_clusters as u32).to_be_bytes().to_vec(),
            0u32.to_be_bytes().to_vec(), // No snapshots.
            words(&[0, features, 0, 0]),
            ORDER.to_be_bytes().to_vec(),
            HEADER.to_be_bytes().to_vec(),
            vec![0; 8], // Compressed clusters would be zlib.
            rest,
        ]
        .concat();
        if name.len() > 1023 || header.len() as u64 > self.layout.cluster_size() {
            return Err(refused(
                ErrorKind::InvalidConfig,
                path,
                "the backing file's path is too long for the header",
            ));
        }
        Ok(header)
    }
}
