//! The contract's tests: a handler that keeps it, and one that breaks each rule.

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use rustix::fs::FallocateFlags;
use tcmu_handler::testing::{Contract, Kept, Rule};
use tcmu_handler::{
    Backstore, BlockStatus, Blocking, BlockingBackstore, Buffer, Capabilities, Comparison, Config,
    Error, ErrorKind, Extent, File, Fua, Handler, Io, OpenRequest, Result, Unmap, WriteFlags,
    ZeroFlags,
};
use tokio::sync::Mutex;

/// What is wrong with a handler.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Defect {
    None,
    AnyOptionIsTaken,
    CheckMakesTheFile,
    FlushIsClaimedOnly,
    GranularityIsZero,
    WritesOneByteMore,
    RoundsPlacesDown,
    FirstSegmentOnly,
    MixesOverlappingBlocks,
    ForgetsWhatIsTooMuch,
    FlushDoesNothing,
    NoVolatileCacheIsClaimed,
    FuaDoesNothing,
    ZeroesWholePages,
    UnmapsWholePages,
    UnmapDoesNothing,
    SwapsInTwoSteps,
    FindsTheLastDifference,
    NothingHasStorage,
    StatusOfNoBytes,
    WriteErrorsAreLost,
    ErrorsAreInternal,
    ResizesInWordsOnly,
    WritesToReadOnlyImages,
    CloseDoesNothing,
    OpeningEmptiesTheImage,
}

/// Which rule is broken by which defect. Others may be too.
const BROKEN: [(Defect, Rule); 25] = [
    (Defect::AnyOptionIsTaken, Rule::Configuration),
    (Defect::CheckMakesTheFile, Rule::Configuration),
    (Defect::FlushIsClaimedOnly, Rule::Capabilities),
    (Defect::GranularityIsZero, Rule::Capabilities),
    (Defect::WritesOneByteMore, Rule::Bounds),
    (Defect::RoundsPlacesDown, Rule::Alignment),
    (Defect::FirstSegmentOnly, Rule::Segments),
    (Defect::MixesOverlappingBlocks, Rule::Overlap),
    (Defect::ForgetsWhatIsTooMuch, Rule::Workload),
    (Defect::FlushDoesNothing, Rule::Flush),
    (Defect::NoVolatileCacheIsClaimed, Rule::Flush),
    (Defect::FuaDoesNothing, Rule::Fua),
    (Defect::ZeroesWholePages, Rule::WriteZeroes),
    (Defect::UnmapsWholePages, Rule::Unmap),
    (Defect::UnmapDoesNothing, Rule::Unmap),
    (Defect::SwapsInTwoSteps, Rule::CompareAndWrite),
    (Defect::FindsTheLastDifference, Rule::CompareAndWrite),
    (Defect::NothingHasStorage, Rule::BlockStatus),
    (Defect::StatusOfNoBytes, Rule::BlockStatus),
    (Defect::WriteErrorsAreLost, Rule::Errors),
    (Defect::ErrorsAreInternal, Rule::Errors),
    (Defect::ResizesInWordsOnly, Rule::Resize),
    (Defect::WritesToReadOnlyImages, Rule::ReadOnly),
    (Defect::CloseDoesNothing, Rule::Close),
    (Defect::OpeningEmptiesTheImage, Rule::Reopen),
];

const PAGE: u64 = 4096;
const LONGEST_SWAP: u32 = 64 << 10;

/// A handler of files with one defect.
struct Handles(Defect);

impl Handles {
    fn read_only(&self, config: &Config) -> Result<bool> {
        if self.0 != Defect::AnyOptionIsTaken {
            config.allow_options(&["readonly"])?;
        }
        Ok(config.switch("readonly")?.unwrap_or(false))
    }
}

impl Handler for Handles {
    type Backstore = Image;

    fn subtype(&self) -> &str {
        "test"
    }

    fn help(&self) -> &str {
        "test/PATH[;readonly=on]"
    }

    fn check(&self, config: &Config) -> Result<()> {
        self.read_only(config)?;
        if self.0 == Defect::CheckMakesTheFile {
            fs::write(config.target(), "").map_err(|error| Error::os("making the file", error))?;
        }
        Ok(())
    }

    fn open(&self, request: &OpenRequest) -> Result<Image> {
        let read_only = self.read_only(&request.config)?;
        let open = || -> io::Result<(fs::File, u64)> {
            let path = request.config.target();
            if self.0 == Defect::OpeningEmptiesTheImage {
                let _ = fs::remove_file(path);
            }
            let new = !Path::new(path).exists();
            let write = !read_only || self.0 == Defect::WritesToReadOnlyImages;
            let mut options = fs::File::options();
            let file = options.read(true).write(write).create(write).open(path)?;
            if new {
                file.set_len(request.size)?;
            }
            let pages = if new { 0 } else { request.size / PAGE };
            Ok((file, pages))
        };
        let (file, pages) = open().map_err(|error| Error::os("opening the image", error))?;
        Ok(Image {
            defect: self.0,
            file: Arc::new(file.into()),
            size: Cell::new(request.size),
            read_only,
            writing: Cell::new(0),
            swaps: Mutex::new(()),
            touched: RefCell::new((0..pages).collect()),
        })
    }
}

struct Image {
    defect: Defect,
    file: File,
    size: Cell<u64>,
    read_only: bool,
    writing: Cell<usize>,
    swaps: Mutex<()>,
    /// Pages that have storage.
    touched: RefCell<BTreeSet<u64>>,
}

impl Image {
    fn has(&self, defect: Defect) -> bool {
        self.defect == defect
    }

    fn failed(&self, kind: ErrorKind, error: io::Error) -> Error {
        let error = Error::os("the file", error);
        match error.kind() {
            _ if self.has(Defect::ErrorsAreInternal) => error.with_kind(ErrorKind::Internal),
            ErrorKind::NoSpace => error,
            _ => error.with_kind(kind),
        }
    }

    async fn store(&self, io: &Io, buffer: Buffer<'_>, offset: u64, durable: bool) -> Result<()> {
        let stored = io.write_all(&self.file, buffer, offset, durable).await;
        match stored {
            Err(_) if self.has(Defect::WriteErrorsAreLost) => Ok(()),
            stored => stored.map_err(|error| self.failed(ErrorKind::Write, error)),
        }
    }

    async fn clear(&self, io: &Io, extent: Extent) -> Result<()> {
        let mode = FallocateFlags::PUNCH_HOLE.union(FallocateFlags::KEEP_SIZE);
        let cleared = io.fallocate(&self.file, mode.bits() as i32, extent).await;
        cleared.map_err(|error| self.failed(ErrorKind::Write, error))
    }

    async fn sync(&self, io: &Io) -> Result<()> {
        let synced = io.sync(&self.file).await;
        synced.map_err(|error| self.failed(ErrorKind::Write, error))
    }
}

fn outwards(extent: Extent) -> Extent {
    let offset = extent.offset / PAGE * PAGE;
    Extent {
        offset,
        len: extent.end().next_multiple_of(PAGE) - offset,
    }
}

impl Backstore for Image {
    fn capabilities(&self) -> Capabilities {
        let writable = !self.read_only;
        let granularity = match self.defect {
            Defect::GranularityIsZero => 0,
            _ => PAGE,
        };
        Capabilities {
            read_only: self.read_only,
            volatile_cache: !self.has(Defect::NoVolatileCacheIsClaimed),
            fua: Fua::Native,
            unmap: writable.then_some(Unmap {
                granularity,
                reads_zeroes: true,
            }),
            write_zeroes: writable,
            compare_and_write: if writable { LONGEST_SWAP } else { 0 },
            ..Capabilities::new(self.size.get())
        }
    }

    async fn read(&self, io: &Io, buffer: Buffer<'_>, offset: u64) -> Result<()> {
        let read = io.read_exact(&self.file, buffer, offset).await;
        read.map_err(|error| self.failed(ErrorKind::Read, error))
    }

    async fn write(
        &self,
        io: &Io,
        buffer: Buffer<'_>,
        offset: u64,
        flags: WriteFlags,
    ) -> Result<()> {
        let end = offset + buffer.len() as u64;
        self.touched
            .borrow_mut()
            .extend(offset / PAGE..end.div_ceil(PAGE));
        let durable = flags.fua && !self.has(Defect::FuaDoesNothing);
        match self.defect {
            Defect::WritesOneByteMore if end < self.size.get() => {
                let more = io.allocate(1).map_err(|error| Error::os("memory", error))?;
                self.store(io, more.view(), end, false).await?;
            }
            Defect::RoundsPlacesDown => {
                return self.store(io, buffer, offset / 1024 * 1024, durable).await;
            }
            Defect::FirstSegmentOnly => {
                let len = buffer.segments().next().map_or(0, |segment| segment.len);
                let first = buffer
                    .slice(0..len)
                    .expect("a segment is part of its buffer");
                return self.store(io, first, offset, durable).await;
            }
            Defect::MixesOverlappingBlocks => {
                let half = buffer.len() / 2 / 512 * 512 + 256;
                let (first, second) = (buffer.slice(0..half), buffer.slice(half..buffer.len()));
                let [first, second] = [first, second].map(|part| part.expect("in the buffer"));
                self.store(io, first, offset, durable).await?;
                return self.store(io, second, offset + half as u64, durable).await;
            }
            Defect::ForgetsWhatIsTooMuch if self.writing.get() > 6 => return Ok(()),
            _ => {}
        }
        self.writing.set(self.writing.get() + 1);
        let stored = self.store(io, buffer, offset, durable).await;
        self.writing.set(self.writing.get() - 1);
        stored
    }

    async fn flush(&self, io: &Io) -> Result<()> {
        match self.defect {
            Defect::FlushDoesNothing => Ok(()),
            Defect::FlushIsClaimedOnly => Err(Error::new(ErrorKind::Unsupported, "no flush")),
            _ => self.sync(io).await,
        }
    }

    async fn unmap(&self, io: &Io, extent: Extent) -> Result<()> {
        if self.read_only {
            return Err(Error::new(ErrorKind::ReadOnly, "read-only"));
        }
        let pages = extent.offset.div_ceil(PAGE)..extent.end() / PAGE;
        self.touched
            .borrow_mut()
            .retain(|page| !pages.contains(page));
        match self.defect {
            Defect::UnmapDoesNothing => Ok(()),
            Defect::UnmapsWholePages => self.clear(io, outwards(extent)).await,
            _ => self.clear(io, extent).await,
        }
    }

    async fn write_zeroes(&self, io: &Io, extent: Extent, flags: ZeroFlags) -> Result<()> {
        if self.read_only {
            return Err(Error::new(ErrorKind::ReadOnly, "read-only"));
        }
        match self.defect {
            Defect::ZeroesWholePages => self.clear(io, outwards(extent)).await?,
            _ => self.clear(io, extent).await?,
        }
        match flags.fua {
            true => self.sync(io).await,
            false => Ok(()),
        }
    }

    async fn compare_and_write(
        &self,
        io: &Io,
        expected: Buffer<'_>,
        new: Buffer<'_>,
        offset: u64,
        flags: WriteFlags,
    ) -> Result<Comparison> {
        let _alone = match self.defect {
            Defect::SwapsInTwoSteps => None,
            _ => Some(self.swaps.lock().await),
        };
        let is = io
            .allocate(expected.len())
            .map_err(|error| Error::os("memory", error))?;
        self.read(io, is.view(), offset).await?;
        let mut difference = expected.difference_from(is.view());
        if self.has(Defect::FindsTheLastDifference) {
            let differs = |at: &usize| {
                let (mut one, mut other) = ([0], [0]);
                expected.copy_to(*at, &mut one);
                is.view().copy_to(*at, &mut other);
                one != other
            };
            difference = (0..expected.len()).rev().find(differs);
        }
        match difference {
            Some(at) => Ok(Comparison::DiffersAt(at)),
            None => {
                self.write(io, new, offset, flags).await?;
                Ok(Comparison::Equal)
            }
        }
    }

    async fn block_status(&self, _io: &Io, extent: Extent) -> Result<BlockStatus> {
        let page = extent.offset / PAGE;
        let mapped = self.touched.borrow().contains(&page);
        Ok(BlockStatus {
            len: match self.defect {
                Defect::StatusOfNoBytes => 0,
                _ => extent.len.min((page + 1) * PAGE - extent.offset),
            },
            mapped: mapped && !self.has(Defect::NothingHasStorage),
        })
    }

    async fn resize(&self, _io: &Io, size: u64) -> Result<()> {
        let have = self.size.get();
        if size > have && !self.has(Defect::ResizesInWordsOnly) {
            let file = self.file.try_clone().map(fs::File::from);
            file.and_then(|file| file.set_len(size))
                .map_err(|error| self.failed(ErrorKind::Write, error))?;
            self.size.set(size);
        }
        Ok(())
    }

    async fn close(&self, io: &Io) -> Result<()> {
        match self.defect {
            Defect::CloseDoesNothing => Ok(()),
            _ => self.sync(io).await,
        }
    }
}

fn contract(defect: Defect) -> Contract<Handles> {
    let contract = Contract::new(Handles(defect), |folder: &Path| {
        folder.join("image").display().to_string()
    });
    contract.read_only(";readonly=on")
}

tcmu_handler::contract_tests!(contract(Defect::None));

#[test]
fn the_handler_is_held_against_every_rule() {
    for rule in Rule::ALL {
        assert_eq!(
            contract(Defect::None).check(rule),
            Ok(Kept::Tried),
            "{rule:?}"
        );
    }
}

#[test]
fn every_defect_is_found() {
    for (defect, rule) in BROKEN {
        match contract(defect).check(rule) {
            Err(broken) => {
                assert_eq!(broken.rule, rule);
                let text = broken.to_string();
                assert!(
                    text.contains(rule.law()) && !broken.how.is_empty(),
                    "{text}"
                );
            }
            kept => panic!("{defect:?} does not break {rule:?}: {kept:?}"),
        }
    }
}

#[test]
fn every_rule_can_be_broken() {
    for rule in Rule::ALL {
        assert!(BROKEN.iter().any(|(_, broken)| *broken == rule), "{rule:?}");
    }
}

/// The same with plain functions, on threads.
struct Plain;

struct PlainImage {
    file: fs::File,
    size: u64,
}

impl Handler for Plain {
    type Backstore = Blocking<PlainImage>;

    fn subtype(&self) -> &str {
        "plain"
    }

    fn help(&self) -> &str {
        "plain/PATH"
    }

    fn check(&self, config: &Config) -> Result<()> {
        config.allow_options(&[])
    }

    fn open(&self, request: &OpenRequest) -> Result<Self::Backstore> {
        self.check(&request.config)?;
        let path = request.config.target();
        let open = || -> io::Result<fs::File> {
            let file = fs::File::options()
                .read(true)
                .write(true)
                .create(true)
                .truncate(false)
                .open(path)?;
            file.set_len(request.size.max(file.metadata()?.len()))?;
            Ok(file)
        };
        let file = open().map_err(|error| Error::os("opening the image", error))?;
        let size = request.size;
        Ok(Blocking::new(PlainImage { file, size }))
    }
}

impl BlockingBackstore for PlainImage {
    fn capabilities(&self) -> Capabilities {
        Capabilities::new(self.size)
    }

    fn read(&self, buffer: Buffer<'_>, offset: u64) -> Result<()> {
        let mut bytes = vec![0; buffer.len()];
        let read = self.file.read_exact_at(&mut bytes, offset);
        read.map_err(|error| Error::os("reading", error).with_kind(ErrorKind::Read))?;
        buffer.copy_from(0, &bytes);
        Ok(())
    }

    fn write(&self, buffer: Buffer<'_>, offset: u64, _flags: WriteFlags) -> Result<()> {
        let mut bytes = vec![0; buffer.len()];
        buffer.copy_to(0, &mut bytes);
        let write = self.file.write_all_at(&bytes, offset);
        write.map_err(|error| Error::os("writing", error).with_kind(ErrorKind::Write))
    }
}

tcmu_handler::contract_tests!(blocking: Contract::new(Plain, |folder: &Path| {
    folder.join("image").display().to_string()
}));
