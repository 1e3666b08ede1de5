//! Which operations a request becomes.

use std::cell::RefCell;
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};

use tcmu_handler::testing::{PlainEngine, block_on, scattered};
use tcmu_handler::{
    Backstore, Engine, Extent, Io, Operation, OwnedBuffer, Segment, Ticket, WriteFlags, ZeroFlags,
};
use tempfile::tempdir;

use super::{config, open};

#[derive(Debug, PartialEq, Eq)]
enum Seen {
    /// The address of the memory, the segments, and the offset.
    Read(usize, Vec<Segment>, u64),
    /// The same, and whether it is durable.
    Write(usize, Vec<Segment>, u64, bool),
    Sync,
    Allocate,
}

#[derive(Default)]
struct Recorder {
    engine: PlainEngine,
    seen: RefCell<Vec<Seen>>,
}

fn place(buffer: &tcmu_handler::Buffer<'_>) -> (usize, Vec<Segment>) {
    let base = Arc::as_ptr(buffer.memory()).cast::<u8>() as usize;
    (base, buffer.segments().collect())
}

impl Engine for Recorder {
    fn submit(&self, operation: Operation<'_>) -> Ticket {
        self.seen.borrow_mut().push(match &operation {
            Operation::Read { buffer, offset, .. } => {
                let (base, segments) = place(buffer);
                Seen::Read(base, segments, *offset)
            }
            Operation::Write {
                buffer,
                offset,
                durable,
                ..
            } => {
                let (base, segments) = place(buffer);
                Seen::Write(base, segments, *offset, *durable)
            }
            Operation::Sync { .. } => Seen::Sync,
            Operation::Allocate { .. } => Seen::Allocate,
            other => unreachable!("{other:?} on a file"),
        });
        self.engine.submit(operation)
    }

    fn poll(&self, ticket: Ticket, context: &mut Context<'_>) -> Poll<io::Result<u32>> {
        self.engine.poll(ticket, context)
    }

    fn forget(&self, ticket: Ticket) {
        self.engine.forget(ticket);
    }

    fn run_blocking(&self, job: Box<dyn FnOnce() + Send>) {
        self.engine.run_blocking(job);
    }

    fn allocate(&self, len: usize) -> io::Result<OwnedBuffer> {
        self.engine.allocate(len)
    }
}

const SIZE: u64 = 1 << 20;

fn recorded() -> (Rc<Recorder>, Io) {
    let recorder = Rc::new(Recorder::default());
    (Rc::clone(&recorder), Io::new(recorder))
}

#[test]
fn a_request_is_one_operation_on_its_own_memory() {
    let dir = tempdir().unwrap();
    let image = open(&config(&dir.path().join("x"), ";create=on"), SIZE, 512).unwrap();
    let (recorder, io) = recorded();
    let buffer = scattered(&[7; 64 << 10], 4096);
    let (base, segments) = place(&buffer.view());
    let flags = |fua| WriteFlags { fua };
    block_on(image.write(&io, buffer.view(), 8192, flags(false))).unwrap();
    block_on(image.write(&io, buffer.view(), 4096, flags(true))).unwrap();
    block_on(image.read(&io, buffer.view(), 512)).unwrap();
    assert_eq!(
        *recorder.seen.borrow(),
        [
            Seen::Write(base, segments.clone(), 8192, false),
            Seen::Write(base, segments.clone(), 4096, true),
            Seen::Read(base, segments, 512),
        ]
    );
}

#[test]
fn what_must_be_durable_is_synchronised() {
    let dir = tempdir().unwrap();
    let path = dir.path().join("x");
    let image = open(&config(&path, ";create=on"), SIZE, 512).unwrap();
    if !image.capabilities().write_zeroes {
        return super::skip("durable zeroes", "the file system punches no holes");
    }
    let extent = Extent {
        offset: 0,
        len: SIZE,
    };
    let zero = |fua| ZeroFlags {
        fua,
        may_unmap: true,
    };
    let (recorder, io) = recorded();
    block_on(image.write_zeroes(&io, extent, zero(false))).unwrap();
    assert_eq!(recorder.seen.take(), [Seen::Allocate]);
    block_on(image.write_zeroes(&io, extent, zero(true))).unwrap();
    assert_eq!(recorder.seen.take(), [Seen::Allocate, Seen::Sync]);
    block_on(image.flush(&io)).unwrap();
    assert_eq!(recorder.seen.take(), [Seen::Sync]);
    block_on(image.close(&io)).unwrap();
    assert_eq!(recorder.seen.take(), [Seen::Sync]);
    drop(image);
    let image = open(&config(&path, ";readonly=on"), SIZE, 512).unwrap();
    block_on(image.close(&io)).unwrap();
    assert_eq!(recorder.seen.take(), []);
}
