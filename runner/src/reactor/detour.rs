//! Another way for operations that wait in the kernel for those of a file that hangs.
//!
//! What io_uring cannot do at once (buffered writes, flushes, fallocate, some reads) its worker threads
//! do, and one file can keep them from all others of a reactor (io_uring/io-wq.c):
//!
//! - A reactor has at most four of them for each CPU (`io_init_wq_offload` of io_uring/tctx.c). When a file
//!   system hangs, the first operations keep all of them.
//! - Writes to a regular file are done one after the other, and so are the writes to all files that
//!   happen to fall into the same of 64 classes (`io_wq_hash_work`): one that hangs holds up the next.
//!
//! So operations that the kernel has had for a while are asked back (IORING_OP_ASYNC_CANCEL), of each
//! file the oldest. A worker that is at one keeps it: that file hangs, or is slow, and waits for itself.
//! What only waited for others comes back before it began. Then a thread of our own does it, as well as
//! everything else of that file for as long as any file hangs; one operation of each file at a time, so
//! that a file that turns out to hang keeps one thread and no more.

use std::collections::VecDeque;
use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};

use io_uring::{opcode, squeue, types};
use rustix::event::{EventfdFlags, eventfd};
use tcmu_handler::{Extent, File, Memory};

use super::blocking::BlockingPool;
use super::slots::{Slot, Slots};

/// At most so many files take the other way at the same time; threads are started when they are needed.
const THREADS: usize = 64;

/// What an operation does with its file and its segments.
#[derive(Clone, Copy, Debug)]
pub(super) enum Work {
    Read { offset: u64 },
    Write { offset: u64, flags: i32 },
    Sync,
    Allocate { mode: i32, extent: Extent },
}

impl Work {
    /// The operation for io_uring.
    pub(super) fn entry(self, fd: types::Fd, segments: &[libc::iovec]) -> squeue::Entry {
        match (self, segments) {
            (Work::Read { offset }, [one]) => {
                opcode::Read::new(fd, one.iov_base.cast(), one.iov_len as u32)
                    .offset(offset)
                    .build()
            }
            (Work::Read { offset }, many) => {
                opcode::Readv::new(fd, many.as_ptr(), many.len() as u32)
                    .offset(offset)
                    .build()
            }
            (Work::Write { offset, flags }, [one]) => {
                opcode::Write::new(fd, one.iov_base.cast(), one.iov_len as u32)
                    .offset(offset)
                    .rw_flags(flags)
                    .build()
            }
            (Work::Write { offset, flags }, many) => {
                opcode::Writev::new(fd, many.as_ptr(), many.len() as u32)
                    .offset(offset)
                    .rw_flags(flags)
                    .build()
            }
            (Work::Sync, _) => opcode::Fsync::new(fd)
                .flags(types::FsyncFlags::DATASYNC)
                .build(),
            (Work::Allocate { mode, extent }, _) => opcode::Fallocate::new(fd, extent.len)
                .offset(extent.offset)
                .mode(mode)
                .build(),
        }
    }
}

/// Whether an operation was asked back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Recall {
    No,
    /// The kernel has not said what becomes of it.
    Asked,
    /// A worker is at it.
    Refused,
    /// A thread does it, or will.
    Elsewhere,
}

/// An operation as a thread does it.
struct Job {
    work: Work,
    file: File,
    segments: Vec<libc::iovec>,
    /// What the segments are parts of.
    _memories: Vec<Arc<dyn Memory>>,
}

// SAFETY: the segments' addresses lie in memory that lives as long as the job, and that any thread may
// use (`Memory` is `Sync`, and its bytes may be used by the kernel at any time).
unsafe impl Send for Job {}

impl Job {
    fn of(slot: &Slot) -> Option<Self> {
        Some(Self {
            work: slot.work?,
            file: Arc::clone(slot.file.as_ref()?),
            segments: slot.segments.clone(),
            _memories: slot.memories.clone(),
        })
    }

    /// The result as io_uring gives it.
    fn run(&self) -> i32 {
        let fd = self.file.as_raw_fd();
        let (segments, count) = (self.segments.as_ptr(), self.segments.len() as i32);
        // SAFETY: there are `count` segments, and each is valid for reads and writes: `set_segments`
        // made them of memory that is kept.
        let result = unsafe {
            match self.work {
                Work::Read { offset } => libc::preadv(fd, segments, count, offset as i64),
                Work::Write { offset, flags } => {
                    libc::pwritev2(fd, segments, count, offset as i64, flags)
                }
                Work::Sync => libc::fdatasync(fd) as isize,
                Work::Allocate { mode, extent } => {
                    libc::fallocate(fd, mode, extent.offset as i64, extent.len as i64) as isize
                }
            }
        };
        match i32::try_from(result) {
            Ok(count) if count >= 0 => count,
            _ => {
                let errno = io::Error::last_os_error().raw_os_error();
                -errno.unwrap_or(libc::EIO)
            }
        }
    }
}

/// A file whose operations take the other way.
struct Detour {
    file: File,
    /// A thread is at one.
    busy: bool,
    /// The slots of those that come after it.
    waiting: VecDeque<u32>,
}

/// All that take the other way.
pub(super) struct Detours {
    /// How often the engine has looked at the operations' ages.
    looks: u32,
    /// How many operations were refused and have not ended.
    stuck: usize,
    files: Vec<Detour>,
    pool: BlockingPool,
    /// The slots of operations that have come back from the kernel.
    back: Vec<u32>,
    /// What threads have done: slots and results.
    done: Receiver<(u32, i32)>,
    report: Sender<(u32, i32)>,
    /// Written to after each report.
    bell: Arc<OwnedFd>,
    /// The engine watches the bell.
    watched: bool,
    /// The bell has been rung.
    rung: bool,
}

impl Detours {
    pub(super) fn new() -> io::Result<Self> {
        let (report, done) = channel();
        Ok(Self {
            looks: 0,
            stuck: 0,
            files: Vec::new(),
            pool: BlockingPool::new(THREADS),
            back: Vec::new(),
            done,
            report,
            bell: Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?),
            watched: false,
            rung: false,
        })
    }

    #[inline]
    pub(super) fn looks(&self) -> u32 {
        self.looks
    }

    /// Whether operations on this file take the other way.
    #[inline]
    pub(super) fn lead(&self, file: &File) -> bool {
        self.files
            .iter()
            .any(|detour| Arc::ptr_eq(&detour.file, file))
    }

    /// Another look at the operations' ages; returns its number.
    pub(super) fn look(&mut self) -> u32 {
        self.looks = self.looks.wrapping_add(1);
        self.forget_idle();
        self.looks
    }

    /// What hung hangs no more: the kernel gets the operations of files again whose last has ended.
    fn forget_idle(&mut self) {
        if self.stuck == 0 {
            self.files.retain(|detour| detour.busy);
        }
    }

    /// The kernel has answered an operation. Returns whether it has come back, and has not ended.
    #[inline]
    pub(super) fn take_back(&mut self, place: u32, slots: &mut Slots, result: i32) -> bool {
        slots.get(place).recall != Recall::No && self.look_at(place, slots.get_mut(place), result)
    }

    /// The kernel has answered an operation that was asked back.
    fn look_at(&mut self, place: u32, slot: &mut Slot, result: i32) -> bool {
        let recall = std::mem::replace(&mut slot.recall, Recall::No);
        if recall == Recall::Refused {
            self.stuck -= 1;
            self.forget_idle();
        }
        let came_back = recall == Recall::Asked && result == -libc::ECANCELED;
        if came_back {
            self.back.push(place);
        }
        came_back
    }

    /// The kernel does not give an operation back, for this reason.
    pub(super) fn refused(&mut self, slot: &mut Slot, result: i32) {
        if slot.recall == Recall::Asked {
            slot.recall = if result == -libc::EALREADY {
                self.stuck += 1;
                Recall::Refused
            } else {
                // No worker has it, and none will: it waits for its device, or ends just now.
                Recall::No
            };
        }
    }

    /// The bell has been rung; the kernel goes on watching it if it is `watched`.
    pub(super) fn heard(&mut self, watched: bool) {
        (self.rung, self.watched) = (true, watched);
    }

    /// Whether operations have come back or were done.
    #[inline]
    pub(super) fn have_news(&self) -> bool {
        self.rung || !self.back.is_empty()
    }

    /// Whether the engine has to watch the bell from now on.
    pub(super) fn wants_to_hear(&mut self) -> bool {
        !std::mem::replace(&mut self.watched, true)
    }

    pub(super) fn bell(&self) -> BorrowedFd<'_> {
        self.bell.as_fd()
    }

    /// An operation that has come back.
    pub(super) fn next_back(&mut self) -> Option<u32> {
        self.back.pop()
    }

    /// An operation that a thread has done, and its result.
    pub(super) fn next_done(&mut self) -> Option<(u32, i32)> {
        let next = self.done.try_recv().ok();
        self.rung &= next.is_some();
        next
    }

    /// The operation in a slot is to be done elsewhere. Returns whether it is its file's turn.
    pub(super) fn enter(&mut self, file: &File, place: u32) -> bool {
        let known = |detour: &Detour| Arc::ptr_eq(&detour.file, file);
        let at = self.files.iter().position(known).unwrap_or_else(|| {
            self.tell(file);
            self.files.push(Detour {
                file: Arc::clone(file),
                busy: false,
                waiting: VecDeque::new(),
            });
            self.files.len() - 1
        });
        let detour = &mut self.files[at];
        let is_first = !std::mem::replace(&mut detour.busy, true);
        if !is_first {
            detour.waiting.push_back(place);
        }
        is_first
    }

    fn tell(&self, file: &File) {
        let image = fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd()));
        let image = image.unwrap_or_default();
        if self.files.is_empty() {
            tracing::warn!(
                ?image,
                "the kernel keeps it waiting for another image that hangs; threads of tcmu-runner go on with such images until that one answers"
            );
        } else {
            tracing::debug!(?image, "waits for another image, too");
        }
    }

    /// An operation on this file has been done. Returns the next.
    pub(super) fn leave(&mut self, file: &File) -> Option<u32> {
        let known = |detour: &&mut Detour| Arc::ptr_eq(&detour.file, file);
        let detour = self.files.iter_mut().find(known)?;
        let next = detour.waiting.pop_front();
        if next.is_none() {
            detour.busy = false;
            self.forget_idle();
        }
        next
    }

    /// Has a thread do the operation in a slot.
    pub(super) fn run(&self, place: u32, slot: &Slot) {
        let Some(job) = Job::of(slot) else { return };
        let (report, bell) = (self.report.clone(), Arc::clone(&self.bell));
        self.pool.run(Box::new(move || {
            let result = job.run();
            // Before anybody hears of it, as the memory may go then.
            drop(job);
            // The engine waits for all that it has begun.
            let _ = report.send((place, result));
            // Fails only when the counter would overflow; then it is readable already.
            let _ = rustix::io::write(&*bell, &1u64.to_ne_bytes());
        }));
    }
}
