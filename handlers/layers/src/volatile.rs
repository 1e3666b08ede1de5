//! `volatile`: a cache that loses what was not flushed.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::sync::Arc;

use tcmu_handler::{
    Backstore, BlockStatus, Buffer, Capabilities, DataAccess, Error, ErrorKind, Extent, Fua, Io,
    Result, Usage, WriteFlags, ZeroFlags,
};
use tokio::sync::Mutex;

use crate::AnyBackstore;
use crate::options::Options;

pub(crate) const OPTIONS: [&str; 4] = ["close", "cut", "left", "limit"];

pub(crate) const HELP: &str = "\
volatile/[OPTION=VALUE/]...SUBTYPE/CONFIG

A write cache in memory: what was not flushed is lost when the daemon dies, when the LUN is closed,
and when the power fails that it plays. For trying what initiators make of a power cut.

  close=lose|keep  What becomes of it when the LUN is closed. The default is lose.
  cut=N            The power fails at the Nth write: from then on all requests fail until the LUN is
                   opened again.
  left=nothing|some
                   What survives: nothing (the default), or every second block, as a disk may write
                   its cache in any order.
  limit=N          So many bytes at the most; with more, the cache is written down, as disks do. The
                   default is 64M.

Example: volatile/cut=1000/left=some/file//var/lib/x.img
";

/// What the options say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Plan {
    keep_at_close: bool,
    cut: Option<u64>,
    some_left: bool,
    limit: u64,
}

pub(crate) fn parse(options: &Options) -> Result<Plan> {
    let close = options.parsed("close", "lose or keep", |text| match text {
        "lose" => Some(false),
        "keep" => Some(true),
        _ => None,
    })?;
    let left = options.parsed("left", "nothing or some", |text| match text {
        "nothing" => Some(false),
        "some" => Some(true),
        _ => None,
    })?;
    Ok(Plan {
        keep_at_close: close.unwrap_or(false),
        cut: options.count("cut")?,
        some_left: left.unwrap_or(false),
        limit: options.bytes("limit")?.unwrap_or(64 << 20),
    })
}

/// A block that was written and not flushed.
#[derive(Clone, Debug)]
struct Block {
    bytes: Arc<[u8]>,
    /// Which write brought it.
    stamp: u64,
}

/// An image with a volatile cache.
pub(crate) struct Volatile {
    image: AnyBackstore,
    plan: Plan,
    block_size: u64,
    /// By their place, counted in blocks.
    blocks: RefCell<BTreeMap<u64, Block>>,
    /// The last write's.
    stamp: Cell<u64>,
    writes: Cell<u64>,
    /// The power has failed.
    cut: Cell<bool>,
    /// Who changes the image below is alone, so that nothing older lands there after something newer.
    writing_down: Mutex<()>,
}

impl Volatile {
    pub(crate) fn new(image: AnyBackstore, plan: Plan, block_size: u32) -> Self {
        Self {
            image,
            plan,
            block_size: block_size.into(),
            blocks: RefCell::default(),
            stamp: Cell::new(0),
            writes: Cell::new(0),
            cut: Cell::new(false),
            writing_down: Mutex::new(()),
        }
    }

    fn has_power(&self) -> Result<()> {
        match self.cut.get() {
            false => Ok(()),
            true => Err(Error::new(
                ErrorKind::Gone,
                "the layer volatile has cut the power: open the LUN again",
            )),
        }
    }

    /// The places of the blocks in `extent`.
    fn places(&self, extent: Extent) -> std::ops::Range<u64> {
        extent.offset / self.block_size..extent.end().div_ceil(self.block_size)
    }

    /// Keeps what is written.
    fn keep(&self, buffer: Buffer<'_>, offset: u64) -> u64 {
        let stamp = self.stamp.get() + 1;
        self.stamp.set(stamp);
        let len = buffer.len() as u64;
        let mut blocks = self.blocks.borrow_mut();
        for (number, place) in self.places(Extent { offset, len }).enumerate() {
            let mut bytes = vec![0; self.block_size as usize];
            buffer.copy_to(number * self.block_size as usize, &mut bytes);
            let bytes = bytes.into();
            blocks.insert(place, Block { bytes, stamp });
        }
        stamp
    }

    /// Forgets what lies in `extent` and came with `stamp` or before.
    fn drop_until(&self, extent: Extent, stamp: u64) {
        let places = self.places(extent);
        let mut blocks = self.blocks.borrow_mut();
        let old = blocks.range(places);
        let old = old.filter(|(_, block)| block.stamp <= stamp);
        let old: Vec<u64> = old.map(|(place, _)| *place).collect();
        for place in old {
            blocks.remove(&place);
        }
    }

    /// Writes blocks to the image below.
    async fn store(&self, io: &Io, blocks: &BTreeMap<u64, Block>) -> Result<()> {
        for (place, block) in blocks {
            let memory = io
                .allocate(block.bytes.len())
                .map_err(|error| Error::os("no memory", error).with_kind(ErrorKind::Busy))?;
            memory.view().copy_from(0, &block.bytes);
            let (offset, flags) = (place * self.block_size, WriteFlags::default());
            self.image.write(io, memory.view(), offset, flags).await?;
        }
        Ok(())
    }

    /// Writes the cache down; the image below may have a volatile cache itself.
    async fn write_down(&self, io: &Io) -> Result<()> {
        let blocks = self.blocks.borrow().clone();
        self.store(io, &blocks).await?;
        for (place, block) in blocks {
            let (offset, len) = (place * self.block_size, self.block_size);
            self.drop_until(Extent { offset, len }, block.stamp);
        }
        Ok(())
    }

    async fn sync(&self, io: &Io) -> Result<()> {
        match self.image.capabilities().volatile_cache {
            true => self.image.flush(io).await,
            false => Ok(()),
        }
    }

    /// The cache is gone, but for what is to be left of it.
    async fn lose(&self, io: &Io) -> Result<()> {
        let mut blocks = self.blocks.take();
        if !self.plan.some_left {
            return Ok(());
        }
        let mut number = 0;
        blocks.retain(|_, _| {
            number += 1;
            number % 2 == 0
        });
        self.store(io, &blocks).await
    }
}

impl Backstore for Volatile {
    fn capabilities(&self) -> Capabilities {
        let below = self.image.capabilities();
        Capabilities {
            volatile_cache: !below.read_only,
            fua: Fua::Native,
            // The runner's own ways go through reads and writes.
            compare_and_write: 0,
            atomic_writes: None,
            data_access: DataAccess::Bytes,
            ..below
        }
    }

    async fn read(&self, io: &Io, buffer: Buffer<'_>, offset: u64) -> Result<()> {
        self.has_power()?;
        let len = buffer.len() as u64;
        // Before the image is read: a block that is written down meanwhile may be missing there.
        let cached: Vec<(u64, Arc<[u8]>)> = {
            let blocks = self.blocks.borrow();
            let cached = blocks.range(self.places(Extent { offset, len }));
            cached
                .map(|(place, block)| (*place, Arc::clone(&block.bytes)))
                .collect()
        };
        self.image.read(io, buffer, offset).await?;
        for (place, bytes) in cached {
            let at = place * self.block_size - offset;
            buffer.copy_from(at as usize, &bytes);
        }
        Ok(())
    }

    async fn write(
        &self,
        io: &Io,
        buffer: Buffer<'_>,
        offset: u64,
        flags: WriteFlags,
    ) -> Result<()> {
        self.has_power()?;
        if self.image.capabilities().read_only {
            return Err(Error::new(ErrorKind::ReadOnly, "the image is read-only"));
        }
        self.writes.set(self.writes.get() + 1);
        if self.plan.cut == Some(self.writes.get()) {
            self.cut.set(true);
            tracing::warn!(
                writes = self.writes.get(),
                "the layer volatile cuts the power"
            );
            let _alone = self.writing_down.lock().await;
            self.lose(io).await?;
            return self.has_power();
        }
        if !flags.fua {
            self.keep(buffer, offset);
            if self.blocks.borrow().len() as u64 * self.block_size > self.plan.limit {
                let _alone = self.writing_down.lock().await;
                self.write_down(io).await?;
            }
            return Ok(());
        }
        let _alone = self.writing_down.lock().await;
        let stamp = self.keep(buffer, offset);
        let native = self.image.capabilities().fua == Fua::Native;
        let fua = native && self.image.capabilities().volatile_cache;
        self.image
            .write(io, buffer, offset, WriteFlags { fua })
            .await?;
        if !fua {
            self.sync(io).await?;
        }
        let len = buffer.len() as u64;
        self.drop_until(Extent { offset, len }, stamp);
        Ok(())
    }

    async fn flush(&self, io: &Io) -> Result<()> {
        self.has_power()?;
        let _alone = self.writing_down.lock().await;
        self.has_power()?;
        self.write_down(io).await?;
        self.sync(io).await
    }

    async fn unmap(&self, io: &Io, extent: Extent) -> Result<()> {
        self.has_power()?;
        let _alone = self.writing_down.lock().await;
        let stamp = self.stamp.get();
        // Units that are not covered are kept below, so they have to be there.
        self.write_down(io).await?;
        self.image.unmap(io, extent).await?;
        self.drop_until(extent, stamp);
        Ok(())
    }

    async fn write_zeroes(&self, io: &Io, extent: Extent, flags: ZeroFlags) -> Result<()> {
        self.has_power()?;
        let _alone = self.writing_down.lock().await;
        let stamp = self.stamp.get();
        let below = self.image.capabilities();
        let fua = flags.fua && below.volatile_cache && below.fua == Fua::Native;
        let flags_below = ZeroFlags { fua, ..flags };
        self.image.write_zeroes(io, extent, flags_below).await?;
        if flags.fua && !fua {
            self.sync(io).await?;
        }
        // Only now: until then reads find what was there before.
        self.drop_until(extent, stamp);
        Ok(())
    }

    async fn block_status(&self, io: &Io, extent: Extent) -> Result<BlockStatus> {
        self.has_power()?;
        let places = self.places(extent);
        let first = {
            let blocks = self.blocks.borrow();
            let mut cached = blocks.range(places.clone()).map(|(place, _)| *place);
            cached.next()
        };
        let (offset, end) = (extent.offset, extent.end());
        match first {
            Some(place) if place == places.start => Ok(BlockStatus {
                len: ((place + 1) * self.block_size).min(end) - offset,
                mapped: true,
            }),
            first => {
                let until = first.map_or(end, |place| place * self.block_size);
                let len = until - offset;
                self.image.block_status(io, Extent { offset, len }).await
            }
        }
    }

    async fn prefetch(&self, io: &Io, extent: Extent) -> Result<()> {
        self.image.prefetch(io, extent).await
    }

    async fn usage(&self, io: &Io) -> Result<Usage> {
        self.image.usage(io).await
    }

    async fn resize(&self, io: &Io, size: u64) -> Result<()> {
        self.has_power()?;
        let _alone = self.writing_down.lock().await;
        self.write_down(io).await?;
        self.image.resize(io, size).await
    }

    async fn resized(&self, io: &Io, known: u64) {
        self.image.resized(io, known).await;
    }

    async fn close(&self, io: &Io) -> Result<()> {
        let _alone = self.writing_down.lock().await;
        let left = match self.cut.get() {
            true => Ok(()),
            false if self.plan.keep_at_close => self.write_down(io).await,
            false => self.lose(io).await,
        };
        self.image.close(io).await?;
        left
    }
}

impl std::fmt::Debug for Volatile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Volatile")
            .field("plan", &self.plan)
            .field("blocks", &self.blocks.borrow().len())
            .finish_non_exhaustive()
    }
}
