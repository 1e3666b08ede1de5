//! The I/O engine of a reactor: one io_uring.
//!
//! Operations are only queued here; [`UringEngine::turn`] hands all of them to the kernel in one
//! system call, together with the kicks of the LUNs, and waits for the next event in the same call.
//!
//! What the kernel may still touch stays alive in the operation's [slot](super::slots). What it has
//! not answered for long because another file's operations hang is done another way, see
//! [`detour`](super::detour).

use std::cell::RefCell;
use std::collections::VecDeque;
use std::io;
use std::mem;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::thread;
use std::time::Duration;

use io_uring::{IoUring, cqueue, opcode, squeue, types};
use tcmu::mapping::Mapping;
use tcmu_handler::{Engine, File, Operation, OwnedBuffer, Segment, Ticket};

use super::age;
use super::blocking::BlockingPool;
use super::detour::{Detours, Recall, Work};
use super::memory::SharedMemory;
use super::slots::Slots;

/// Operations queued before the kernel has to take some of them.
const SUBMISSION_ENTRIES: u32 = 256;
/// More than one reactor's LUNs have in flight as a rule; the kernel keeps what does not fit.
const COMPLETION_ENTRIES: u32 = 4096;
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
    Recall = 7,
    Detour = 8,
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

/// For what is about no source.
const NOWHERE: Source = Source {
    place: 0,
    generation: 0,
};

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

/// A write to a file in memory that the kernel does not know of yet.
struct Held {
    /// Of its slot.
    place: u32,
    offset: u64,
    /// RWF_* bits.
    flags: i32,
    /// The same write for io_uring.
    entry: squeue::Entry,
}

/// How much a reactor has done so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// System calls: io_uring_enter, which submits and waits for everything at once, rests, and
    /// writes to files in memory.
    pub system_calls: u64,
    /// Operations of backstores that were handed to the kernel.
    pub operations: u64,
    /// Kicks of LUNs.
    pub kicks: u64,
}

struct Inner {
    uring: IoUring,
    slots: Slots,
    /// Entries that found the submission queue full.
    backlog: VecDeque<squeue::Entry>,
    /// Writes to files in memory; empty between turns.
    held: Vec<Held>,
    /// Several commands are outstanding as a rule.
    crowd: bool,
    detours: Detours,
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
            slots: Slots::default(),
            backlog: VecDeque::new(),
            held: Vec::new(),
            crowd: false,
            detours: Detours::new()?,
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
        let entry = opcode::Timeout::new(&ALARM)
            .build()
            .user_data(user_data(Kind::Alarm, NOWHERE));
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

    /// Says whether several commands are outstanding as a rule.
    pub(crate) fn expect_crowd(&self, crowd: bool) {
        self.inner.borrow_mut().crowd = crowd;
    }

    /// Whether the kernel works on operations.
    pub(crate) fn is_busy(&self) -> bool {
        self.inner.borrow().slots.works()
    }

    /// Whether operations run that nobody waits for any more.
    pub(crate) fn has_forgotten(&self) -> bool {
        self.inner.borrow().slots.has_forgotten()
    }

    /// Looks after operations that the kernel has had for long. To be called at every
    /// [`Event::Alarm`].
    pub(crate) fn look_at_ages(&self) {
        self.inner.borrow_mut().ask_back();
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

    /// One io_uring_enter, and the writes that are done without.
    fn enter(&mut self, wait: Wait) -> io::Result<()> {
        let prompt = self.release_held();
        while let Some(entry) = self.backlog.pop_front() {
            if !self.push_now(&entry) {
                self.backlog.push_front(entry);
                break;
            }
        }
        let queued = self.uring.submission().len() as u32;
        let may_sleep = !prompt && self.uring.completion().is_empty() && self.backlog.is_empty();
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
        // Behind the kicks, for which initiators wait.
        self.write_held();
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

    /// Hands the held writes to io_uring, unless there is but one, and no others are expected. Says
    /// whether it stays.
    ///
    /// io_uring gives every buffered write to a regular file to a worker thread, where the file system
    /// has not learnt to do without (io_write in io_uring/rw.c), and tmpfs has not. For many writes that
    /// is well: other processors copy them. One takes longer that way.
    fn release_held(&mut self) -> bool {
        if self.held.len() == 1 && !self.crowd {
            return true;
        }
        let mut held = mem::take(&mut self.held);
        for write in held.drain(..) {
            self.push(write.entry);
        }
        self.held = held;
        false
    }

    /// Does the write that is still held.
    fn write_held(&mut self) {
        let mut held = mem::take(&mut self.held);
        for Held {
            place,
            offset,
            flags,
            ..
        } in held.drain(..)
        {
            let slot = self.slots.get(place);
            let Some(file) = &slot.file else { continue };
            self.counters.system_calls += 1;
            // SAFETY: the segments lie in memory that the slot keeps alive, and are only read.
            let done = unsafe {
                libc::pwritev2(
                    file.as_raw_fd(),
                    slot.segments.as_ptr(),
                    slot.segments.len() as i32,
                    offset as i64,
                    flags,
                )
            };
            let result = match done {
                0.. => done as i32, // at most MAX_TRANSFER
                _ => -io::Error::last_os_error()
                    .raw_os_error()
                    .unwrap_or(libc::EIO),
            };
            self.slots.ended(place, result);
        }
        self.held = held;
    }

    fn collect(&mut self, events: &mut Vec<Event>) {
        let Self {
            uring,
            slots,
            detours,
            ..
        } = self;
        for entry in uring.completion() {
            let (data, result) = (entry.user_data(), entry.result());
            match (data >> 56) as u8 {
                kind if kind == Kind::Operation as u8 => {
                    let place = data as u32;
                    if !detours.take_back(place, slots, result) {
                        slots.ended(place, result);
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
                kind if kind == Kind::Recall as u8 => {
                    detours.refused(slots.get_mut(data as u32), result);
                }
                kind if kind == Kind::Detour as u8 => {
                    detours.heard(cqueue::more(entry.flags()));
                }
                _ => {}
            }
        }
        if self.detours.have_news() {
            self.tend_detours();
        }
    }

    /// Starts an operation that has its slot.
    fn run(&mut self, place: u32, entry: squeue::Entry) -> Ticket {
        self.counters.operations += 1;
        self.push(entry.user_data(operation(place)));
        Ticket(place)
    }

    /// Starts an operation that has its slot, and that a thread could do as well.
    fn run_work(&mut self, place: u32, file: &File, work: Work, in_memory: bool) -> Ticket {
        let slot = self.slots.get_mut(place);
        slot.file = Some(Arc::clone(file));
        slot.work = Some(work);
        slot.number = self.counters.operations;
        slot.since = self.detours.looks();
        if self.detours.lead(file) {
            self.counters.operations += 1;
            self.detour(place);
            return Ticket(place);
        }
        let entry = work.entry(types::Fd(file.as_raw_fd()), &slot.segments);
        match work {
            Work::Write { offset, flags } if in_memory => self.hold(place, offset, flags, entry),
            _ => self.run(place, entry),
        }
    }

    /// Has an operation done by a thread as soon as its file's turn has come.
    fn detour(&mut self, place: u32) {
        let slot = self.slots.get_mut(place);
        slot.recall = Recall::Elsewhere;
        if let Some(file) = &slot.file
            && self.detours.enter(file, place)
        {
            self.detours.run(place, slot);
        }
    }

    /// Goes on with operations that came back, and with those that threads have done.
    fn tend_detours(&mut self) {
        if self.detours.wants_to_hear() {
            let bell = types::Fd(self.detours.bell().as_raw_fd());
            let entry = opcode::PollAdd::new(bell, libc::POLLIN as u32)
                .multi(true)
                .build()
                .user_data(user_data(Kind::Detour, NOWHERE));
            self.push(entry);
        }
        while let Some(place) = self.detours.next_back() {
            self.detour(place);
            // The file's others wait as well.
            let others = match &self.slots.get(place).file {
                Some(file) => self.slots.of_file(file),
                None => Vec::new(),
            };
            for place in others {
                self.ask_for(place);
            }
        }
        while let Some((place, result)) = self.detours.next_done() {
            let file = self.slots.get(place).file.clone();
            self.slots.ended(place, result);
            if let Some(next) = file.and_then(|file| self.detours.leave(&file)) {
                self.detours.run(next, self.slots.get(next));
            }
        }
    }

    /// Asks the kernel to give operations back that it has had for long, the oldest of each file.
    fn ask_back(&mut self) {
        let looks = self.detours.look();
        for place in self.slots.oldest(looks) {
            self.ask_for(place);
        }
    }

    /// Asks the kernel to give an operation back.
    fn ask_for(&mut self, place: u32) {
        let slot = self.slots.get_mut(place);
        if slot.recall == Recall::No {
            slot.recall = Recall::Asked;
            let source = Source { place, ..NOWHERE };
            let entry = opcode::AsyncCancel::new(operation(place))
                .build()
                .flags(squeue::Flags::SKIP_SUCCESS)
                .user_data(user_data(Kind::Recall, source));
            self.push(entry);
        }
    }

    /// Keeps a write to a file in memory that has its slot until the kernel is called the next time.
    fn hold(&mut self, place: u32, offset: u64, flags: i32, entry: squeue::Entry) -> Ticket {
        self.counters.operations += 1;
        self.held.push(Held {
            place,
            offset,
            flags,
            entry: entry.user_data(operation(place)),
        });
        Ticket(place)
    }
}

/// The user data of the operation in a slot.
fn operation(place: u32) -> u64 {
    let source = Source { place, ..NOWHERE };
    user_data(Kind::Operation, source)
}

impl Engine for UringEngine {
    fn submit(&self, operation: Operation<'_>) -> Ticket {
        let mut guard = self.inner.borrow_mut();
        let inner = &mut *guard;
        let (place, slot) = inner.slots.take();
        let entry = match operation {
            Operation::Read {
                file,
                buffer,
                offset,
            } => {
                slot.set_segments(&[buffer]);
                return inner.run_work(place, file, Work::Read { offset }, false);
            }
            Operation::Write {
                file,
                buffer,
                offset,
                durable,
                in_memory,
            } => {
                slot.set_segments(&[buffer]);
                let flags = if durable { libc::RWF_DSYNC } else { 0 };
                return inner.run_work(place, file, Work::Write { offset, flags }, in_memory);
            }
            Operation::Sync { file } => {
                return inner.run_work(place, file, Work::Sync, false);
            }
            Operation::Allocate { file, mode, extent } => {
                return inner.run_work(place, file, Work::Allocate { mode, extent }, false);
            }
            Operation::Send { socket, parts } => {
                let message = slot.set_message(parts);
                slot.file = Some(Arc::clone(socket));
                let flags = libc::MSG_NOSIGNAL | libc::MSG_WAITALL;
                opcode::SendMsg::new(types::Fd(socket.as_raw_fd()), message)
                    .flags(flags as u32)
                    .build()
            }
            Operation::Receive {
                socket,
                parts,
                whole,
            } => {
                let message = slot.set_message(parts);
                slot.file = Some(Arc::clone(socket));
                let flags = if whole { libc::MSG_WAITALL } else { 0 };
                opcode::RecvMsg::new(types::Fd(socket.as_raw_fd()), message)
                    .flags(flags as u32)
                    .build()
            }
            Operation::Wait { time } => {
                opcode::Timeout::new(inner.slots.set_time(place, time)).build()
            }
        };
        inner.run(place, entry)
    }

    fn poll(&self, ticket: Ticket, context: &mut Context<'_>) -> Poll<io::Result<u32>> {
        self.inner.borrow_mut().slots.poll(ticket, context)
    }

    fn forget(&self, ticket: Ticket) {
        let mut inner = self.inner.borrow_mut();
        if inner.slots.forget(ticket) {
            let source = Source {
                place: ticket.0,
                ..NOWHERE
            };
            let entry = opcode::TimeoutRemove::new(operation(ticket.0))
                .build()
                .flags(squeue::Flags::SKIP_SUCCESS)
                .user_data(user_data(Kind::Abort, source));
            inner.push(entry);
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
        while inner.slots.works() {
            if inner.enter(Wait::Event).is_err() {
                // Nothing more can be learnt; what the kernel may still use must not be freed.
                mem::forget(mem::take(&mut inner.slots));
                return;
            }
            inner.collect(&mut events);
        }
    }
}

#[cfg(test)]
mod detour_tests;

#[cfg(test)]
mod tests;
