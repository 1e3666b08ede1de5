//! An I/O engine that does operations one at a time in random order, cuts some of them short, notes
//! what it did, and fails when told to.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::future::Future;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};

use rustix::fs::{FallocateFlags, fallocate};
use tcmu_handler::testing::buffer;
use tcmu_handler::{Engine, File, Io, Operation, OwnedBuffer, Ticket};

/// Small, fast, and the same everywhere.
#[derive(Clone, Debug)]
pub(super) struct Random(u64);

impl Random {
    pub(super) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub(super) fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 11
    }

    pub(super) fn below(&mut self, end: u64) -> u64 {
        self.next() % end.max(1)
    }

    pub(super) fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }
}

/// What an operation did to a file, or promised.
#[derive(Clone, Debug)]
pub(super) enum Record {
    Write {
        file: i32,
        offset: u64,
        bytes: Vec<u8>,
        durable: bool,
    },
    Zero {
        file: i32,
        offset: u64,
        len: u64,
    },
    /// All of the file's records before `covers` are durable.
    Sync {
        file: i32,
        covers: usize,
    },
}

/// The kinds of operations that can be made to fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Kind {
    Read,
    Write,
    Sync,
    Allocate,
}

/// The `nth` operation of a kind fails, or all from then on.
#[derive(Clone, Copy, Debug)]
pub(super) struct Fault {
    pub(super) kind: Kind,
    pub(super) nth: usize,
    pub(super) errno: i32,
    pub(super) for_good: bool,
}

struct Queued {
    kind: Kind,
    file: File,
    buffer: Option<OwnedBuffer>,
    offset: u64,
    len: u64,
    mode: i32,
    durable: bool,
    /// How long the log was when the operation began.
    begun: usize,
}

enum Slot {
    Queued(Box<Queued>, Option<Waker>),
    Done(io::Result<u32>),
    Taken,
}

#[derive(Default)]
struct State {
    slots: Vec<Slot>,
    queue: Vec<usize>,
    /// Operations that are not to be done yet.
    held: Vec<usize>,
    log: Vec<Record>,
    seen: HashMap<Kind, usize>,
}

pub(super) struct Disordered {
    state: RefCell<State>,
    random: RefCell<Random>,
    /// The next operation of this kind is not done until [`release`](Self::release).
    pub(super) hold: Cell<Option<Kind>>,
    /// Whether what is done is noted.
    pub(super) logs: Cell<bool>,
    pub(super) fault: Cell<Option<Fault>>,
    /// The fault has come to pass.
    pub(super) struck: Cell<bool>,
}

impl Disordered {
    pub(super) fn new(seed: u64) -> Rc<Self> {
        Rc::new(Self {
            state: RefCell::default(),
            random: RefCell::new(Random::new(seed)),
            hold: Cell::new(None),
            logs: Cell::new(false),
            fault: Cell::new(None),
            struck: Cell::new(false),
        })
    }

    pub(super) fn io(self: &Rc<Self>) -> Io {
        Io::new(Rc::clone(self) as Rc<dyn Engine>)
    }

    /// How many records there are.
    pub(super) fn position(&self) -> usize {
        self.state.borrow().log.len()
    }

    pub(super) fn take_log(&self) -> Vec<Record> {
        std::mem::take(&mut self.state.borrow_mut().log)
    }

    /// Lets what is held be done.
    pub(super) fn release(&self) {
        let mut state = self.state.borrow_mut();
        let held = std::mem::take(&mut state.held);
        assert!(!held.is_empty(), "nothing is held");
        state.queue.extend(held);
    }

    /// Does one of the operations that wait; false if none does.
    fn step(&self) -> bool {
        let mut state = self.state.borrow_mut();
        if state.queue.is_empty() {
            return false;
        }
        let mut random = self.random.borrow_mut();
        let place = random.below(state.queue.len() as u64) as usize;
        let slot = state.queue.swap_remove(place);
        let Slot::Queued(queued, waker) = std::mem::replace(&mut state.slots[slot], Slot::Taken)
        else {
            unreachable!("only queued operations are in the queue");
        };
        let result = match self.strike(&mut state, queued.kind) {
            Some(error) => Err(error),
            None => self.run(&mut state, &mut random, &queued),
        };
        state.slots[slot] = Slot::Done(result);
        if let Some(waker) = waker {
            waker.wake();
        }
        true
    }

    fn strike(&self, state: &mut State, kind: Kind) -> Option<io::Error> {
        let seen = state.seen.entry(kind).or_default();
        *seen += 1;
        let fault = self.fault.get().filter(|fault| fault.kind == kind)?;
        let hit = *seen == fault.nth || (fault.for_good && *seen >= fault.nth);
        self.struck.set(self.struck.get() || hit);
        hit.then(|| io::Error::from_raw_os_error(fault.errno))
    }

    fn run(&self, state: &mut State, random: &mut Random, queued: &Queued) -> io::Result<u32> {
        let file = std::fs::File::from(queued.file.try_clone()?);
        let number = queued.file.as_raw_fd();
        let mut note = |record: Record| {
            if self.logs.get() {
                state.log.push(record);
            }
        };
        // Sometimes the kernel does less than it was asked for.
        let shorten = |random: &mut Random, len: usize| match random.one_in(20) {
            true if len > 512 => 512 * (1 + random.below(len as u64 / 512) as usize),
            _ => len,
        };
        match (queued.kind, &queued.buffer) {
            (Kind::Read, Some(buffer)) => {
                let mut bytes = vec![0; shorten(random, buffer.view().len())];
                let count = file.read_at(&mut bytes, queued.offset)?;
                buffer.view().copy_from(0, &bytes[..count]);
                Ok(count as u32)
            }
            (Kind::Write, Some(buffer)) => {
                let mut bytes = vec![0; shorten(random, buffer.view().len())];
                buffer.view().copy_to(0, &mut bytes);
                file.write_all_at(&bytes, queued.offset)?;
                let count = bytes.len();
                note(Record::Write {
                    file: number,
                    offset: queued.offset,
                    bytes,
                    durable: queued.durable,
                });
                Ok(count as u32)
            }
            (Kind::Sync, _) => {
                note(Record::Sync {
                    file: number,
                    covers: queued.begun,
                });
                Ok(0)
            }
            _ => {
                let mode = FallocateFlags::from_bits_retain(queued.mode as u32);
                fallocate(&file, mode, queued.offset, queued.len)?;
                note(Record::Zero {
                    file: number,
                    offset: queued.offset,
                    len: queued.len,
                });
                Ok(0)
            }
        }
    }
}

impl Engine for Disordered {
    fn submit(&self, operation: Operation<'_>) -> Ticket {
        let mut state = self.state.borrow_mut();
        let empty = |kind, file: &File| Queued {
            kind,
            file: Arc::clone(file),
            buffer: None,
            offset: 0,
            len: 0,
            mode: 0,
            durable: false,
            begun: state.log.len(),
        };
        let queued = match operation {
            Operation::Read {
                file,
                buffer,
                offset,
            } => Queued {
                buffer: Some(buffer.to_owned()),
                offset,
                ..empty(Kind::Read, file)
            },
            Operation::Write {
                file,
                buffer,
                offset,
                durable,
            } => Queued {
                buffer: Some(buffer.to_owned()),
                offset,
                durable,
                ..empty(Kind::Write, file)
            },
            Operation::Sync { file } => empty(Kind::Sync, file),
            Operation::Allocate { file, mode, extent } => Queued {
                offset: extent.offset,
                len: extent.len,
                mode,
                ..empty(Kind::Allocate, file)
            },
            other => unreachable!("{other:?} on a file"),
        };
        let slot = state.slots.len();
        let held = self.hold.get() == Some(queued.kind);
        if held {
            self.hold.set(None);
        }
        state.slots.push(Slot::Queued(Box::new(queued), None));
        match held {
            true => state.held.push(slot),
            false => state.queue.push(slot),
        }
        Ticket(slot as u32)
    }

    fn poll(&self, ticket: Ticket, context: &mut Context<'_>) -> Poll<io::Result<u32>> {
        let mut state = self.state.borrow_mut();
        let slot = &mut state.slots[ticket.0 as usize];
        if let Slot::Queued(_, waker) = slot {
            *waker = Some(context.waker().clone());
            return Poll::Pending;
        }
        match std::mem::replace(slot, Slot::Taken) {
            Slot::Done(result) => Poll::Ready(result),
            _ => panic!("polled after its end"),
        }
    }

    fn forget(&self, _ticket: Ticket) {}

    fn run_blocking(&self, job: Box<dyn FnOnce() + Send>) {
        job();
    }

    fn allocate(&self, len: usize) -> io::Result<OwnedBuffer> {
        Ok(buffer(len))
    }
}

struct Flag(AtomicBool);

impl Wake for Flag {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::Release);
    }
}

/// A future and whether it was woken.
type Running<'a, T> = (Pin<Box<dyn Future<Output = T> + 'a>>, Arc<Flag>);

fn is_awake<T>((_, flag): &Running<'_, T>) -> bool {
    flag.0.load(Ordering::Acquire)
}

/// Futures that run together on one thread.
pub(super) struct Together<'a, T> {
    engine: Rc<Disordered>,
    running: Vec<Running<'a, T>>,
}

impl<'a, T> Together<'a, T> {
    pub(super) fn new(engine: &Rc<Disordered>) -> Self {
        Self {
            engine: Rc::clone(engine),
            running: Vec::new(),
        }
    }

    pub(super) fn add(&mut self, future: impl Future<Output = T> + 'a) {
        let flag = Arc::new(Flag(AtomicBool::new(true)));
        self.running.push((Box::pin(future), flag));
    }

    pub(super) fn len(&self) -> usize {
        self.running.len()
    }

    /// Runs until one has ended; nothing if there is none.
    ///
    /// # Panics
    /// If all wait for something that never comes.
    pub(super) fn next(&mut self) -> Option<T> {
        if self.running.is_empty() {
            return None;
        }
        loop {
            if let Some(output) = self.poll() {
                return Some(output);
            }
            assert!(
                self.engine.step() || self.running.iter().any(is_awake),
                "{} requests wait for each other",
                self.running.len()
            );
        }
    }

    /// Runs until nothing moves any more; returns the output of the first to end, if one does.
    pub(super) fn run_dry(&mut self) -> Option<T> {
        loop {
            if let Some(output) = self.poll() {
                return Some(output);
            }
            if !self.engine.step() && !self.running.iter().any(is_awake) {
                return None;
            }
        }
    }

    /// Lets those run that were woken; returns the output of the first to end.
    pub(super) fn poll(&mut self) -> Option<T> {
        for place in 0..self.running.len() {
            let (future, flag) = &mut self.running[place];
            if !flag.0.swap(false, Ordering::AcqRel) {
                continue;
            }
            let waker = Waker::from(Arc::clone(flag));
            if let Poll::Ready(output) = future.as_mut().poll(&mut Context::from_waker(&waker)) {
                drop(self.running.swap_remove(place));
                return Some(output);
            }
        }
        None
    }
}

/// Runs one future to its end.
pub(super) fn run<T>(engine: &Rc<Disordered>, future: impl Future<Output = T>) -> T {
    let mut together = Together::new(engine);
    together.add(future);
    together.next().expect("it was just added")
}
