//! A fresh image, and what rules do to it.

use std::path::Path;
use std::rc::Rc;

use tempfile::TempDir;

use super::{Contract, Image, is_disk};
use crate::testing::{HeapMemory, UnorderedEngine, buffer, contents};
use crate::{
    Backstore, Capabilities, Error, Extent, Fua, Handler, Io, OpenRequest, OwnedBuffer, Segment,
    WriteFlags, ZeroFlags,
};

/// How long segments are where nothing depends on it.
const SEGMENT: usize = 4096;

/// A fresh image in a folder of its own.
pub(super) struct Stand<'c, H> {
    pub(super) contract: &'c Contract<H>,
    pub(super) engine: Rc<UnorderedEngine>,
    image: Image,
    folder: TempDir,
}

impl<'c, H: Handler> Stand<'c, H> {
    pub(super) fn new(contract: &'c Contract<H>, seed: u64) -> Result<Self, String> {
        let folder = tempfile::tempdir().map_err(|error| format!("no folder: {error}"))?;
        Ok(Self {
            contract,
            engine: UnorderedEngine::new(seed),
            image: (contract.make)(folder.path()),
            folder,
        })
    }

    /// Another image of the same contract.
    pub(super) fn another(&self, seed: u64) -> Result<Self, String> {
        Self::new(self.contract, seed)
    }

    pub(super) fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Why there can be no image.
    pub(super) fn is_missing(&self) -> Option<&str> {
        self.image.config.as_ref().err().map(String::as_str)
    }

    /// The configuration of the image, with further options.
    pub(super) fn config(&self, options: &str) -> String {
        let config = self.image.config.as_deref().unwrap_or_default();
        format!("{config}{options}")
    }

    pub(super) fn try_open(&self, options: &str, size: u64) -> Result<H::Backstore, Error> {
        self.contract.handler.open(&OpenRequest {
            config: self.config(options).parse()?,
            size,
            block_size: self.contract.block_size,
        })
    }

    pub(super) fn open(&self) -> Result<Disk<H::Backstore>, String> {
        self.open_with("")
    }

    pub(super) fn open_with(&self, options: &str) -> Result<Disk<H::Backstore>, String> {
        let backstore = self
            .try_open(options, self.contract.size)
            .map_err(|error| format!("opening {}: {error}", self.config(options)))?;
        if !is_disk(&backstore) {
            return Err("the image is no disk, and this contract is for disks".to_owned());
        }
        Ok(Disk {
            backstore,
            io: self.engine.io(),
            engine: Rc::clone(&self.engine),
            block: u64::from(self.contract.block_size),
            size: self.contract.size,
        })
    }
}

/// An open image.
pub(super) struct Disk<B> {
    pub(super) backstore: B,
    pub(super) io: Io,
    pub(super) engine: Rc<UnorderedEngine>,
    /// The LUN's block size in bytes.
    pub(super) block: u64,
    /// The LUN's size in bytes.
    pub(super) size: u64,
}

impl<B: Backstore> Disk<B> {
    pub(super) fn capabilities(&self) -> Capabilities {
        self.backstore.capabilities()
    }

    pub(super) fn has_native_fua(&self) -> bool {
        let capabilities = self.capabilities();
        capabilities.volatile_cache && capabilities.fua == Fua::Native
    }

    /// An extent in blocks.
    pub(super) fn blocks(&self, block: u64, blocks: u64) -> Extent {
        Extent {
            offset: block * self.block,
            len: blocks * self.block,
        }
    }

    pub(super) fn write(&self, offset: u64, bytes: &[u8]) -> Result<(), String> {
        self.write_with(offset, bytes, WriteFlags::default())
    }

    pub(super) fn write_with(
        &self,
        offset: u64,
        bytes: &[u8],
        flags: WriteFlags,
    ) -> Result<(), String> {
        let source = in_segments(bytes, &[SEGMENT]);
        let write = self.backstore.write(&self.io, source.view(), offset, flags);
        self.engine
            .run(write)
            .map_err(|error| failed("writing", offset, bytes.len() as u64, &error))
    }

    pub(super) fn read(&self, extent: Extent) -> Result<Vec<u8>, String> {
        let target = buffer(extent.len as usize);
        target.view().fill(0xee);
        let read = self.backstore.read(&self.io, target.view(), extent.offset);
        self.engine
            .run(read)
            .map_err(|error| failed("reading", extent.offset, extent.len, &error))?;
        Ok(contents(&target))
    }

    pub(super) fn read_all(&self) -> Result<Vec<u8>, String> {
        self.read(Extent {
            offset: 0,
            len: self.size,
        })
    }

    /// Makes everything durable that has completed.
    pub(super) fn flush(&self) -> Result<(), String> {
        if !self.capabilities().volatile_cache {
            return Ok(());
        }
        self.engine
            .run(self.backstore.flush(&self.io))
            .map_err(|error| format!("flushing: {error}"))
    }

    pub(super) fn zero(&self, extent: Extent, flags: ZeroFlags) -> Result<(), String> {
        let zero = self.backstore.write_zeroes(&self.io, extent, flags);
        self.engine
            .run(zero)
            .map_err(|error| failed("zeroing", extent.offset, extent.len, &error))
    }

    pub(super) fn unmap(&self, extent: Extent) -> Result<(), String> {
        self.engine
            .run(self.backstore.unmap(&self.io, extent))
            .map_err(|error| failed("unmapping", extent.offset, extent.len, &error))
    }

    pub(super) fn close(self) -> Result<(), String> {
        self.engine
            .run(self.backstore.close(&self.io))
            .map_err(|error| format!("closing: {error}"))
    }

    /// Writes to the whole image, and returns what it holds then.
    pub(super) fn fill(&self, tag: u64) -> Result<Vec<u8>, String> {
        const PIECE: usize = 256 << 10;
        let bytes = pattern(tag, 0, self.size);
        for (number, piece) in bytes.chunks(PIECE).enumerate() {
            self.write((number * PIECE) as u64, piece)?;
        }
        Ok(bytes)
    }

    /// Compares the whole image with what it should hold.
    pub(super) fn compare_all(&self, should: &[u8], when: &str) -> Result<(), String> {
        compare(&self.read_all()?, should, 0, when)
    }
}

pub(super) fn failed(what: &str, offset: u64, len: u64, error: &Error) -> String {
    let kind = error.kind();
    format!("{what} {len} bytes at {offset}: {error} ({kind:?})")
}

pub(super) fn compare(is: &[u8], should: &[u8], offset: u64, when: &str) -> Result<(), String> {
    match is.iter().zip(should).position(|(is, should)| is != should) {
        None => Ok(()),
        Some(at) => Err(format!(
            "{when}: byte {} is {:#04x} instead of {:#04x}",
            offset + at as u64,
            is[at],
            should[at]
        )),
    }
}

/// Bytes that tell who wrote them, and where; none is zero in each eight.
pub(super) fn pattern(tag: u64, offset: u64, len: u64) -> Vec<u8> {
    (offset / 8..(offset + len).div_ceil(8))
        .flat_map(|word| {
            let mixed = (word ^ (tag << 40)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
            (mixed | 1).to_le_bytes()
        })
        .skip((offset % 8) as usize)
        .take(len as usize)
        .collect()
}

/// Memory that holds `bytes` in segments of these lengths, again and again; they lie apart, and in
/// reverse order.
pub(super) fn in_segments(bytes: &[u8], lengths: &[usize]) -> OwnedBuffer {
    const GAP: usize = 3;
    let mut lengths = lengths.iter().cycle();
    let mut left = bytes.len();
    let mut pieces = Vec::new();
    while left > 0 {
        let len = lengths.next().copied().unwrap_or(left).min(left);
        pieces.push(len);
        left -= len;
    }
    let mut end = bytes.len() + GAP * pieces.len();
    let memory = std::sync::Arc::new(HeapMemory::new(end));
    let mut segments = Vec::with_capacity(pieces.len());
    for len in pieces {
        end -= len + GAP;
        segments.push(Segment { offset: end, len });
    }
    let buffer = OwnedBuffer::new(memory, segments)
        .expect("there is room for all segments and the gaps between them");
    buffer.view().copy_from(0, bytes);
    buffer
}
