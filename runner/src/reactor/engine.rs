//! The I/O engine of a reactor: one io_uring.
//!
//! Operations are only queued here; [`UringEngine::turn`] hands all of them to the kernel in one
//! system call, together with the kicks of the LUNs, and waits for the next event in the same call.
//!
//! What the kernel may still touch stays alive in the operation's slot: the file, the memory, and
//! the list of segments. A slot is free again when the kernel has answered *and* the waiting side
//! has taken the answer, or has gone away.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::io;
use std::mem;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::thread;
use std::time::Duration;

use io_uring::{IoUring, cqueue, opcode, squeue, types};
use tcmu::mapping::Mapping;
use tcmu_handler::{Buffer, Engine, File, Memory, Operation, OwnedBuffer, Segment, Ticket};

use super::age;
use super::blocking::BlockingPool;
use super::memory::SharedMemory;

/// Operations queued before the kernel has to take some of them.
const SUBMISSION_ENTRIES: u32 = 256;
/// More than one reactor's LUNs have in flight as a rule; the kernel keeps what does not fit.
const COMPLETION_ENTRIES: u32 = 4096;
/// UIO_MAXIOV of include/uapi/linux/uio.h: more segments are transferred in several operations.
const MAX_SEGMENTS: usize = 1024;
/// MAX_RW_COUNT of include/linux/fs.h without the page size's part: more is transferred in parts.
const MAX_TRANSFER: usize = 1 << 30;
/// What is written to a uio device; any value will do.
static KICK: [u8; 4] = 1i32.to_ne_bytes();
/// After what time an alarm comes.
static ALARM: types::Timespec = types::Timespec::new().sec(age::INTERVAL.as_secs());

/// What a completion queue entry answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
enum Kind {
    Operation = 1,
    Poll = 2,
    Kick = 3,
    Cancel = 4,
    Abort = 5,
    Alarm = 6,
}

/// How long a turn sleeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wait {
    /// Not at all.
    No,
    /// Until something happens.
    Event,
    /// This long, whatever happens. What happens meanwhile is seen in the next turn.
    Rest(Duration),
}

/// Names a file descriptor that the reactor polls. The generation tells the answers for an earlier
/// user of the same place from those for the present one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Source {
    pub(crate) place: u32,
    pub(crate) generation: u32,
}

impl Source {
    /// How many generations there are before the first comes again.
    pub(crate) const GENERATIONS: u32 = 1 << 24;
}

/// Something that happened to a source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Event {
    /// The source is readable. `armed` says whether the kernel goes on watching it.
    Ready { source: Source, armed: bool },
    /// The source is in error or gone.
    Gone { source: Source },
    /// The kernel does not watch the source any more, and has let go of its file.
    Unwatched { source: Source },
    /// The watch could not be ended, because something happened to the source at that moment.
    StillWatched { source: Source },
    /// The time of [`UringEngine::alarm`] is over.
    Alarm,
}

fn user_data(kind: Kind, source: Source) -> u64 {
    u64::from(kind as u8) << 56
        | u64::from(source.generation % Source::GENERATIONS) << 32
        | u64::from(source.place)
}

fn source(user_data: u64) -> Source {
    Source {
        place: user_data as u32,
        generation: (user_data >> 32) as u32 % Source::GENERATIONS,
    }
}

#[derive(Debug, PartialEq, Eq)]
enum State {
    Free,
    /// The kernel has it, or will get it this turn.
    Running,
    /// As before, but nobody waits for the answer.
    Forgotten,
    /// The answer as the kernel gave it: a count, or a negative errno.
    Done(i32),
}

/// A slot for an operation.
struct Slot {
    state: State,
    waker: Option<Waker>,
    /// Read by the kernel while the operation runs.
    segments: Vec<libc::iovec>,
    /// The same, and written to; at an address that does not change.
    message: Option<Box<libc::msghdr>>,
    /// Read by the kernel when it gets the operation. Only operations that wait have it.
    time: Option<Box<types::Timespec>>,
    file: Option<File>,
    memories: Vec<Arc<dyn Memory>>,
}

/// How much a reactor has done so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// System calls: io_uring_enter, which submits and waits for everything at once, and rests.
    pub system_calls: u64,
    /// Operations of backstores that were handed to the kernel.
    pub operations: u64,
    /// Kicks of LUNs.
    pub kicks: u64,
}

struct Inner {
    uring: IoUring,
    slots: Vec<Slot>,
    free: Vec<u32>,
    /// Entries that found the submission queue full.
    backlog: VecDeque<squeue::Entry>,
    /// Operations that the kernel has not answered.
    running: usize,
    /// Those of them that nobody waits for.
    forgotten: usize,
    /// Those of them that only wait for a time to be over.
    waits: usize,
    counters: Counters,
}

/// One io_uring, used by one thread.
pub(crate) struct UringEngine {
    inner: RefCell<Inner>,
    pool: BlockingPool,
}

impl UringEngine {
    /// Creates the io_uring. Must run on the thread that will use it.
    pub(crate) fn new(pool: BlockingPool) -> io::Result<Self> {
        let inner = Inner {
            uring: create_uring()?,
            slots: Vec::new(),
            free: Vec::new(),
            backlog: VecDeque::new(),
            running: 0,
            forgotten: 0,
            waits: 0,
            counters: Counters::default(),
        };
        Ok(Self {
            inner: RefCell::new(inner),
            pool,
        })
    }

    /// Watches `fd` for input until [`unwatch`](Self::unwatch). Every time it becomes readable, and
    /// once if it is already, there is an [`Event::Ready`]; nothing has to be read in between.
    pub(crate) fn watch(&self, fd: BorrowedFd<'_>, source: Source) {
        // IORING_POLL_ADD_MULTI without ..._LEVEL: each wake-up of the file's wait queue counts.
        let entry = opcode::PollAdd::new(types::Fd(fd.as_raw_fd()), libc::POLLIN as u32)
            .multi(true)
            .build()
            .user_data(user_data(Kind::Poll, source));
        self.inner.borrow_mut().push(entry);
    }

    /// Ends a watch; its last event is [`Event::Unwatched`].
    pub(crate) fn unwatch(&self, source: Source) {
        let entry = opcode::PollRemove::new(user_data(Kind::Poll, source))
            .build()
            .user_data(user_data(Kind::Cancel, source));
        self.inner.borrow_mut().push(entry);
    }

    /// Hands the kernel what is queued. To be called before files are closed that polls and kicks are
    /// about: their numbers may be those of other files by the next time.
    pub(crate) fn submit(&self) {
        let mut inner = self.inner.borrow_mut();
        // Each time as much as the queue takes.
        for _ in 0..=inner.backlog.len() {
            if inner.enter(Wait::No).is_err() || inner.backlog.is_empty() {
                return;
            }
        }
    }

    /// Causes [`Event::Alarm`] after [`age::INTERVAL`].
    pub(crate) fn alarm(&self) {
        let source = Source {
            place: 0,
            generation: 0,
        };
        let entry = opcode::Timeout::new(&ALARM)
            .build()
            .user_data(user_data(Kind::Alarm, source));
        self.inner.borrow_mut().push(entry);
    }

    /// Kicks the uio device `fd`, which must be open with O_NONBLOCK: only then does io_uring call
    /// the driver at once instead of handing the write to a worker thread (loop_rw_iter in
    /// io_uring/rw.c).
    pub(crate) fn kick(&self, fd: RawFd, source: Source) {
        let entry = opcode::Write::new(types::Fd(fd), KICK.as_ptr(), KICK.len() as u32)
            .build()
            .flags(squeue::Flags::SKIP_SUCCESS)
            .user_data(user_data(Kind::Kick, source));
        let mut inner = self.inner.borrow_mut();
        inner.counters.kicks += 1;
        inner.push(entry);
    }

    /// Hands everything that is queued to the kernel and collects what has finished: wakes the
    /// tasks that wait for operations, and appends what happened to sources to `events`.
    pub(crate) fn turn(&self, wait: Wait, events: &mut Vec<Event>) -> io::Result<()> {
        let mut inner = self.inner.borrow_mut();
        inner.enter(wait)?;
        inner.collect(events);
        while !inner.backlog.is_empty() {
            inner.enter(Wait::No)?;
            inner.collect(events);
        }
        Ok(())
    }

    /// Whether the kernel works on operations.
    pub(crate) fn is_busy(&self) -> bool {
        self.inner.borrow().works()
    }

    /// Whether operations run that nobody waits for any more.
    pub(crate) fn has_forgotten(&self) -> bool {
        self.inner.borrow().forgotten > 0
    }

    /// What was done so far.
    pub(crate) fn counters(&self) -> Counters {
        self.inner.borrow().counters
    }
}

/// The newest setup that the kernel takes.
fn create_uring() -> io::Result<IoUring> {
    let mut builder = IoUring::builder();
    builder.setup_clamp().setup_cqsize(COMPLETION_ENTRIES);
    let basic = builder.clone();
    // Linux 6.1: completions are handled when this thread asks for them, never by interrupting it.
    builder.setup_single_issuer().setup_defer_taskrun();
    builder
        .build(SUBMISSION_ENTRIES)
        .or_else(|error| match error.raw_os_error() {
            Some(libc::EINVAL) => basic.build(SUBMISSION_ENTRIES),
            _ => Err(error),
        })
}

impl Inner {
    /// Whether the kernel works on an operation, and may touch its memory.
    fn works(&self) -> bool {
        self.running > self.waits
    }

    fn push(&mut self, entry: squeue::Entry) {
        if self.backlog.is_empty() && self.push_now(&entry) {
            return;
        }
        self.backlog.push_back(entry);
    }

    fn push_now(&mut self, entry: &squeue::Entry) -> bool {
        // SAFETY: what the entry points to lives in an operation's slot or in a static until the
        // kernel has answered; the file of a poll or kick is open until its source is unwatched.
        unsafe { self.uring.submission().push(entry) }.is_ok()
    }

    /// One io_uring_enter.
    fn enter(&mut self, wait: Wait) -> io::Result<()> {
        while let Some(entry) = self.backlog.pop_front() {
            if !self.push_now(&entry) {
                self.backlog.push_front(entry);
                break;
            }
        }
        let queued = self.uring.submission().len() as u32;
        let may_sleep = self.uring.completion().is_empty() && self.backlog.is_empty();
        let want = u32::from(may_sleep && wait == Wait::Event);
        self.counters.system_calls += 1;
        const IORING_ENTER_GETEVENTS: u32 = 1; // include/uapi/linux/io_uring.h
        // SAFETY: no argument struct and no signal mask are passed; the rest are numbers.
        let entered = unsafe {
            self.uring.submitter().enter::<libc::sigset_t>(
                queued,
                want,
                IORING_ENTER_GETEVENTS,
                None,
            )
        };
        if let Wait::Rest(time) = wait
            && may_sleep
        {
            // Not by a time limit of io_uring_enter: before Linux 6.8, each event would wake this
            // thread there, only to be put to sleep again.
            self.counters.system_calls += 1;
            thread::sleep(time);
        }
        match entered {
            Ok(_) => Ok(()),
            // A signal; or the completion queue wants to be emptied first. The caller does, and
            // comes again.
            Err(error)
                if matches!(
                    error.raw_os_error(),
                    Some(libc::EINTR | libc::EBUSY | libc::EAGAIN)
                ) =>
            {
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    fn collect(&mut self, events: &mut Vec<Event>) {
        let Self {
            uring,
            slots,
            free,
            running,
            forgotten,
            waits,
            ..
        } = self;
        for entry in uring.completion() {
            let (data, result) = (entry.user_data(), entry.result());
            match (data >> 56) as u8 {
                kind if kind == Kind::Operation as u8 => {
                    let place = data as u32;
                    let Some(slot) = slots.get_mut(place as usize) else {
                        continue;
                    };
                    *running -= 1;
                    *waits -= usize::from(slot.time.is_some());
                    if slot.state == State::Forgotten {
                        *forgotten -= 1;
                        slot.release();
                        free.push(place);
                    } else {
                        slot.state = State::Done(result);
                        if let Some(waker) = slot.waker.take() {
                            waker.wake();
                        }
                    }
                }
                kind if kind == Kind::Poll as u8 => {
                    let source = source(data);
                    let failed = result < 0 || result & i32::from(libc::POLLERR) != 0;
                    events.push(if result == -libc::ECANCELED {
                        Event::Unwatched { source }
                    } else if failed {
                        Event::Gone { source }
                    } else {
                        Event::Ready {
                            source,
                            armed: cqueue::more(entry.flags()),
                        }
                    });
                }
                // Only a failed kick is answered: the device has gone.
                kind if kind == Kind::Kick as u8 && result < 0 => {
                    events.push(Event::Gone {
                        source: source(data),
                    });
                }
                // `io_poll_disarm` of io_uring/poll.c: an event is just being handled.
                kind if kind == Kind::Cancel as u8 && result == -libc::EALREADY => {
                    events.push(Event::StillWatched {
                        source: source(data),
                    });
                }
                // The watch had ended by itself.
                kind if kind == Kind::Cancel as u8 && result == -libc::ENOENT => {
                    events.push(Event::Unwatched {
                        source: source(data),
                    });
                }
                kind if kind == Kind::Alarm as u8 => events.push(Event::Alarm),
                _ => {}
            }
        }
    }

    fn slot(&mut self) -> u32 {
        self.free.pop().unwrap_or_else(|| {
            self.slots.push(Slot {
                state: State::Free,
                waker: None,
                segments: Vec::new(),
                message: None,
                time: None,
                file: None,
                memories: Vec::new(),
            });
            self.slots.len() as u32 - 1
        })
    }

    /// Starts an operation that has its slot.
    fn run(&mut self, place: u32, entry: squeue::Entry) -> Ticket {
        self.counters.operations += 1;
        self.running += 1;
        self.push(entry.user_data(operation(place)));
        Ticket(place)
    }
}

/// The user data of the operation in a slot.
fn operation(place: u32) -> u64 {
    let source = Source {
        place,
        generation: 0,
    };
    user_data(Kind::Operation, source)
}

impl Slot {
    fn release(&mut self) {
        self.state = State::Free;
        self.waker = None;
        self.time = None;
        self.file = None;
        self.memories.clear();
        self.segments.clear();
    }

    /// Notes the segments of a transfer, as many as one operation takes.
    fn set_segments(&mut self, parts: &[Buffer<'_>]) {
        let mut room = MAX_TRANSFER;
        for part in parts {
            let base = part.memory().base();
            self.memories.push(Arc::clone(part.memory()));
            for segment in part.segments() {
                let len = segment.len.min(room);
                if len == 0 || self.segments.len() == MAX_SEGMENTS {
                    return;
                }
                room -= len;
                self.segments.push(libc::iovec {
                    iov_base: base.wrapping_add(segment.offset).cast(),
                    iov_len: len,
                });
            }
        }
    }

    /// The header of a message made of these parts; it stays where it is until the slot is used for
    /// another message.
    fn set_message(&mut self, parts: &[Buffer<'_>]) -> *mut libc::msghdr {
        self.set_segments(parts);
        // SAFETY: msghdr is made of integers and pointers, for which zeroes are valid values.
        let empty = || Box::new(unsafe { mem::zeroed::<libc::msghdr>() });
        let message = self.message.get_or_insert_with(empty);
        message.msg_iov = self.segments.as_mut_ptr();
        message.msg_iovlen = self.segments.len();
        (message.msg_controllen, message.msg_flags) = (0, 0);
        &raw mut **message
    }
}

impl Engine for UringEngine {
    fn submit(&self, operation: Operation<'_>) -> Ticket {
        let mut guard = self.inner.borrow_mut();
        let inner = &mut *guard;
        let place = inner.slot();
        let slot = &mut inner.slots[place as usize];
        slot.state = State::Running;
        let entry = match operation {
            Operation::Read {
                file,
                buffer,
                offset,
            } => {
                slot.set_segments(&[buffer]);
                slot.file = Some(Arc::clone(file));
                let fd = types::Fd(file.as_raw_fd());
                match slot.segments.as_slice() {
                    [one] => opcode::Read::new(fd, one.iov_base.cast(), one.iov_len as u32)
                        .offset(offset)
                        .build(),
                    many => opcode::Readv::new(fd, many.as_ptr(), many.len() as u32)
                        .offset(offset)
                        .build(),
                }
            }
            Operation::Write {
                file,
                buffer,
                offset,
                durable,
            } => {
                slot.set_segments(&[buffer]);
                slot.file = Some(Arc::clone(file));
                let fd = types::Fd(file.as_raw_fd());
                let flags = if durable { libc::RWF_DSYNC } else { 0 };
                match slot.segments.as_slice() {
                    [one] => opcode::Write::new(fd, one.iov_base.cast(), one.iov_len as u32)
                        .offset(offset)
                        .rw_flags(flags)
                        .build(),
                    many => opcode::Writev::new(fd, many.as_ptr(), many.len() as u32)
                        .offset(offset)
                        .rw_flags(flags)
                        .build(),
                }
            }
            Operation::Sync { file } => {
                slot.file = Some(Arc::clone(file));
                opcode::Fsync::new(types::Fd(file.as_raw_fd()))
                    .flags(types::FsyncFlags::DATASYNC)
                    .build()
            }
            Operation::Allocate { file, mode, extent } => {
                slot.file = Some(Arc::clone(file));
                opcode::Fallocate::new(types::Fd(file.as_raw_fd()), extent.len)
                    .offset(extent.offset)
                    .mode(mode)
                    .build()
            }
            Operation::Send { socket, parts } => {
                let message = slot.set_message(parts);
                slot.file = Some(Arc::clone(socket));
                let flags = libc::MSG_NOSIGNAL | libc::MSG_WAITALL;
                let entry = opcode::SendMsg::new(types::Fd(socket.as_raw_fd()), message)
                    .flags(flags as u32)
                    .build();
                return inner.run(place, entry);
            }
            Operation::Receive {
                socket,
                parts,
                whole,
            } => {
                let message = slot.set_message(parts);
                slot.file = Some(Arc::clone(socket));
                let flags = if whole { libc::MSG_WAITALL } else { 0 };
                let entry = opcode::RecvMsg::new(types::Fd(socket.as_raw_fd()), message)
                    .flags(flags as u32)
                    .build();
                return inner.run(place, entry);
            }
            Operation::Wait { time } => {
                let time = types::Timespec::from(time);
                let entry = opcode::Timeout::new(&raw const **slot.time.insert(Box::new(time)));
                inner.waits += 1;
                return inner.run(place, entry.build());
            }
        };
        inner.run(place, entry)
    }

    fn poll(&self, ticket: Ticket, context: &mut Context<'_>) -> Poll<io::Result<u32>> {
        let mut inner = self.inner.borrow_mut();
        let Some(slot) = inner.slots.get_mut(ticket.0 as usize) else {
            return Poll::Ready(Err(io::Error::other("no such operation")));
        };
        match slot.state {
            State::Running => {
                match &mut slot.waker {
                    Some(waker) => waker.clone_from(context.waker()),
                    none => *none = Some(context.waker().clone()),
                }
                Poll::Pending
            }
            State::Done(result) => {
                let waited = slot.time.is_some() && result == -libc::ETIME;
                slot.release();
                inner.free.push(ticket.0);
                Poll::Ready(match u32::try_from(result) {
                    Ok(count) => Ok(count),
                    Err(_) if waited => Ok(0),
                    Err(_) => Err(io::Error::from_raw_os_error(-result)),
                })
            }
            State::Free | State::Forgotten => {
                Poll::Ready(Err(io::Error::other("no such operation")))
            }
        }
    }

    fn forget(&self, ticket: Ticket) {
        let mut inner = self.inner.borrow_mut();
        let Some(slot) = inner.slots.get_mut(ticket.0 as usize) else {
            return;
        };
        match slot.state {
            State::Running => {
                slot.state = State::Forgotten;
                slot.waker = None;
                let waits = slot.time.is_some();
                inner.forgotten += 1;
                if waits {
                    let source = Source {
                        place: ticket.0,
                        generation: 0,
                    };
                    let entry = opcode::TimeoutRemove::new(operation(ticket.0))
                        .build()
                        .flags(squeue::Flags::SKIP_SUCCESS)
                        .user_data(user_data(Kind::Abort, source));
                    inner.push(entry);
                }
            }
            State::Done(_) => {
                slot.release();
                inner.free.push(ticket.0);
            }
            State::Free | State::Forgotten => {}
        }
    }

    fn run_blocking(&self, job: Box<dyn FnOnce() + Send>) {
        self.pool.run(job);
    }

    fn allocate(&self, len: usize) -> io::Result<OwnedBuffer> {
        let memory = Arc::new(SharedMemory::new(Arc::new(Mapping::anonymous(len.max(1))?)));
        OwnedBuffer::new(memory, vec![Segment { offset: 0, len }]).map_err(io::Error::other)
    }
}

impl Drop for UringEngine {
    /// The kernel may touch the slots' memory until it has answered everything.
    fn drop(&mut self) {
        let inner = self.inner.get_mut();
        let mut events = Vec::new();
        while inner.works() {
            if inner.enter(Wait::Event).is_err() {
                // Nothing more can be learnt; what the kernel may still use must not be freed.
                mem::forget(mem::take(&mut inner.slots));
                return;
            }
            inner.collect(&mut events);
        }
    }
}
