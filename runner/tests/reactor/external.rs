//! Backstores on a library with threads of its own.

use std::cell::RefCell;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Arc, Mutex};
use std::thread;

use tcmu::scsi::Status;
use tcmu_handler::{
    Backstore, Buffer, Capabilities, Completer, Error, ErrorKind, Io, Memory, Result, WriteFlags,
};

use crate::lun::{BLOCK, Lun, SIZE, pattern};

const GOOD: u8 = Status::Good.code();
const CHECK_CONDITION: u8 = Status::CheckCondition.code();

/// Where bytes are in the memory, how many, and where on the disk.
type Pieces = Vec<(usize, usize, u64)>;

/// What the library is asked for.
struct Job {
    memory: Arc<dyn Memory>,
    pieces: Pieces,
    write: bool,
    done: Completer,
}

/// A disk in a library's hands: it does several jobs, then completes them in the opposite order.
pub(crate) struct Foreign {
    jobs: SyncSender<Job>,
    /// Lists to be used again.
    spare: Arc<Mutex<Vec<Pieces>>>,
}

impl Foreign {
    pub(crate) fn new() -> Self {
        let (jobs, queue) = sync_channel::<Job>(256);
        let spare: Arc<Mutex<Vec<_>>> = Arc::default();
        let back = Arc::clone(&spare);
        thread::spawn(move || {
            let mut disk = vec![0; SIZE as usize];
            let mut done = Vec::new();
            while let Ok(first) = queue.recv() {
                for mut job in std::iter::once(first).chain(queue.try_iter().take(3)) {
                    for &(offset, len, at) in &job.pieces {
                        let bytes = &mut disk[at as usize..at as usize + len];
                        if job.write {
                            job.memory.load(offset, bytes);
                        } else {
                            job.memory.store(offset, bytes);
                        }
                    }
                    job.pieces.clear();
                    back.lock().unwrap().push(job.pieces);
                    done.push(job.done);
                }
                for done in done.drain(..).rev() {
                    done.complete(0);
                }
            }
        });
        Self { jobs, spare }
    }

    async fn run(&self, io: &Io, buffer: Buffer<'_>, offset: u64, write: bool) -> Result<()> {
        let mut pieces = self.spare.lock().unwrap().pop().unwrap_or_default();
        let mut at = offset;
        for segment in buffer.segments() {
            pieces.push((segment.offset, segment.len, at));
            at += segment.len as u64;
        }
        let (done, operation) = io.external(Arc::clone(buffer.memory()));
        let job = Job {
            memory: Arc::clone(buffer.memory()),
            pieces,
            write,
            done,
        };
        self.jobs.send(job).unwrap();
        let (result, _memory) = operation.await;
        let result = result.map_err(|error| Error::os("in the library", error))?;
        assert_eq!(result, 0);
        Ok(())
    }
}

impl Backstore for Foreign {
    fn capabilities(&self) -> Capabilities {
        Capabilities::new(SIZE)
    }

    async fn read(&self, io: &Io, buffer: Buffer<'_>, offset: u64) -> Result<()> {
        self.run(io, buffer, offset, false).await
    }

    async fn write(&self, io: &Io, buffer: Buffer<'_>, offset: u64, _: WriteFlags) -> Result<()> {
        self.run(io, buffer, offset, true).await
    }
}

#[test]
fn many_commands_go_through_a_library_and_come_back() {
    let mut lun = Lun::new(Foreign::new());
    for round in 0..50u32 {
        let data: Vec<_> = (0..16)
            .map(|lane| pattern(u64::from(round * 16 + lane), 4 * BLOCK))
            .collect();
        let writes: Vec<_> = (0..16)
            .map(|lane| lun.write(lane * 8, &data[lane as usize]))
            .collect();
        for tag in writes {
            assert_eq!(lun.wait(tag).status, GOOD);
        }
        let reads: Vec<_> = (0..16).map(|lane| lun.read(lane * 8, 4)).collect();
        for (tag, data) in reads.into_iter().zip(&data) {
            let finished = lun.wait(tag);
            assert_eq!((finished.status, &finished.data_in), (GOOD, data));
        }
    }
}

/// Begins an operation and panics; the test ends the operation.
struct Panics {
    begun: Arc<Mutex<Option<Completer>>>,
}

impl Backstore for Panics {
    fn capabilities(&self) -> Capabilities {
        Capabilities::new(SIZE)
    }

    async fn read(&self, io: &Io, buffer: Buffer<'_>, offset: u64) -> Result<()> {
        if offset == 0 {
            let (completer, mut operation) = io.external(Arc::clone(buffer.memory()));
            let begin = std::future::poll_fn(|context| {
                // The operation knows whom to wake.
                let _ = std::pin::Pin::new(&mut operation).poll(context);
                std::task::Poll::Ready(())
            });
            begin.await;
            *self.begun.lock().unwrap() = Some(completer);
            panic!("the test wants it so");
        }
        buffer.fill(1);
        Ok(())
    }

    async fn write(&self, _: &Io, _: Buffer<'_>, _: u64, _: WriteFlags) -> Result<()> {
        Err(Error::new(ErrorKind::Unsupported, "no"))
    }
}

#[test]
fn a_command_that_panicked_is_not_answered_while_a_library_uses_its_memory() {
    let begun = Arc::new(Mutex::new(None));
    let mut lun = Lun::new(Panics {
        begun: Arc::clone(&begun),
    });
    let panicked = lun.read(0, 8);
    for block in 1..20 {
        let tag = lun.read(block, 1);
        assert_eq!(lun.wait(tag).status, GOOD);
    }
    assert!(!lun.has_finished(panicked), "its memory is free to be used");
    let completer = begun.lock().unwrap().take().unwrap();
    thread::spawn(move || completer.complete(0));
    assert_eq!(lun.wait(panicked).status, CHECK_CONDITION);
}

/// Becomes larger or smaller when the test says so.
struct Elastic {
    size: Arc<AtomicU64>,
    changes: RefCell<futures_channel::mpsc::UnboundedReceiver<u64>>,
}

impl Backstore for Elastic {
    fn capabilities(&self) -> Capabilities {
        Capabilities::new(self.size.load(Ordering::Relaxed))
    }

    async fn read(&self, _: &Io, buffer: Buffer<'_>, _: u64) -> Result<()> {
        buffer.fill(1);
        Ok(())
    }

    async fn write(&self, _: &Io, _: Buffer<'_>, _: u64, _: WriteFlags) -> Result<()> {
        Ok(())
    }

    async fn resized(&self, _: &Io, known: u64) {
        assert_eq!(known, self.size.load(Ordering::Relaxed));
        let size = std::future::poll_fn(|context| {
            let mut changes = self.changes.borrow_mut();
            futures_util::Stream::poll_next(std::pin::Pin::new(&mut *changes), context)
        });
        match size.await {
            Some(size) => self.size.store(size, Ordering::Relaxed),
            None => std::future::pending().await,
        }
    }
}

#[test]
fn a_lun_follows_the_size_of_its_image_and_says_so() {
    let (change, changes) = futures_channel::mpsc::unbounded();
    let mut lun = Lun::new(Elastic {
        size: Arc::new(AtomicU64::new(SIZE)),
        changes: RefCell::new(changes),
    });
    for size in [2 * SIZE, SIZE / 2, SIZE] {
        let last = (size / BLOCK as u64 - 1) as u32;
        let sender = change.clone();
        thread::spawn(move || sender.unbounded_send(size).unwrap())
            .join()
            .unwrap();
        // CAPACITY DATA HAS CHANGED
        let told = loop {
            let tag = lun.read(0, 1);
            let finished = lun.wait(tag);
            if finished.status == CHECK_CONDITION {
                break finished.sense;
            }
        };
        assert!(
            told.windows(2).any(|code| code == [0x2a, 0x09]),
            "{told:x?}"
        );
        let tag = lun.read(last, 1);
        assert_eq!(lun.wait(tag).status, GOOD);
        let tag = lun.read(last + 1, 1);
        assert_eq!(lun.wait(tag).status, CHECK_CONDITION);
    }
}

#[test]
fn a_lun_that_is_smaller_than_its_image_stays_as_it_is() {
    let (change, changes) = futures_channel::mpsc::unbounded();
    let size = Arc::new(AtomicU64::new(4 * SIZE));
    let mut lun = Lun::new(Elastic {
        size: Arc::clone(&size),
        changes: RefCell::new(changes),
    });
    change.unbounded_send(8 * SIZE).unwrap();
    let last = (SIZE / BLOCK as u64 - 1) as u32;
    for _ in 0..20 {
        let tag = lun.read(last, 1);
        assert_eq!(lun.wait(tag).status, GOOD);
    }
    let tag = lun.read(last + 1, 1);
    assert_eq!(lun.wait(tag).status, CHECK_CONDITION);
    assert_eq!(
        size.load(Ordering::Relaxed),
        8 * SIZE,
        "it was not heard of"
    );
}
