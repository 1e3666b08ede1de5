//! One disk in memory.

use std::cell::{Cell, RefCell};

use tcmu_handler::{
    AtomicWrites, Backstore, BlockStatus, Buffer, Capabilities, Comparison, Error, ErrorKind,
    Extent, Io, Result, Unmap, WriteFlags, ZeroFlags,
};

use crate::chunks::{CHUNK, Chunks};

/// The longest write in bytes that is claimed to be atomic, which all are, and the longest
/// compare-and-write: no command keeps the reactor from other LUNs for longer.
const LONGEST_ATOMIC: u32 = 1 << 20;

/// The smallest block that there is.
const SECTOR: u32 = 512;

/// A sparse disk in memory. Each request is done as a whole before the next begins.
#[derive(Debug)]
pub struct Ram {
    chunks: RefCell<Chunks>,
    size: Cell<u64>,
    read_only: bool,
}

impl Ram {
    /// A disk of `size` bytes, all zero.
    pub fn new(size: u64, read_only: bool) -> Self {
        Self {
            chunks: RefCell::default(),
            size: Cell::new(size),
            read_only,
        }
    }

    /// Refuses what would take memory beyond the disk's size.
    fn within(&self, extent: Extent) -> Result<()> {
        if extent.end() <= self.size.get() {
            return Ok(());
        }
        Err(Error::new(
            ErrorKind::OutOfRange,
            format!(
                "{} bytes at {} reach beyond the disk's {} bytes",
                extent.len,
                extent.offset,
                self.size.get()
            ),
        ))
    }

    /// Refuses changes of a read-only disk.
    fn changing(&self, extent: Extent) -> Result<()> {
        if self.read_only {
            return Err(Error::new(ErrorKind::ReadOnly, "the disk is read-only"));
        }
        self.within(extent)
    }
}

impl Backstore for Ram {
    fn capabilities(&self) -> Capabilities {
        let writable = !self.read_only;
        Capabilities {
            read_only: self.read_only,
            unmap: writable.then_some(Unmap {
                granularity: CHUNK,
                reads_zeroes: true,
            }),
            write_zeroes: writable,
            compare_and_write: if writable { LONGEST_ATOMIC } else { 0 },
            atomic_writes: writable.then_some(AtomicWrites {
                max_len: LONGEST_ATOMIC,
                alignment: SECTOR,
                granularity: SECTOR,
            }),
            ..Capabilities::new(self.size.get())
        }
    }

    async fn read(&self, _io: &Io, buffer: Buffer<'_>, offset: u64) -> Result<()> {
        let len = buffer.len() as u64;
        self.within(Extent { offset, len })?;
        self.chunks.borrow().load(buffer, offset);
        Ok(())
    }

    async fn write(
        &self,
        _io: &Io,
        buffer: Buffer<'_>,
        offset: u64,
        _flags: WriteFlags,
    ) -> Result<()> {
        let len = buffer.len() as u64;
        self.changing(Extent { offset, len })?;
        self.chunks
            .borrow_mut()
            .store(buffer, offset)
            .map_err(|source| {
                Error::new(ErrorKind::NoSpace, "no memory left to write to").with_source(source)
            })
    }

    async fn unmap(&self, _io: &Io, extent: Extent) -> Result<()> {
        self.changing(extent)?;
        self.chunks.borrow_mut().clear(extent);
        Ok(())
    }

    async fn write_zeroes(&self, io: &Io, extent: Extent, _flags: ZeroFlags) -> Result<()> {
        self.unmap(io, extent).await
    }

    async fn compare_and_write(
        &self,
        io: &Io,
        expected: Buffer<'_>,
        new: Buffer<'_>,
        offset: u64,
        flags: WriteFlags,
    ) -> Result<Comparison> {
        let len = expected.len() as u64;
        self.changing(Extent { offset, len })?;
        let difference = self.chunks.borrow().difference(expected, offset);
        if let Some(at) = difference {
            return Ok(Comparison::DiffersAt(at));
        }
        // A write does not wait for anything: nothing comes in between.
        self.write(io, new, offset, flags).await?;
        Ok(Comparison::Equal)
    }

    async fn block_status(&self, _io: &Io, extent: Extent) -> Result<BlockStatus> {
        self.within(extent)?;
        let (len, mapped) = self.chunks.borrow().status(extent);
        Ok(BlockStatus { len, mapped })
    }

    async fn resize(&self, _io: &Io, size: u64) -> Result<()> {
        let beyond = Extent {
            offset: size,
            len: u64::MAX - size,
        };
        self.chunks.borrow_mut().clear(beyond);
        self.size.set(size);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tcmu_handler::testing::{Contract, Disk, block_on, buffer, contents, io, scattered, steps};
    use tcmu_handler::{Handler, OpenRequest};

    use super::*;
    use crate::RamHandler;

    const BLOCK: u32 = 4096;
    const BLOCKS: u64 = 5 * CHUNK / BLOCK as u64 - 1;

    tcmu_handler::contract_tests!(Contract::new(RamHandler, |_| "").forgets_when_closed());

    fn open(config: &str, size: u64) -> Result<Ram> {
        RamHandler.open(&OpenRequest {
            config: config.parse()?,
            size,
            block_size: BLOCK,
        })
    }

    fn write(ram: &Ram, byte: u8, len: u64, offset: u64) -> Result<()> {
        let bytes = scattered(&vec![byte; len as usize], 1536);
        block_on(ram.write(&io(), bytes.view(), offset, WriteFlags::default()))
    }

    fn read(ram: &Ram, len: u64, offset: u64) -> Result<Vec<u8>> {
        let bytes = buffer(len as usize);
        bytes.view().fill(9);
        block_on(ram.read(&io(), bytes.view(), offset))?;
        Ok(contents(&bytes))
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn is_a_disk(steps in steps(BLOCKS, 40)) {
            let ram = open("", BLOCKS * u64::from(BLOCK)).unwrap();
            Disk::new(BLOCKS, BLOCK).run(&ram, &steps);
        }
    }

    #[test]
    fn takes_memory_for_what_is_written_only() {
        let ram = open("test", u64::MAX - 4095).unwrap();
        write(&ram, 1, 4096, 1 << 60).unwrap();
        write(&ram, 2, 2 * CHUNK, CHUNK / 2).unwrap();
        assert_eq!(read(&ram, 4096, 1 << 61).unwrap(), [0; 4096]);
        assert_eq!(ram.chunks.borrow().count(), 4);
    }

    #[test]
    fn unmapping_gives_whole_chunks_back() {
        let ram = open("", u64::MAX - 4095).unwrap();
        write(&ram, 1, 4 * CHUNK, 0).unwrap();
        write(&ram, 1, CHUNK, 1 << 60).unwrap();
        let extent = Extent {
            offset: CHUNK - 4096,
            len: 2 * CHUNK,
        };
        block_on(ram.unmap(&io(), extent)).unwrap();
        assert_eq!(ram.chunks.borrow().count(), 4);
        let extent = Extent {
            offset: 0,
            len: 1 << 60,
        };
        block_on(ram.unmap(&io(), extent)).unwrap();
        assert_eq!(ram.chunks.borrow().count(), 1);
        assert_eq!(read(&ram, 4096, 1 << 60).unwrap(), [1; 4096]);
    }

    fn status(ram: &Ram, offset: u64, len: u64) -> (u64, bool) {
        let BlockStatus { len, mapped } =
            block_on(ram.block_status(&io(), Extent { offset, len })).unwrap();
        (len, mapped)
    }

    #[test]
    fn knows_what_takes_memory() {
        let ram = open("", 10 * CHUNK).unwrap();
        assert_eq!(status(&ram, 512, 9 * CHUNK), (9 * CHUNK, false));
        write(&ram, 1, 2 * CHUNK, 2 * CHUNK + 512).unwrap();
        write(&ram, 1, 512, 6 * CHUNK).unwrap();
        assert_eq!(status(&ram, 0, 10 * CHUNK), (2 * CHUNK, false));
        assert_eq!(status(&ram, 512, CHUNK), (CHUNK, false));
        assert_eq!(status(&ram, 2 * CHUNK, 8 * CHUNK), (3 * CHUNK, true));
        assert_eq!(status(&ram, 3 * CHUNK + 512, 1024), (1024, true));
        assert_eq!(status(&ram, 5 * CHUNK, 5 * CHUNK), (CHUNK, false));
        assert_eq!(status(&ram, 6 * CHUNK, 4 * CHUNK), (CHUNK, true));
        assert_eq!(status(&ram, 7 * CHUNK, 3 * CHUNK), (3 * CHUNK, false));
    }

    #[test]
    fn compares_and_writes() {
        let ram = open("", 4 * CHUNK).unwrap();
        let offset = CHUNK - 1024;
        write(&ram, 7, 1024, offset).unwrap();
        let swap = |expected: &[u8], new: u8| {
            let (expected, new) = (scattered(expected, 300), scattered(&[new; 2048], 700));
            let flags = WriteFlags::default();
            block_on(ram.compare_and_write(&io(), expected.view(), new.view(), offset, flags))
        };
        let mut expected = [vec![7; 1024], vec![0; 1024]].concat();
        for at in [0, 1023, 1024, 2047] {
            expected[at] ^= 1;
            assert_eq!(swap(&expected, 9).unwrap(), Comparison::DiffersAt(at));
            expected[at] ^= 1;
        }
        assert_eq!(ram.chunks.borrow().count(), 1);
        assert_eq!(swap(&expected, 9).unwrap(), Comparison::Equal);
        assert_eq!(read(&ram, 2048, offset).unwrap(), [9; 2048]);
        assert_eq!(swap(&expected, 9).unwrap(), Comparison::DiffersAt(0));
    }

    #[test]
    fn what_lies_beyond_the_end_stays_out() {
        let ram = open("", 2 * CHUNK).unwrap();
        for result in [
            write(&ram, 1, 4096, 2 * CHUNK),
            write(&ram, 1, 4096, u64::MAX - 4095),
            read(&ram, 8192, 2 * CHUNK - 4096).map(drop),
        ] {
            assert_eq!(result.unwrap_err().kind(), ErrorKind::OutOfRange);
        }
        assert_eq!(ram.chunks.borrow().count(), 0);
    }

    #[test]
    fn a_disk_that_shrank_grows_with_zeroes() {
        let ram = open("", 4 * CHUNK).unwrap();
        write(&ram, 1, 4 * CHUNK, 0).unwrap();
        block_on(ram.resize(&io(), CHUNK + 4096)).unwrap();
        assert_eq!(ram.chunks.borrow().count(), 2);
        block_on(ram.resize(&io(), 4 * CHUNK)).unwrap();
        assert_eq!(ram.capabilities().size, 4 * CHUNK);
        assert_eq!(read(&ram, 4096, CHUNK).unwrap(), [1; 4096]);
        assert_eq!(read(&ram, 4096, CHUNK + 4096).unwrap(), [0; 4096]);
        assert_eq!(read(&ram, CHUNK, 3 * CHUNK).unwrap(), [0; CHUNK as usize]);
    }

    #[test]
    fn a_read_only_disk_claims_and_takes_no_change() {
        let ram = open(";readonly=on", CHUNK).unwrap();
        let capabilities = ram.capabilities();
        assert!(capabilities.read_only);
        assert_eq!(capabilities.unmap, None);
        assert!(!capabilities.write_zeroes);
        let error = write(&ram, 1, 4096, 0).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ReadOnly);
        assert_eq!(read(&ram, 4096, 0).unwrap(), [0; 4096]);
    }

    #[test]
    fn refuses_options_that_it_does_not_have() {
        for config in [";size=3", ";readonly=maybe"] {
            let error = open(config, CHUNK).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidConfig, "{error}");
            assert!(RamHandler.check(&config.parse().unwrap()).is_err());
        }
    }
}
