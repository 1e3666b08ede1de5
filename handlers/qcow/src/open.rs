//! From a configuration to an open image.
//!
//! Nothing is written before everything has been looked at: an image that is refused stays as it
//! is.

use std::cell::Cell;
use std::path::Path;

use tcmu_handler::{
    Capabilities, Config, DataAccess, Error, ErrorKind, Extent, Fua, OpenRequest, Result, Unmap,
};

use crate::allocator::Allocator;
use crate::bitmap::{self, Bitmap};
use crate::bounds::Bounds;
use crate::chain;
use crate::compress::Unpacker;
use crate::create::{check_backing, create};
use crate::disk::{Disk, SECTOR};
use crate::fault::{invalid, refused};
use crate::header::{Header, autoclear, field, incompatible};
use crate::image::{QcowImage, Writer, out_of_range};
use crate::layer::Layer;
use crate::lock::Claim;
use crate::mapping::Mapping;
use crate::options::Options;
use crate::range_lock::RangeLocks;
use crate::refcounts::Refcounts;
use crate::repair::repair;
use crate::snapshot::{self, Snapshot};
use crate::storage::Storage;

/// The largest unit in which Linux's file systems keep data whole.
const PAGE: u32 = 4096;

/// Says whether an image could be opened, without changing anything.
pub(crate) fn check(options: &Options) -> Result<()> {
    if let Some(how) = &options.create
        && !options.path.exists()
    {
        check_backing(&options.path, how, &options.config)?;
        let parent = options.path.parent().unwrap_or(Path::new("/"));
        let access = rustix::fs::Access::WRITE_OK | rustix::fs::Access::EXEC_OK;
        return rustix::fs::access(parent, access).map_err(|errno| {
            Error::os(
                format!("cannot create {}", options.path.display()),
                errno.into(),
            )
        });
    }
    Looked::at(options).map(drop)
}

/// Opens an image, or makes it.
pub(crate) fn open(options: &Options, request: &OpenRequest) -> Result<QcowImage> {
    if let Some(how) = &options.create {
        create(&options.path, how, request.size, &options.config)?;
    }
    let looked = Looked::at(options)?;
    let size = looked.size();
    if size < request.size {
        let error = out_of_range(&options.path, size, request.size);
        return Err(if options.snapshot.is_some() {
            error
        } else {
            Error::new(
                ErrorKind::OutOfRange,
                format!(
                    "{error}; `qemu-img resize {} {}` makes it larger",
                    options.path.display(),
                    request.size
                ),
            )
        });
    }
    looked.open()
}

/// An image that has been found good, and not been changed yet.
struct Looked {
    storage: Storage,
    data: Option<Storage>,
    header: Header,
    sector: Vec<u8>,
    snapshots: Vec<Snapshot>,
    bitmaps: Vec<Bitmap>,
    backing: Vec<crate::layer::Backing>,
    /// The refcount table, if the image is to be written.
    refcounts: Option<Vec<u64>>,
    shown: Option<Snapshot>,
}

impl Looked {
    fn at(options: &Options) -> Result<Self> {
        let path = &options.path;
        let claim = if options.read_only {
            Claim::Read
        } else {
            Claim::Write
        };
        let storage = Storage::open(path, claim)?;
        let (header, sector) = read_header(&storage)?;
        let writes = !options.read_only;
        if header.incompatible & incompatible::CORRUPT != 0 && writes {
            return Err(corrupt(path));
        }
        if writes && storage.is_device {
            return Err(refused(
                ErrorKind::Unsupported,
                path,
                "an image on a block device is only served with readonly=on",
            ));
        }
        let (snapshots, _) = snapshot::read(&storage, &header)?;
        let shown = match &options.snapshot {
            None => None,
            Some(wanted) => Some(find(&snapshots, wanted, path)?),
        };
        let bitmaps = bitmap::read(&storage, &header)?;
        let data = open_data_file(path, &header, claim, &options.config)?;
        let refcounts = if writes {
            check_ends(&storage, &header)?;
            let Extent { offset, len } = header.refcount_table();
            Some(read_table(&storage, offset, len / 8)?)
        } else {
            None
        };
        let backing = chain::open(&storage, &header, &options.config)?;
        Ok(Self {
            storage,
            data,
            header,
            sector,
            snapshots,
            bitmaps,
            backing,
            refcounts,
            shown,
        })
    }

    fn size(&self) -> u64 {
        let size = self
            .shown
            .as_ref()
            .map_or(self.header.size, |snapshot| snapshot.size);
        usable_size(size)
    }

    /// Makes the image ready for writing, and assembles its parts.
    fn open(mut self) -> Result<QcowImage> {
        let size = self.size();
        let layout = self.header.layout;
        let (mut writer, mut bounds) = (None, Bounds::nothing());
        if let Some(table) = self.refcounts.take() {
            self.prepare()?;
            let refcount_table = self.header.refcount_table();
            let order = self.header.refcount_order;
            let refcounts = Refcounts::new(layout, order, table, refcount_table.offset);
            let len = self.storage.len()?;
            bounds = Bounds::new(layout.cluster_size(), len, self.header.l1(), refcount_table);
            writer = Some(Writer {
                allocator: Allocator::new(layout, refcounts, len),
                changing: RangeLocks::default(),
            });
        }
        let capabilities = Capabilities {
            block_size: SECTOR as u32,
            physical_block_size: PAGE,
            optimal_io_size: layout.cluster_size() as u32,
            read_only: writer.is_none(),
            volatile_cache: writer.is_some(),
            fua: Fua::Native,
            unmap: writer.is_some().then_some(Unmap {
                granularity: layout.cluster_size(),
                reads_zeroes: true,
            }),
            write_zeroes: writer.is_some(),
            data_access: DataAccess::Bytes,
            ..Capabilities::new(size)
        };
        let mut top = layer_of(self.storage, self.data, &self.header, self.shown.as_ref())?;
        top.disk = Disk::for_writing(top.disk.storage, top.disk.data, self.sector, bounds);
        Ok(QcowImage {
            top,
            backing: self.backing,
            writer,
            capabilities: Cell::new(capabilities),
            header: self.header,
            snapshots: self.snapshots,
        })
    }

    /// The first writes to the image: what has to be true before any other.
    fn prepare(&mut self) -> Result<()> {
        let Self {
            storage,
            header,
            sector,
            ..
        } = self;
        if header.layout.version < 3 {
            return Ok(());
        }
        let before = sector.clone();
        if header.incompatible & incompatible::DIRTY != 0 {
            repair(storage, header)?;
            header.incompatible &= !incompatible::DIRTY;
            put(sector, field::INCOMPATIBLE, header.incompatible);
        }
        for (at, flags) in self.bitmaps.iter().filter_map(Bitmap::distrust) {
            storage.write(&flags, at)?;
        }
        header.autoclear &= autoclear::KNOWN;
        put(sector, field::AUTOCLEAR, header.autoclear);
        if *sector != before {
            storage.write(sector, 0)?;
        }
        storage.sync()
    }
}

fn put(sector: &mut [u8], at: usize, value: u64) {
    if let Some(place) = sector.get_mut(at..at + 8) {
        place.copy_from_slice(&value.to_be_bytes());
    }
}

/// The part of a disk's size that blocks of 512 bytes can show.
pub(crate) fn usable_size(size: u64) -> u64 {
    size - size % SECTOR as u64
}

/// Reads and checks the header; also returns its first sector.
pub(crate) fn read_header(storage: &Storage) -> Result<(Header, Vec<u8>)> {
    let mut start = vec![0; SECTOR];
    let len = storage.read_some(&mut start, 0)?;
    start.truncate(len);
    let mut bytes = vec![0; Header::wanted(&start).max(SECTOR)];
    let len = storage.read_some(&mut bytes, 0)?;
    bytes.truncate(len);
    let header = Header::parse(&bytes, &storage.path)?;
    bytes.resize(SECTOR, 0);
    Ok((header, bytes))
}

/// Opens the file that holds the guest's data, if it is another.
pub(crate) fn open_data_file(
    image: &Path,
    header: &Header,
    claim: Claim,
    config: &Config,
) -> Result<Option<Storage>> {
    match &header.data_file {
        Some(name) => {
            let path = chain::beside(image, name);
            config.check_path(&path)?;
            Storage::open(&path, claim).map(Some)
        }
        None => Ok(None),
    }
}

/// The tables of an image, or those of one of its snapshots.
pub(crate) fn layer_of(
    storage: Storage,
    data: Option<Storage>,
    header: &Header,
    shown: Option<&Snapshot>,
) -> Result<Layer> {
    let layout = header.layout;
    let (size, l1_offset, l1_size) = match shown {
        Some(snapshot) => (snapshot.size, snapshot.l1_offset, snapshot.l1_size),
        None => (header.size, header.l1_offset, header.l1_size),
    };
    let l1 = read_table(&storage, l1_offset, l1_size.into())?;
    Ok(Layer {
        disk: Disk::new(storage, data),
        mapping: Mapping::new(layout, size, l1, l1_offset),
        unpacker: Unpacker::new(header.compression, layout.cluster_size()),
    })
}

/// Reads a table whose length has been checked before.
pub(crate) fn read_table(storage: &Storage, offset: u64, entries: u64) -> Result<Vec<u64>> {
    let bytes = storage.read(entries as usize * 8, offset)?;
    let words = bytes.as_chunks::<8>().0.iter();
    Ok(words.map(|word| u64::from_be_bytes(*word)).collect())
}

/// Refuses to write to an image that has lost tables which the header names.
fn check_ends(storage: &Storage, header: &Header) -> Result<()> {
    let cluster = header.layout.cluster_size();
    let end = storage.len()?.div_ceil(cluster) * cluster;
    for (what, table) in [
        ("L1 table", header.l1()),
        ("refcount table", header.refcount_table()),
    ] {
        if table.len != 0 && table.end() > end {
            return Err(invalid(
                &storage.path,
                format!(
                    "the {what} lies behind the end of the file, which was cut off or damaged; \
                     readonly=on shows what there is"
                ),
            ));
        }
    }
    Ok(())
}

/// The image says of itself that it is corrupt.
pub(crate) fn corrupt(path: &Path) -> Error {
    invalid(
        path,
        "the image is marked as corrupt; `qemu-img check -r all` may repair it, and readonly=on \
         shows what there is",
    )
}

fn find(snapshots: &[Snapshot], wanted: &str, path: &Path) -> Result<Snapshot> {
    let by_name = snapshots.iter().find(|snapshot| snapshot.name == wanted);
    by_name
        .or_else(|| snapshots.iter().find(|snapshot| snapshot.id == wanted))
        .cloned()
        .ok_or_else(|| {
            refused(
                ErrorKind::NotFound,
                path,
                format!("no snapshot {wanted:?}: {}", snapshot::list(snapshots)),
            )
        })
}
