//! Operations that the kernel keeps waiting.

use std::ffi::CString;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;
use std::task::Waker;

use rustix::fs::{CWD, FileType, Mode, OFlags, mknodat};
use tcmu_handler::{Buffer, Extent};
use tempfile::TempDir;

use super::*;

/// An engine whose only worker opens a FIFO that nobody reads, and so does nothing else.
struct Kept {
    engine: UringEngine,
    folder: TempDir,
}

impl Kept {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let engine = UringEngine::new(BlockingPool::new(1)).unwrap();
        let kept = Self { engine, folder };
        let mode = Mode::RUSR | Mode::WUSR;
        mknodat(CWD, kept.fifo(), FileType::Fifo, mode, 0).unwrap();
        let path = CString::new(kept.fifo().as_os_str().as_bytes()).unwrap();
        {
            let mut inner = kept.engine.inner.borrow_mut();
            let submitter = inner.uring.submitter();
            submitter.register_iowq_max_workers(&mut [1, 0]).unwrap();
            let open = opcode::OpenAt::new(types::Fd(libc::AT_FDCWD), path.as_ptr())
                .flags(libc::O_WRONLY | libc::O_CLOEXEC)
                .build()
                .flags(squeue::Flags::ASYNC);
            inner.push(open);
        }
        // The kernel has copied the path then.
        kept.turn();
        kept
    }

    fn fifo(&self) -> PathBuf {
        self.folder.path().join("fifo")
    }

    fn file(&self, name: &str) -> (File, std::fs::File) {
        let file = std::fs::File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .open(self.folder.path().join(name))
            .unwrap();
        let same = file.try_clone().unwrap();
        (Arc::new(OwnedFd::from(file)), same)
    }

    fn start(&self, operation: Operation<'_>) -> Ticket {
        Engine::submit(&self.engine, operation)
    }

    fn turn(&self) {
        self.engine.turn(Wait::No, &mut Vec::new()).unwrap();
    }

    fn poll(&self, ticket: Ticket) -> Poll<io::Result<u32>> {
        self.turn();
        let mut context = Context::from_waker(Waker::noop());
        self.engine.poll(ticket, &mut context)
    }

    fn end(&self, ticket: Ticket) -> io::Result<u32> {
        loop {
            match self.poll(ticket) {
                Poll::Ready(result) => return result,
                Poll::Pending => thread::sleep(Duration::from_millis(1)),
            }
        }
    }

    /// Lets the worker go.
    fn let_go(&self) {
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
        drop(rustix::fs::open(self.fifo(), flags, Mode::empty()));
    }

    /// Lets so much time pass that the kernel is asked to give back what it has.
    fn grow_old(&self) {
        for _ in 0..2 {
            self.engine.look_at_ages();
            self.turn();
        }
    }

    fn bytes(&self, len: usize, byte: u8) -> OwnedBuffer {
        let buffer = self.engine.allocate(len).unwrap();
        buffer.view().fill(byte);
        buffer
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        // So that the engine can end.
        self.let_go();
    }
}

fn write<'a>(file: &'a File, buffer: Buffer<'a>, offset: u64, durable: bool) -> Operation<'a> {
    Operation::Write {
        file,
        buffer,
        offset,
        durable,
        in_memory: false,
    }
}

#[test]
fn what_waits_for_a_worker_is_done_by_a_thread() {
    let kept = Kept::new();
    let (file, same) = kept.file("image");
    let bytes = kept.bytes(8192, 7);
    let durable = kept.start(write(&file, bytes.view(), 4096, true));
    let sync = kept.start(Operation::Sync { file: &file });
    let extent = Extent {
        offset: 1 << 20,
        len: 4096,
    };
    let allocate = Operation::Allocate {
        file: &file,
        mode: 0,
        extent,
    };
    let allocate = kept.start(allocate);
    assert!(kept.poll(sync).is_pending(), "there was a worker for it");
    assert!(kept.engine.is_busy());

    kept.engine.look_at_ages();
    kept.turn();
    assert!(!kept.engine.inner.borrow().detours.lead(&file), "too soon");
    kept.grow_old();
    assert_eq!(kept.end(sync).unwrap(), 0);
    assert_eq!(kept.end(durable).unwrap(), 8192);
    assert_eq!(kept.end(allocate).unwrap(), 0);
    assert_eq!(same.metadata().unwrap().len(), (1 << 20) + 4096);
    let mut read = [0; 8192 + 1];
    same.read_exact_at(&mut read, 4096).unwrap();
    assert!(read[..8192].iter().all(|&byte| byte == 7) && read[8192] == 0);
    assert!(!kept.engine.is_busy());
}

#[test]
fn what_nobody_waits_for_is_done_all_the_same() {
    let kept = Kept::new();
    let (file, same) = kept.file("image");
    let bytes = kept.bytes(512, 9);
    let sync = kept.start(Operation::Sync { file: &file });
    let write = kept.start(write(&file, bytes.view(), 0, false));
    kept.engine.forget(sync);
    kept.engine.forget(write);
    drop((bytes, file));
    assert!(kept.engine.has_forgotten());
    kept.grow_old();
    while kept.engine.has_forgotten() {
        kept.turn();
        thread::sleep(Duration::from_millis(1));
    }
    let mut read = [0; 512];
    same.read_exact_at(&mut read, 0).unwrap();
    assert_eq!(read, [9; 512]);
}

#[test]
fn errors_are_those_of_the_kernel() {
    let kept = Kept::new();
    let path = kept.folder.path();
    let folder: File = Arc::new(OwnedFd::from(std::fs::File::open(path).unwrap()));
    let extent = Extent { offset: 0, len: 1 };
    let allocate = Operation::Allocate {
        file: &folder,
        mode: 0,
        extent,
    };
    let allocate = kept.start(allocate);
    kept.grow_old();
    let error = kept.end(allocate).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::EBADF));
}

/// As if the kernel had answered a recall of the operation.
fn refuse(engine: &UringEngine, ticket: Ticket) {
    let mut inner = engine.inner.borrow_mut();
    let Inner { slots, detours, .. } = &mut *inner;
    let slot = slots.get_mut(ticket.0);
    slot.recall = Recall::Asked;
    detours.refused(slot, -libc::EALREADY);
}

#[test]
fn as_long_as_something_hangs_threads_go_on() {
    let kept = Kept::new();
    let leads = |file| kept.engine.inner.borrow().detours.lead(file);
    let (hanging, _) = kept.file("hanging");
    let (file, same) = kept.file("image");
    let hangs = kept.start(Operation::Sync { file: &hanging });
    kept.turn();
    refuse(&kept.engine, hangs);
    let first = kept.start(Operation::Sync { file: &file });
    kept.grow_old();
    assert_eq!(kept.end(first).unwrap(), 0);
    assert!(leads(&file) && !leads(&hanging));
    // In the order in which they are asked for, as one thread does them; nothing grows old now.
    let buffers: Vec<_> = (1..=20).map(|byte| kept.bytes(512, byte)).collect();
    let tickets: Vec<_> = buffers
        .iter()
        .map(|buffer| kept.start(write(&file, buffer.view(), 0, false)))
        .collect();
    for ticket in tickets {
        assert_eq!(kept.end(ticket).unwrap(), 512);
    }
    let mut read = [0; 512];
    same.read_exact_at(&mut read, 0).unwrap();
    assert_eq!(read, [20; 512]);
    let read = Operation::Read {
        file: &file,
        buffer: buffers[0].view(),
        offset: 0,
    };
    let ticket = kept.start(read);
    assert_eq!(kept.end(ticket).unwrap(), 512);
    assert_eq!(buffers[0].view().difference(0, &[20; 512]), None);

    // What hung has ended.
    assert!(leads(&file));
    kept.let_go();
    assert_eq!(kept.end(hangs).unwrap(), 0);
    assert!(!leads(&file));
    let last = kept.start(Operation::Sync { file: &file });
    assert_eq!(kept.end(last).unwrap(), 0);
}
