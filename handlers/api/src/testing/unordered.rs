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
use super::{Aligned, Random, Together, buffer};
use crate::{Engine, File, Io, Operation, OwnedBuffer, Ticket};

/// Short transfers end at multiples of this many bytes, so that direct I/O can go on.
const SHORT: u64 = 4096;

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
}

#[derive(Default)]
struct State {
    slots: Vec<Slot>,
    /// Slots of operations that were not done yet.
    queue: Vec<usize>,
    /// Slots that can be used again.
    free: Vec<usize>,
    /// How many of the fault's kind have come since it was set.
    seen: usize,
    log: Vec<Change>,
    /// The files that were changed, each with an open file description of our own, without the locks
    /// of the handler's.
    files: HashMap<FileId, fs::File>,
}

/// Device and inode.
type FileId = (u64, u64);

/// A change of a file that can be taken back.
struct Change {
    file: FileId,
    offset: u64,
    before: Vec<u8>,
    after: Vec<u8>,
    /// It survives a power cut.
    durable: bool,
}

struct Queued {
    kind: OperationKind,
    file: File,
    buffer: Option<OwnedBuffer>,
    offset: u64,
    len: u64,
    mode: i32,
    durable: bool,
    /// How many changes there were when the operation began: a sync covers no more.
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
        Rc::new(Self {
            state: RefCell::default(),
            random: RefCell::new(Random::new(seed)),
            fault: Cell::new(None),
            struck: Cell::new(false),
            remembers: Cell::new(false),
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

    /// From now on the engine remembers what [`cut_power`](Self::cut_power) takes back. What is in
    /// regular files now is safe.
    pub fn remember(&self) {
        self.remembers.set(true);
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
            free,
            log,
            files,
            ..
        } = &mut *state;
        slots.clear();
        queue.clear();
        free.clear();
        let mut random = self.random.borrow_mut();
        let place = |change: &Change, bytes: &[u8]| match files.get(&change.file) {
            Some(file) => file.write_all_at(bytes, change.offset),
            None => Ok(()),
        };
        for change in log.iter().rev() {
            place(change, &change.before)?;
        }
        for change in &*log {
            let lucky = match left {
                Left::Nothing => false,
                Left::Some => random.one_in(2),
                Left::Everything => true,
            };
            if change.durable || lucky {
                place(change, &change.after)?;
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
        if state.seen != fault.nth {
            return None;
        }
        self.struck.set(true);
        Some(io::Error::from_raw_os_error(fault.errno))
    }

    fn execute(&self, state: &mut State, random: &mut Random, queued: &Queued) -> io::Result<u32> {
        let file = fs::File::from(queued.file.try_clone()?);
        // Sometimes the kernel does less than it was asked for.
        let mut shorten = |len: usize| match random.one_in(20) {
            true if len as u64 > SHORT => (SHORT * (1 + random.below(len as u64 / SHORT))) as usize,
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
                    state.log.push(Change {
                        file,
                        offset: queued.offset,
                        before,
                        after: bytes.as_mut().to_vec(),
                        durable: queued.durable,
                    });
                }
                Ok(len as u32)
            }
            (OperationKind::Sync, _) => {
                file.sync_data()?;
                let id = id_of(&file)?;
                let covered = state.log.iter_mut().take(queued.begun);
                for change in covered.filter(|change| change.file == id) {
                    change.durable = true;
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
                    state.log.push(Change {
                        file,
                        offset: queued.offset,
                        after: vec![0; before.len()],
                        before,
                        durable: false,
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
        let slot = state.place(Slot::Queued(Box::new(queued), None));
        state.queue.push(slot);
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
        thread::spawn(job);
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
