//! The files of one image in a chain, and what every part of the engine does with them.

use std::cell::{Cell, RefCell};
use std::io;

use rustix::io::Errno;
use tcmu_handler::{Buffer, ErrorKind, Extent, Io, OwnedBuffer, Result};
use tokio::sync::Mutex;

use crate::barrier::Barrier;
use crate::bounds::Bounds;
use crate::fault::failed;
use crate::storage::Storage;
use crate::transfers::{self, Transfers};

/// FALLOC_FL_KEEP_SIZE, ..._PUNCH_HOLE and ..._ZERO_RANGE of include/uapi/linux/falloc.h.
const KEEP_SIZE: i32 = 1;
const PUNCH_HOLE: i32 = 2;
const ZERO_RANGE: i32 = 16;

/// Bytes of the buffers that are kept for metadata.
const SCRATCH: usize = 4096;
const SPARE: usize = 64;
/// Zeroes are written in pieces of at most this many bytes where the file system cannot make them.
const ZEROES: usize = 128 << 10;
/// The part of the header that is written as a whole; a medium's sector.
pub(crate) const SECTOR: usize = 512;

/// What becomes of the storage below zeroes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Below {
    /// It is given back.
    Punched,
    /// It is kept.
    Kept,
}

/// The files of one image.
#[derive(Debug)]
pub(crate) struct Disk {
    /// The image file: header, tables, and guest data unless they lie in [`data`](Self::data).
    pub(crate) storage: Storage,
    /// The external data file.
    pub(crate) data: Option<Storage>,
    pub(crate) barrier: Barrier,
    pub(crate) bounds: Bounds,
    /// The first sector of the header as it is in the file.
    header: RefCell<Vec<u8>>,
    header_writer: Mutex<()>,
    scratch: RefCell<Vec<OwnedBuffer>>,
    cannot_punch: Cell<bool>,
    cannot_zero: Cell<bool>,
}

impl Disk {
    /// The files of an image that is only read.
    pub(crate) fn new(storage: Storage, data: Option<Storage>) -> Self {
        Self::for_writing(storage, data, Vec::new(), Bounds::nothing())
    }

    /// The files of an image whose header begins with the sector `header`.
    pub(crate) fn for_writing(
        storage: Storage,
        data: Option<Storage>,
        header: Vec<u8>,
        bounds: Bounds,
    ) -> Self {
        Self {
            storage,
            data,
            barrier: Barrier::default(),
            bounds,
            header: RefCell::new(header),
            header_writer: Mutex::new(()),
            scratch: RefCell::default(),
            cannot_punch: Cell::new(false),
            cannot_zero: Cell::new(false),
        }
    }

    /// Where guest data lie.
    pub(crate) fn data(&self) -> &Storage {
        self.data.as_ref().unwrap_or(&self.storage)
    }

    /// Makes everything durable that has been written before the call.
    pub(crate) async fn pass_barrier(&self, io: &Io) -> Result<()> {
        self.barrier
            .pass(io, &self.storage, self.data.as_ref())
            .await
    }

    /// Reads `len` bytes of metadata; what lies beyond the end of the file is zero.
    pub(crate) async fn read_metadata(&self, io: &Io, len: usize, offset: u64) -> Result<Vec<u8>> {
        let memory = self.scratch(io, len)?;
        let buffer = part(&memory, len);
        transfers::read(io, &self.storage, buffer, offset).await?;
        let mut bytes = vec![0; len];
        buffer.copy_to(0, &mut bytes);
        self.keep(memory);
        Ok(bytes)
    }

    /// Writes metadata into the clusters that the file has. With `durable`, these bytes are durable
    /// afterwards, and no others.
    pub(crate) async fn write_metadata(
        &self,
        io: &Io,
        bytes: &[u8],
        offset: u64,
        durable: bool,
    ) -> Result<()> {
        if !self.bounds.holds(offset, bytes.len() as u64) {
            return Err(self.corrupt(&format!(
                "a table at {offset:#x} lies behind the end of the file"
            )));
        }
        self.write_anywhere(io, bytes, offset, durable).await
    }

    /// Makes the file reach behind `bytes`, which become durable at `offset`.
    pub(crate) async fn extend(&self, io: &Io, bytes: &[u8], offset: u64) -> Result<()> {
        self.write_anywhere(io, bytes, offset, true).await?;
        self.bounds.reach(offset + bytes.len() as u64);
        Ok(())
    }

    async fn write_anywhere(
        &self,
        io: &Io,
        bytes: &[u8],
        offset: u64,
        durable: bool,
    ) -> Result<()> {
        let memory = self.scratch(io, bytes.len())?;
        let buffer = part(&memory, bytes.len());
        buffer.copy_from(0, bytes);
        let result = transfers::write(io, &self.storage, buffer, offset, durable).await;
        self.barrier.wrote();
        self.keep(memory);
        result
    }

    /// Changes fields of the header; all at once, because they share a sector.
    pub(crate) async fn patch_header(&self, io: &Io, fields: &[(usize, &[u8])]) -> Result<()> {
        let _writer = self.header_writer.lock().await;
        let mut sector = self.header.borrow().clone();
        for (at, bytes) in fields {
            if let Some(place) = sector.get_mut(*at..*at + bytes.len()) {
                place.copy_from_slice(bytes);
            }
        }
        let result = self.write_metadata(io, &sector, 0, true).await;
        match &result {
            Ok(()) => {
                self.header.replace(sector);
            }
            // Which of two tables the header names is not known any more.
            Err(_) => self.barrier.give_up(),
        }
        result
    }

    /// Makes a range of `storage` (one of the image's own) read as zeroes.
    pub(crate) async fn zero(
        &self,
        io: &Io,
        storage: &Storage,
        extent: Extent,
        below: Below,
    ) -> Result<()> {
        let (mode, cannot) = match below {
            Below::Punched => (PUNCH_HOLE, &self.cannot_punch),
            Below::Kept => (ZERO_RANGE, &self.cannot_zero),
        };
        if !cannot.get() {
            match io.fallocate(&storage.file, mode | KEEP_SIZE, extent).await {
                Ok(()) => return Ok(()),
                Err(error) if is_unsupported(&error) => cannot.set(true),
                Err(error) => {
                    return Err(failed(ErrorKind::Write, "zeroing", &storage.path, error));
                }
            }
        }
        self.write_zeroes(io, storage, extent).await
    }

    /// Gives a range of the image file back that nothing refers to any more, if that is possible.
    pub(crate) async fn punch(&self, io: &Io, extent: Extent) {
        if self.cannot_punch.get() {
            return;
        }
        let mode = PUNCH_HOLE | KEEP_SIZE;
        let result = io.fallocate(&self.storage.file, mode, extent).await;
        if result.is_err_and(|error| is_unsupported(&error)) {
            self.cannot_punch.set(true);
        }
    }

    async fn write_zeroes(&self, io: &Io, storage: &Storage, extent: Extent) -> Result<()> {
        let memory = self.bounce(io, extent.len.min(ZEROES as u64) as usize)?;
        let mut transfers = Transfers::new(io, memory.view());
        let mut done = 0;
        while done < extent.len {
            let len = (extent.len - done).min(ZEROES as u64);
            transfers
                .write(storage, 0..len as usize, extent.offset + done, false)
                .await;
            done += len;
        }
        transfers.finish().await
    }

    /// Memory of `len` zeroes for a request's own needs.
    pub(crate) fn bounce(&self, io: &Io, len: usize) -> Result<OwnedBuffer> {
        io.allocate(len)
            .map_err(|error| failed(ErrorKind::Busy, "no memory for", &self.storage.path, error))
    }

    /// Memory for `len` bytes of metadata or more, with any content.
    fn scratch(&self, io: &Io, len: usize) -> Result<OwnedBuffer> {
        if len > SCRATCH {
            return self.bounce(io, len);
        }
        match self.scratch.borrow_mut().pop() {
            Some(memory) => Ok(memory),
            None => self.bounce(io, SCRATCH),
        }
    }

    /// Takes memory back that no operation uses any more.
    fn keep(&self, memory: OwnedBuffer) {
        let mut spare = self.scratch.borrow_mut();
        if memory.view().len() == SCRATCH && spare.len() < SPARE {
            spare.push(memory);
        }
    }
}

/// The first `len` bytes of a buffer that is at least as long.
pub(crate) fn part(memory: &OwnedBuffer, len: usize) -> Buffer<'_> {
    let view = memory.view();
    view.slice(0..len.min(view.len())).unwrap_or(view)
}

fn is_unsupported(error: &io::Error) -> bool {
    let code = error.raw_os_error();
    code == Some(Errno::OPNOTSUPP.raw_os_error()) || code == Some(Errno::NOSYS.raw_os_error())
}
