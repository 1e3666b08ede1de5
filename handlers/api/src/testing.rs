//! What the tests of handlers need: the contract with the runner as ready-made tests
//! ([`contract_tests!`](crate::contract_tests)), memory, two I/O engines, an executor, and a model of a
//! disk.
//!
//! Everything here is plain and slow, and runs anywhere. The [`PlainEngine`] does what it is told at
//! once; the [`UnorderedEngine`] behaves as badly as kernels and disks may.

pub mod contract;
mod elsewhere;
mod model;
mod random;
mod record;
mod together;
mod unordered;

pub use contract::{Broken, Contract, Image, Kept, Rule};
pub use model::{Disk, Step, steps};
pub use random::Random;
pub use record::{FileId, Record, durable};
pub use together::Together;
pub use unordered::{Fault, Left, OperationKind, UnorderedEngine};

use std::cell::RefCell;
use std::future::Future;
use std::io;
use std::mem;
use std::os::unix::fs::FileExt;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::thread::{self, Thread};

use rustix::fs::{FallocateFlags, fallocate};

use self::elsewhere::Elsewhere;
use crate::{Engine, File, Io, Memory, Operation, OwnedBuffer, Segment, Ticket};

/// Memory on the heap.
#[derive(Debug)]
pub struct HeapMemory(Box<[AtomicU8]>);

impl HeapMemory {
    /// `len` bytes of zeroes.
    pub fn new(len: usize) -> Self {
        Self((0..len).map(|_| AtomicU8::new(0)).collect())
    }
}

// SAFETY: the box holds `len` bytes at a fixed address for as long as `self` lives, and atomics may
// be written through a shared reference.
#[allow(unsafe_code)]
unsafe impl Memory for HeapMemory {
    fn base(&self) -> *mut u8 {
        self.0.as_ptr().cast::<u8>().cast_mut()
    }

    fn len(&self) -> usize {
        self.0.len()
    }

    fn load(&self, offset: usize, to: &mut [u8]) {
        for (from, to) in self.0[offset..].iter().zip(to) {
            *to = from.load(Ordering::Relaxed);
        }
    }

    fn store(&self, offset: usize, from: &[u8]) {
        for (from, to) in from.iter().zip(&self.0[offset..]) {
            to.store(*from, Ordering::Relaxed);
        }
    }

    fn fill(&self, offset: usize, len: usize, byte: u8) {
        for to in &self.0[offset..offset + len] {
            to.store(byte, Ordering::Relaxed);
        }
    }
}

/// A buffer of `len` bytes of zeroes in one segment.
pub fn buffer(len: usize) -> OwnedBuffer {
    OwnedBuffer::whole(Arc::new(HeapMemory::new(len)))
}

/// A buffer that holds `bytes`, scattered over segments of `piece` bytes in reverse order.
pub fn scattered(bytes: &[u8], piece: usize) -> OwnedBuffer {
    let memory = Arc::new(HeapMemory::new(bytes.len()));
    let mut segments = Vec::new();
    let mut end = bytes.len();
    for part in bytes.chunks(piece) {
        end -= part.len();
        segments.push(Segment {
            offset: end,
            len: part.len(),
        });
    }
    let buffer = OwnedBuffer::new(memory, segments)
        .expect("the segments were cut out of the memory's own length");
    buffer.view().copy_from(0, bytes);
    buffer
}

/// The bytes of a buffer.
pub fn contents(buffer: &OwnedBuffer) -> Vec<u8> {
    let mut bytes = vec![0; buffer.view().len()];
    buffer.view().copy_to(0, &mut bytes);
    bytes
}

/// Bytes at an address that direct I/O takes.
struct Aligned {
    bytes: Vec<u8>,
    start: usize,
    len: usize,
}

impl Aligned {
    const ALIGN: usize = 4096;

    fn new(len: usize) -> Self {
        let bytes = vec![0; len + Self::ALIGN];
        let start = bytes.as_ptr().align_offset(Self::ALIGN);
        Self { bytes, start, len }
    }

    fn as_mut(&mut self) -> &mut [u8] {
        &mut self.bytes[self.start..self.start + self.len]
    }
}

/// Does every operation at once, on the calling thread, through a copy; only what waits for others
/// does so on a thread of its own.
#[derive(Debug, Default)]
pub struct PlainEngine {
    results: RefCell<Vec<Outcome>>,
}

#[derive(Debug)]
enum Outcome {
    Now(io::Result<u32>),
    Elsewhere(Elsewhere),
    Taken,
}

/// An [`Io`] on a [`PlainEngine`].
pub fn io() -> Io {
    Io::new(Rc::new(PlainEngine::default()))
}

impl PlainEngine {
    fn run(operation: Operation<'_>) -> io::Result<u32> {
        let file = |file: &File| file.try_clone().map(std::fs::File::from);
        match operation {
            Operation::Read {
                file: from,
                buffer,
                offset,
            } => {
                let mut bytes = Aligned::new(buffer.len());
                let count = file(from)?.read_at(bytes.as_mut(), offset)?;
                buffer.copy_from(0, &bytes.as_mut()[..count]);
                Ok(count as u32)
            }
            Operation::Write {
                file: to,
                buffer,
                offset,
                durable,
                in_memory: _,
            } => {
                let mut bytes = Aligned::new(buffer.len());
                buffer.copy_to(0, bytes.as_mut());
                let to = file(to)?;
                let count = to.write_at(bytes.as_mut(), offset)?;
                if durable {
                    to.sync_data()?;
                }
                Ok(count as u32)
            }
            Operation::Sync { file: of } => file(of)?.sync_data().map(|()| 0),
            Operation::Allocate { file, mode, extent } => {
                let mode = FallocateFlags::from_bits_retain(mode as u32);
                fallocate(file, mode, extent.offset, extent.len)?;
                Ok(0)
            }
            // Done elsewhere.
            Operation::Send { .. } | Operation::Receive { .. } | Operation::Wait { .. } => {
                Err(io::ErrorKind::Unsupported.into())
            }
        }
    }
}

impl Engine for PlainEngine {
    fn submit(&self, operation: Operation<'_>) -> Ticket {
        let mut results = self.results.borrow_mut();
        results.push(match Elsewhere::start(&operation) {
            Some(elsewhere) => Outcome::Elsewhere(elsewhere),
            None => Outcome::Now(Self::run(operation)),
        });
        Ticket(results.len() as u32 - 1)
    }

    fn poll(&self, ticket: Ticket, context: &mut Context<'_>) -> Poll<io::Result<u32>> {
        let mut results = self.results.borrow_mut();
        let Some(outcome) = results.get_mut(ticket.0 as usize) else {
            return Poll::Ready(Err(io::Error::other("no such operation")));
        };
        let result = match mem::replace(outcome, Outcome::Taken) {
            Outcome::Now(result) => result,
            Outcome::Elsewhere(elsewhere) => match elsewhere.poll(context) {
                Poll::Ready(result) => result,
                Poll::Pending => {
                    *outcome = Outcome::Elsewhere(elsewhere);
                    return Poll::Pending;
                }
            },
            Outcome::Taken => Err(io::Error::other("no such operation")),
        };
        Poll::Ready(result)
    }

    fn forget(&self, ticket: Ticket) {
        if let Some(outcome) = self.results.borrow_mut().get_mut(ticket.0 as usize) {
            *outcome = Outcome::Taken;
        }
    }

    fn run_blocking(&self, job: Box<dyn FnOnce() + Send>) {
        thread::spawn(job);
    }

    fn allocate(&self, len: usize) -> io::Result<OwnedBuffer> {
        Ok(buffer(len))
    }
}

/// Runs a future to its end on this thread.
pub fn block_on<F: Future>(future: F) -> F::Output {
    struct Unpark(Thread);
    impl Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }
    let waker = Waker::from(Arc::new(Unpark(thread::current())));
    let mut future = pin!(future);
    loop {
        match future.as_mut().poll(&mut Context::from_waker(&waker)) {
            Poll::Ready(output) => return output,
            Poll::Pending => thread::park(),
        }
    }
}
