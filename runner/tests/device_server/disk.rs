//! A backstore in memory that keeps the runner's promises and its own: it refuses requests that no
//! backstore should see, writes down what it was asked, and can lose its power.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::mem::take;
use std::task::Poll;

use tcmu_handler::{
    AtomicWrites, Backstore, BlockStatus, Buffer, Capabilities, Comparison, Error, ErrorKind,
    Extent, Fua, Io, Result, Unmap, Usage, WriteFlags, ZeroFlags,
};

/// One call of the backstore.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Call {
    Read(Extent),
    Write(Extent, WriteFlags),
    Flush,
    Unmap(Extent),
    WriteZeroes(Extent, ZeroFlags),
    CompareAndWrite(Extent, WriteFlags),
    BlockStatus(Extent),
    Prefetch(Extent),
}

/// The disk.
pub(crate) struct Disk {
    pub(crate) capabilities: Cell<Capabilities>,
    /// What reads return.
    pub(crate) image: RefCell<Vec<u8>>,
    /// Which units of [`GRANULARITY`] have storage.
    mapped: RefCell<Vec<bool>>,
    pub(crate) usage: Cell<Usage>,
    /// What is left after the power was cut.
    durable: RefCell<Vec<u8>>,
    calls: RefCell<Vec<Call>>,
    /// The next calls of this kind fail.
    failing: Cell<Option<(Kind, ErrorKind)>>,
    /// Writes change nothing.
    forgetful: Cell<bool>,
    /// Writes wait, once, before they end.
    slow_writes: Cell<bool>,
    /// Bytes are kept.
    contents: Cell<bool>,
}

/// A kind of call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Read,
    Write,
    Flush,
    Unmap,
    WriteZeroes,
    CompareAndWrite,
    BlockStatus,
    Prefetch,
}

/// The unit in which the disk unmaps, in bytes.
pub(crate) const GRANULARITY: u64 = 4096;

/// A disk of `size` bytes that does everything.
pub(crate) fn everything(size: u64) -> Capabilities {
    let mut capabilities = Capabilities::new(size);
    capabilities.physical_block_size = 4096;
    capabilities.optimal_io_size = 64 << 10;
    capabilities.volatile_cache = true;
    capabilities.fua = Fua::Native;
    capabilities.unmap = Some(Unmap {
        granularity: GRANULARITY,
        reads_zeroes: true,
    });
    capabilities.write_zeroes = true;
    capabilities.atomic_writes = Some(AtomicWrites {
        max_len: 32 << 10,
        alignment: 2048,
        granularity: 1024,
    });
    capabilities
}

impl Disk {
    pub(crate) fn new(capabilities: Capabilities) -> Self {
        let size = capabilities.size as usize;
        Self {
            capabilities: Cell::new(capabilities),
            image: RefCell::new(vec![0; size]),
            mapped: RefCell::new(vec![false; size.div_ceil(GRANULARITY as usize)]),
            usage: Cell::new(Usage {
                used: 0,
                available: 0,
            }),
            durable: RefCell::new(vec![0; size]),
            calls: RefCell::default(),
            failing: Cell::new(None),
            forgetful: Cell::new(false),
            slow_writes: Cell::new(false),
            contents: Cell::new(true),
        }
    }

    /// The calls since the last time.
    pub(crate) fn calls(&self) -> Vec<Call> {
        self.calls.take()
    }

    pub(crate) fn fail(&self, kind: Kind, error: ErrorKind) {
        self.failing.set(Some((kind, error)));
    }

    pub(crate) fn heal(&self) {
        self.failing.set(None);
    }

    pub(crate) fn forget_writes(&self) {
        self.forgetful.set(true);
    }

    pub(crate) fn slow_down_writes(&self) {
        self.slow_writes.set(true);
    }

    /// Keeps no bytes from now on, whatever its size is: for units that are larger than the memory.
    pub(crate) fn forget_contents(&self) {
        self.contents.set(false);
    }

    pub(crate) fn cut_power(&self) {
        self.image.replace(self.durable.borrow().clone());
    }

    fn call(&self, call: Call) -> Result<()> {
        self.calls.borrow_mut().push(call);
        let capabilities = self.capabilities.get();
        let (kind, extent) = match call {
            Call::Read(extent) => (Kind::Read, Some(extent)),
            Call::Write(extent, flags) => {
                assert!(!flags.fua || capabilities.fua == Fua::Native);
                (Kind::Write, Some(extent))
            }
            Call::Flush => {
                assert!(capabilities.volatile_cache);
                (Kind::Flush, None)
            }
            Call::Unmap(extent) => {
                assert!(capabilities.unmap.is_some());
                (Kind::Unmap, Some(extent))
            }
            Call::WriteZeroes(extent, flags) => {
                assert!(capabilities.write_zeroes);
                assert!(!flags.fua || capabilities.fua == Fua::Native);
                assert!(!flags.may_unmap || capabilities.unmap.is_some());
                (Kind::WriteZeroes, Some(extent))
            }
            Call::CompareAndWrite(extent, flags) => {
                assert!(extent.len <= capabilities.compare_and_write.into());
                assert!(!flags.fua || capabilities.fua == Fua::Native);
                (Kind::CompareAndWrite, Some(extent))
            }
            Call::BlockStatus(extent) => {
                assert!(capabilities.unmap.is_some());
                (Kind::BlockStatus, Some(extent))
            }
            Call::Prefetch(extent) => (Kind::Prefetch, Some(extent)),
        };
        if let Some(extent) = extent {
            assert_ne!(extent.len, 0);
            assert!(extent.end() <= capabilities.size, "{call:?}");
            assert_eq!(extent.offset % 512, 0);
            assert_eq!(extent.len % 512, 0);
        }
        match self.failing.get() {
            Some((failing, error)) if failing == kind => Err(Error::new(error, "as told")),
            _ => Ok(()),
        }
    }

    /// Notes that all units that `extent` touches have storage, or that those within it have none.
    fn map(&self, extent: Extent, mapped: bool) {
        if !self.contents.get() {
            return;
        }
        let units = if mapped {
            extent.offset / GRANULARITY..extent.end().div_ceil(GRANULARITY)
        } else {
            extent.offset.div_ceil(GRANULARITY)..extent.end() / GRANULARITY
        };
        for unit in units {
            self.mapped.borrow_mut()[unit as usize] = mapped;
        }
    }

    /// Changes a range, durably if the disk has no cache or the request says so.
    fn change(&self, extent: Extent, fua: bool, change: impl Fn(&mut [u8])) {
        if !self.contents.get() {
            return;
        }
        let range = extent.offset as usize..extent.end() as usize;
        change(&mut self.image.borrow_mut()[range.clone()]);
        if fua || !self.capabilities.get().volatile_cache {
            change(&mut self.durable.borrow_mut()[range]);
        }
    }
}

impl Backstore for Disk {
    fn capabilities(&self) -> Capabilities {
        self.capabilities.get()
    }

    async fn read(&self, _io: &Io, buffer: Buffer<'_>, offset: u64) -> Result<()> {
        let extent = Extent {
            offset,
            len: buffer.len() as u64,
        };
        self.call(Call::Read(extent))?;
        let range = extent.offset as usize..extent.end() as usize;
        buffer.copy_from(0, &self.image.borrow()[range]);
        Ok(())
    }

    async fn write(
        &self,
        _io: &Io,
        buffer: Buffer<'_>,
        offset: u64,
        flags: WriteFlags,
    ) -> Result<()> {
        let extent = Extent {
            offset,
            len: buffer.len() as u64,
        };
        self.call(Call::Write(extent, flags))?;
        if !self.forgetful.get() {
            self.map(extent, true);
            self.change(extent, flags.fua, |bytes| {
                buffer.copy_to(0, bytes);
            });
        }
        let mut waits = self.slow_writes.get();
        poll_fn(|_| {
            if take(&mut waits) {
                Poll::Pending
            } else {
                Poll::Ready(())
            }
        })
        .await;
        Ok(())
    }

    async fn usage(&self, _io: &Io) -> Result<Usage> {
        assert!(self.capabilities.get().usage);
        Ok(self.usage.get())
    }

    async fn flush(&self, _io: &Io) -> Result<()> {
        self.call(Call::Flush)?;
        if self.contents.get() {
            self.durable.replace(self.image.borrow().clone());
        }
        Ok(())
    }

    async fn unmap(&self, _io: &Io, extent: Extent) -> Result<()> {
        self.call(Call::Unmap(extent))?;
        self.map(extent, false);
        let offset = extent.offset.next_multiple_of(GRANULARITY);
        let end = extent.end() / GRANULARITY * GRANULARITY;
        if offset < end {
            let len = end - offset;
            self.change(Extent { offset, len }, false, |bytes| bytes.fill(0));
        }
        Ok(())
    }

    async fn write_zeroes(&self, _io: &Io, extent: Extent, flags: ZeroFlags) -> Result<()> {
        self.call(Call::WriteZeroes(extent, flags))?;
        self.map(extent, !flags.may_unmap);
        self.change(extent, flags.fua, |bytes| bytes.fill(0));
        Ok(())
    }

    async fn compare_and_write(
        &self,
        _io: &Io,
        expected: Buffer<'_>,
        new: Buffer<'_>,
        offset: u64,
        flags: WriteFlags,
    ) -> Result<Comparison> {
        let extent = Extent {
            offset,
            len: expected.len() as u64,
        };
        self.call(Call::CompareAndWrite(extent, flags))?;
        assert_eq!(expected.len(), new.len());
        let range = offset as usize..extent.end() as usize;
        if let Some(at) = expected.difference(0, &self.image.borrow()[range]) {
            return Ok(Comparison::DiffersAt(at));
        }
        self.map(extent, true);
        self.change(extent, flags.fua, |bytes| {
            new.copy_to(0, bytes);
        });
        Ok(Comparison::Equal)
    }

    async fn block_status(&self, _io: &Io, extent: Extent) -> Result<BlockStatus> {
        self.call(Call::BlockStatus(extent))?;
        let mapped = self.mapped.borrow();
        let unit = (extent.offset / GRANULARITY) as usize;
        let alike = mapped[unit..]
            .iter()
            .take_while(|is| **is == mapped[unit])
            .count();
        let end = (unit + alike) as u64 * GRANULARITY;
        Ok(BlockStatus {
            len: end.min(extent.end()) - extent.offset,
            mapped: mapped[unit],
        })
    }

    async fn prefetch(&self, _io: &Io, extent: Extent) -> Result<()> {
        self.call(Call::Prefetch(extent))
    }
}
