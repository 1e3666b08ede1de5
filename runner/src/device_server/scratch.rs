//! Memory for commands that look at the bytes on the medium themselves, a piece at a time.

use std::cell::{Cell, RefCell};
use std::io;

use tcmu_handler::{Backstore, Buffer, Error, ErrorKind, Extent, Io, OwnedBuffer, WriteFlags};

use super::range_lock::{RangeGuard, RangeLock};
use super::unit::Unit;

/// How many commands of a unit have a piece of memory at a time; more wait for their turn. So a unit
/// takes half a MiB at the most, whatever initiators send.
const BUFFERS: usize = 8;

/// The size in bytes of a piece, unless a block is larger.
const PIECE_BYTES: u32 = 64 << 10;

impl Unit {
    /// The size of a piece in bytes.
    pub(super) fn piece_len(&self) -> u64 {
        let block_size = self.block_size();
        u64::from((PIECE_BYTES / block_size).max(1)) * u64::from(block_size)
    }
}

/// The parts of `extent`, which are `len` bytes long but for the last.
pub(super) fn pieces(extent: Extent, len: u64) -> impl Iterator<Item = Extent> {
    let mut offset = extent.offset;
    std::iter::from_fn(move || {
        let len = len.min(extent.end().saturating_sub(offset));
        let piece = Extent { offset, len };
        offset += len;
        (len != 0).then_some(piece)
    })
}

/// The scratch memory of a unit; taken from the system as it is needed, and kept.
#[derive(Debug, Default)]
pub(super) struct Scratch {
    /// Buffer `n` is for the command that holds byte `n`.
    turns: RangeLock,
    next: Cell<usize>,
    buffers: RefCell<[Option<OwnedBuffer>; BUFFERS]>,
}

impl Scratch {
    /// Memory of `len` bytes, which has to be the same every time. Whoever has it must not wait for
    /// a range of the unit: those that hold one wait here.
    pub(super) async fn take(&self, io: &Io, len: u64) -> io::Result<Piece<'_>> {
        let index = self.next.get();
        self.next.set((index + 1) % BUFFERS);
        let turn = Extent {
            offset: index as u64,
            len: 1,
        };
        let turn = self.turns.exclusive(turn).await;
        let kept = self.buffers.borrow_mut()[index].take();
        let memory = match kept {
            Some(memory) => memory,
            None => io.allocate(usize::try_from(len).map_err(io::Error::other)?)?,
        };
        Ok(Piece {
            scratch: self,
            index,
            memory: Some(memory),
            in_use: Cell::new(false),
            _turn: turn,
        })
    }
}

/// A piece of memory in a command's hands.
#[derive(Debug)]
pub(super) struct Piece<'a> {
    scratch: &'a Scratch,
    index: usize,
    memory: Option<OwnedBuffer>,
    /// A request of the backstore is using it.
    in_use: Cell<bool>,
    _turn: RangeGuard<'a>,
}

impl Piece<'_> {
    /// Reads what the backstore has at `extent`, which is not longer than the memory.
    pub(super) async fn read<B: Backstore>(
        &self,
        io: &Io,
        backstore: &B,
        extent: Extent,
    ) -> Result<Buffer<'_>, Error> {
        let part = self.part(extent.len)?;
        self.in_use.set(true);
        let result = backstore.read(io, part, extent.offset).await;
        self.in_use.set(false);
        result.map(|()| part)
    }

    /// Writes the memory to `extent`, which is not longer.
    pub(super) async fn write<B: Backstore>(
        &self,
        io: &Io,
        backstore: &B,
        extent: Extent,
        flags: WriteFlags,
    ) -> Result<(), Error> {
        let part = self.part(extent.len)?;
        self.in_use.set(true);
        let result = backstore.write(io, part, extent.offset, flags).await;
        self.in_use.set(false);
        result
    }

    fn part(&self, len: u64) -> Result<Buffer<'_>, Error> {
        self.memory
            .as_ref()
            .and_then(|memory| memory.view().slice(0..usize::try_from(len).ok()?).ok())
            .ok_or_else(|| Error::new(ErrorKind::Internal, "a piece of memory is too short"))
    }
}

impl Drop for Piece<'_> {
    /// Keeps the memory for the next command; but not that of a command which was given up, since
    /// the kernel may still be reading into it.
    fn drop(&mut self) {
        if !self.in_use.get() {
            self.scratch.buffers.borrow_mut()[self.index] = self.memory.take();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::Future;
    use std::pin::pin;
    use std::task::{Context, Waker};

    use tcmu_handler::testing::{block_on, io};
    use tcmu_handler::{Capabilities, Result};

    use super::*;

    #[test]
    fn pieces_cover_the_range() {
        let extent = Extent {
            offset: 1000,
            len: 250,
        };
        let found: Vec<_> = pieces(extent, 100).map(|piece| piece.offset).collect();
        assert_eq!(found, [1000, 1100, 1200]);
        assert_eq!(pieces(extent, 100).map(|piece| piece.len).sum::<u64>(), 250);
        assert_eq!(pieces(Extent { len: 0, ..extent }, 100).count(), 0);
        let end = Extent {
            offset: u64::MAX - 10,
            len: 10,
        };
        assert_eq!(pieces(end, 8).last().map(|piece| piece.len), Some(2));
    }

    #[test]
    fn memory_is_used_again_and_bounded() {
        let scratch = Scratch::default();
        let io = io();
        let take = || block_on(scratch.take(&io, 4096)).unwrap();
        let first: Vec<_> = (0..BUFFERS).map(|_| take()).collect();
        let memory = |piece: &Piece<'_>| {
            let view = piece.part(4096).unwrap();
            view.memory().base() as usize
        };
        let places: Vec<_> = first.iter().map(memory).collect();
        let mut late = pin!(scratch.take(&io, 4096));
        let mut context = Context::from_waker(Waker::noop());
        assert!(late.as_mut().poll(&mut context).is_pending());
        drop(first);
        assert_eq!(memory(&block_on(late).unwrap()), places[0]);
        assert_eq!(memory(&take()), places[1]);
    }

    /// Never ends a read.
    struct Stuck;

    impl Backstore for Stuck {
        fn capabilities(&self) -> Capabilities {
            Capabilities::new(4096)
        }

        async fn read(&self, _: &Io, _: Buffer<'_>, _: u64) -> Result<()> {
            std::future::pending().await
        }

        async fn write(&self, _: &Io, _: Buffer<'_>, _: u64, _: WriteFlags) -> Result<()> {
            Ok(())
        }
    }

    #[test]
    fn memory_that_the_kernel_may_still_fill_is_not_used_again() {
        let scratch = Scratch::default();
        let io = io();
        let extent = Extent {
            offset: 0,
            len: 4096,
        };
        let piece = block_on(scratch.take(&io, 4096)).unwrap();
        {
            let mut read = pin!(piece.read(&io, &Stuck, extent));
            let mut context = Context::from_waker(Waker::noop());
            assert!(read.as_mut().poll(&mut context).is_pending());
        }
        drop(piece);
        assert!(scratch.buffers.borrow().iter().all(Option::is_none));
        let piece = block_on(scratch.take(&io, 4096)).unwrap();
        block_on(piece.write(&io, &Stuck, extent, WriteFlags::default())).unwrap();
        drop(piece);
        assert!(scratch.buffers.borrow().iter().any(Option::is_some));
    }
}
