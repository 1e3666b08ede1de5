//! An I/O engine that does what a kernel, a failing disk and a power cut may do.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::fs;
use std::future::Future;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::thread;

use rustix::fs::{FallocateFlags, fallocate};

use super::elsewhere::Elsewhere;
use super::record::{FileId, Record, durable};
use super::{Aligned, Random, Together, buffer};
use crate::{Engine, File, Io, Operation, OwnedBuffer, Ticket};

/// Short transfers end at multiples of this many bytes, so that direct I/O can go on.
const SHORT: u64 = 4096;
/// The same for [repeatable](UnorderedEngine::repeatable) engines.
const VERY_SHORT: u64 = 512;

/// The kinds of operations that can be made to fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum OperationKind {
    /// [`Operation::Read`].
    Read,
    /// [`Operation::Write`].
    Write,
    /// [`Operation::Sync`].
    Sync,
    /// [`Operation::Allocate`].
    Allocate,
}

/// One operation that is to fail.
#[derive(Clone, Copy, Debug)]
pub struct Fault {
    /// Which kind.
    pub kind: OperationKind,
    /// The how-manieth of its kind from now on, counted from 1.
    pub nth: usize,
    /// The operating system's error that it ends with; it has done nothing then.
    pub errno: i32,
    /// All that come after it fail as well.
    pub for_good: bool,
}

/// What a power cut leaves of writes that no sync has covered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Left {
    /// Nothing.
    Nothing,
    /// Each of them or not, by chance.
    Some,
    /// Everything, as after the death of the process alone.
    Everything,
}

/// An engine that does operations one at a time, in random order, some of them short; that fails when
/// it is told to; and that can take back what was not synced.
///
/// It moves on only where [`Together`] waits for it.
pub struct UnorderedEngine {
    state: RefCell<State>,
    random: RefCell<Random>,
    fault: Cell<Option<Fault>>,
    struck: Cell<bool>,
    remembers: Cell<bool>,
    /// The next operation of this kind is held back.
    hold: Cell<Option<OperationKind>>,
    is_repeatable: bool,
}

#[derive(Default)]
struct State {
    slots: Vec<Slot>,
    /// Slots of operations that were not done yet.
    queue: Vec<usize>,
    /// Slots of operations that are held back.
    held: Vec<usize>,
    /// Slots that can be used again.
    free: Vec<usize>,
    /// How many of the fault's kind have come since it was set.
    seen: usize,
    log: Vec<Record>,
    /// The files that were changed, each with an open file description of our own, without the locks
    /// of the handler's.
    files: HashMap<FileId, fs::File>,
}

struct Queued {
    kind: OperationKind,
    file: File,
    buffer: Option<OwnedBuffer>,
    offset: u64,
    len: u64,
    mode: i32,
    durable: bool,
    /// How many records there were when the operation began: a sync covers no more.
    begun: usize,
}

enum Slot {
    Queued(Box<Queued>, Option<Waker>),
    Done(io::Result<u32>),
    /// Nobody waits for it any more.
    Forgotten(Box<Queued>),
    /// It waits for others; the order is theirs.
    Elsewhere(Elsewhere),
    Free,
}

impl State {
    /// Puts something into a free slot.
    fn place(&mut self, entry: Slot) -> usize {
        match self.free.pop() {
            Some(slot) => {
                self.slots[slot] = entry;
                slot
            }
            None => {
                self.slots.push(entry);
                self.slots.len() - 1
            }
        }
    }
}

impl UnorderedEngine {
    /// An engine whose order belongs to `seed`.
    pub fn new(seed: u64) -> Rc<Self> {
        Self::make(seed, false)
    }

    /// The same, for backstores without direct I/O whose blocking jobs wait for nobody: the jobs run on
    /// the calling thread, so that a seed leads to the same run each time, and transfers can be shorter.
    pub fn repeatable(seed: u64) -> Rc<Self> {
        Self::make(seed, true)
    }

    fn make(seed: u64, is_repeatable: bool) -> Rc<Self> {
        Rc::new(Self {
            state: RefCell::default(),
            random: RefCell::new(Random::new(seed)),
            fault: Cell::new(None),
            struck: Cell::new(false),
            remembers: Cell::new(false),
            hold: Cell::new(None),
            is_repeatable,
        })
    }

    /// The way to this engine.
    pub fn io(self: &Rc<Self>) -> Io {
        Io::new(Rc::clone(self) as Rc<dyn Engine>)
    }

    /// Runs one future to its end.
    pub fn run<T>(self: &Rc<Self>, future: impl Future<Output = T>) -> T {
        let mut together = Together::new(self);
        together.add(future);
        together.finish_one().expect("it was just added")
    }

    /// Has an operation fail; `None`: all succeed again.
    pub fn set_fault(&self, fault: Option<Fault>) {
        self.state.borrow_mut().seen = 0;
        self.struck.set(false);
        self.fault.set(fault);
    }

    /// Whether the fault that was set last has come to pass.
    pub fn has_struck(&self) -> bool {
        self.struck.get()
    }

    /// The next operation of this kind is not done until [`release`](Self::release).
    pub fn hold(&self, kind: OperationKind) {
        self.hold.set(Some(kind));
    }

    /// Whether an operation is held back; not if none of the kind has come yet.
    pub fn holds(&self) -> bool {
        !self.state.borrow().held.is_empty()
    }

    /// Lets what is held back be done.
    pub fn release(&self) {
        let mut state = self.state.borrow_mut();
        let held = std::mem::take(&mut state.held);
        state.queue.extend(held);
    }

    /// From now on the engine remembers what [`cut_power`](Self::cut_power) takes back. What is in
    /// regular files now is safe.
    pub fn remember(&self) {
        self.remembers.set(true);
    }

    /// How many records there are of what was done since [`remember`](Self::remember).
    pub fn position(&self) -> usize {
        self.state.borrow().log.len()
    }

    /// The records; the engine has none afterwards.
    pub fn take_log(&self) -> Vec<Record> {
        std::mem::take(&mut self.state.borrow_mut().log)
    }

    /// The power fails: operations that wait are gone, and of what no sync has covered is left what
    /// `left` says. To be called when the backstore was dropped.
    ///
    /// What the handler has written past the engine stays.
    ///
    /// # Errors
    /// If the files cannot be written to.
    pub fn cut_power(&self, left: Left) -> io::Result<()> {
        let mut state = self.state.borrow_mut();
        let State {
            slots,
            queue,
            held,
            free,
            log,
            files,
            ..
        } = &mut *state;
        slots.clear();
        queue.clear();
        held.clear();
        free.clear();
        let mut random = self.random.borrow_mut();
        let place = |file: &FileId, bytes: &[u8], offset: u64| match files.get(file) {
            Some(file) => file.write_all_at(bytes, offset),
            None => Ok(()),
        };
        for record in log.iter().rev() {
            match record {
                Record::Write {
                    file,
                    offset,
                    before,
                    ..
                }
                | Record::Zero {
                    file,
                    offset,
                    before,
                } => place(file, before, *offset)?,
                Record::Sync { .. } => {}
            }
        }
        for (record, is_durable) in log.iter().zip(durable(log)) {
            let lucky = match left {
                Left::Nothing => false,
                Left::Some => random.one_in(2),
                Left::Everything => true,
            };
            match record {
                _ if !is_durable && !lucky => {}
                Record::Write {
                    file,
                    offset,
                    after,
                    ..
                } => place(file, after, *offset)?,
                Record::Zero {
                    file,
                    offset,
                    before,
                } => place(file, &vec![0; before.len()], *offset)?,
                Record::Sync { .. } => {}
            }
        }
        log.clear();
        files.clear();
        self.remembers.set(false);
        Ok(())
    }

    /// Does one of the operations that wait; false if none does.
    pub(super) fn step(&self) -> bool {
        let mut state = self.state.borrow_mut();
        if state.queue.is_empty() {
            return false;
        }
        let mut random = self.random.borrow_mut();
        let place = random.below(state.queue.len() as u64) as usize;
        let slot = state.queue.swap_remove(place);
        let (queued, waiting) = match std::mem::replace(&mut state.slots[slot], Slot::Free) {
            Slot::Queued(queued, waker) => (queued, Some(waker)),
            Slot::Forgotten(queued) => (queued, None),
            Slot::Done(_) | Slot::Elsewhere(_) | Slot::Free => return true,
        };
        let result = match self.strike(&mut state, queued.kind) {
            Some(error) => Err(error),
            None => self.execute(&mut state, &mut random, &queued),
        };
        match waiting {
            Some(waker) => {
                state.slots[slot] = Slot::Done(result);
                if let Some(waker) = waker {
                    waker.wake();
                }
            }
            None => state.free.push(slot),
        }
        true
    }

    fn strike(&self, state: &mut State, kind: OperationKind) -> Option<io::Error> {
        let fault = self.fault.get().filter(|fault| fault.kind == kind)?;
        state.seen += 1;
        let is_hit = state.seen == fault.nth || (fault.for_good && state.seen > fault.nth);
        if !is_hit {
            return None;
        }
        self.struck.set(true);
        Some(io::Error::from_raw_os_error(fault.errno))
    }

    fn execute(&self, state: &mut State, random: &mut Random, queued: &Queued) -> io::Result<u32> {
        let file = fs::File::from(queued.file.try_clone()?);
        // Sometimes the kernel does less than it was asked for.
        let unit = if self.is_repeatable {
            VERY_SHORT
        } else {
            SHORT
        };
        let mut shorten = |len: usize| match random.one_in(20) {
            true if len as u64 > unit => (unit * (1 + random.below(len as u64 / unit))) as usize,
            _ => len,
        };
        match (queued.kind, &queued.buffer) {
            (OperationKind::Read, Some(buffer)) => {
                let len = shorten(buffer.view().len());
                let mut bytes = Aligned::new(len);
                let count = file.read_at(bytes.as_mut(), queued.offset)?;
                buffer.view().copy_from(0, &bytes.as_mut()[..count]);
                Ok(count as u32)
            }
            (OperationKind::Write, Some(buffer)) => {
                let len = shorten(buffer.view().len());
                let mut bytes = Aligned::new(len);
                buffer.view().copy_to(0, bytes.as_mut());
                let before = self.before(state, queued, len as u64)?;
                file.write_all_at(bytes.as_mut(), queued.offset)?;
                if let Some((file, before)) = before {
                    state.log.push(Record::Write {
                        file,
                        offset: queued.offset,
                        before,
                        after: bytes.as_mut().to_vec(),
                        durable: queued.durable,
                    });
                }
                Ok(len as u32)
            }
            // What no power cut can lose need not go to the medium.
            (OperationKind::Sync, _) => {
                if self.remembers.get() {
                    state.log.push(Record::Sync {
                        file: id_of(&file)?,
                        covers: queued.begun,
                    });
                }
                Ok(0)
            }
            _ => {
                let mode = FallocateFlags::from_bits_retain(queued.mode as u32);
                let zeroes =
                    mode.intersects(FallocateFlags::PUNCH_HOLE.union(FallocateFlags::ZERO_RANGE));
                let within = file.metadata()?.len().saturating_sub(queued.offset);
                let before = match zeroes {
                    true => self.before(state, queued, queued.len.min(within))?,
                    false => None,
                };
                fallocate(&file, mode, queued.offset, queued.len)?;
                if let Some((file, before)) = before {
                    state.log.push(Record::Zero {
                        file,
                        offset: queued.offset,
                        before,
                    });
                }
                Ok(0)
            }
        }
    }

    /// The bytes that a change replaces, if they are to be remembered.
    fn before(
        &self,
        state: &mut State,
        queued: &Queued,
        len: u64,
    ) -> io::Result<Option<(FileId, Vec<u8>)>> {
        let file = fs::File::from(queued.file.try_clone()?);
        if !self.remembers.get() || !file.metadata()?.is_file() {
            return Ok(None);
        }
        let id = id_of(&file)?;
        let own = match state.files.entry(id) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(new) => {
                let path = format!("/proc/self/fd/{}", file.as_raw_fd());
                let own = fs::File::options().read(true).write(true).open(path)?;
                new.insert(own)
            }
        };
        let mut before = vec![0; len as usize];
        let mut done = 0;
        // What lies behind the end of the file is zero.
        while let Some(rest) = before.get_mut(done..).filter(|rest| !rest.is_empty()) {
            match own.read_at(rest, queued.offset + done as u64)? {
                0 => break,
                count => done += count,
            }
        }
        Ok(Some((id, before)))
    }
}

fn id_of(file: &fs::File) -> io::Result<FileId> {
    let metadata = file.metadata()?;
    Ok((metadata.dev(), metadata.ino()))
}

impl Engine for UnorderedEngine {
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
        if let Some(elsewhere) = Elsewhere::start(&operation) {
            return Ticket(state.place(Slot::Elsewhere(elsewhere)) as u32);
        }
        let queued = match operation {
            Operation::Read {
                file,
                buffer,
                offset,
            } => Queued {
                buffer: Some(buffer.to_owned()),
                offset,
                ..empty(OperationKind::Read, file)
            },
            Operation::Write {
                file,
                buffer,
                offset,
                durable,
                in_memory: _,
            } => Queued {
                buffer: Some(buffer.to_owned()),
                offset,
                durable,
                ..empty(OperationKind::Write, file)
            },
            Operation::Sync { file } => empty(OperationKind::Sync, file),
            Operation::Allocate { file, mode, extent } => Queued {
                offset: extent.offset,
                len: extent.len,
                mode,
                ..empty(OperationKind::Allocate, file)
            },
            Operation::Send { .. } | Operation::Receive { .. } | Operation::Wait { .. } => {
                unreachable!("done elsewhere")
            }
        };
        let is_held = self.hold.get() == Some(queued.kind);
        let slot = state.place(Slot::Queued(Box::new(queued), None));
        if is_held {
            self.hold.set(None);
            state.held.push(slot);
        } else {
            state.queue.push(slot);
        }
        Ticket(slot as u32)
    }

    fn poll(&self, ticket: Ticket, context: &mut Context<'_>) -> Poll<io::Result<u32>> {
        let mut state = self.state.borrow_mut();
        let slot = ticket.0 as usize;
        match state.slots.get_mut(slot) {
            Some(Slot::Queued(_, waker)) => {
                *waker = Some(context.waker().clone());
                Poll::Pending
            }
            Some(Slot::Elsewhere(elsewhere)) => {
                let result = elsewhere.poll(context);
                if result.is_ready() {
                    state.slots[slot] = Slot::Free;
                    state.free.push(slot);
                }
                result
            }
            Some(done @ Slot::Done(_)) => {
                let done = std::mem::replace(done, Slot::Free);
                state.free.push(slot);
                match done {
                    Slot::Done(result) => Poll::Ready(result),
                    _ => Poll::Pending,
                }
            }
            _ => Poll::Ready(Err(io::Error::other("no such operation"))),
        }
    }

    fn forget(&self, ticket: Ticket) {
        let mut state = self.state.borrow_mut();
        let slot = ticket.0 as usize;
        let Some(entry) = state.slots.get_mut(slot) else {
            return; // The power was cut meanwhile.
        };
        match std::mem::replace(entry, Slot::Free) {
            // It still runs to its end.
            Slot::Queued(queued, _) => *entry = Slot::Forgotten(queued),
            Slot::Done(_) | Slot::Elsewhere(_) => state.free.push(slot),
            other => *entry = other,
        }
    }

    fn run_blocking(&self, job: Box<dyn FnOnce() + Send>) {
        if self.is_repeatable {
            job();
        } else {
            thread::spawn(job);
        }
    }

    fn allocate(&self, len: usize) -> io::Result<OwnedBuffer> {
        Ok(buffer(len))
    }
}

impl std::fmt::Debug for UnorderedEngine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("UnorderedEngine")
            .field("fault", &self.fault.get())
            .finish_non_exhaustive()
    }
}
