//! The operations of an engine.
//!
//! What the kernel may still touch stays alive in the operation's slot: the file, the memory, and
//! the list of segments. A slot is free again when the kernel has answered *and* the waiting side
//! has taken the answer, or has gone away.

use std::io;
use std::mem;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use io_uring::types;
use tcmu_handler::{Buffer, File, Memory, Ticket};

use super::detour::{Recall, Work};

/// UIO_MAXIOV of include/uapi/linux/uio.h: more segments are transferred in several operations.
const MAX_SEGMENTS: usize = 1024;
/// MAX_RW_COUNT of include/linux/fs.h without the page size's part: more is transferred in parts.
const MAX_TRANSFER: usize = 1 << 30;

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
pub(super) struct Slot {
    state: State,
    waker: Option<Waker>,
    /// Read by the kernel while the operation runs.
    pub(super) segments: Vec<libc::iovec>,
    /// The same, and written to; at an address that does not change.
    message: Option<Box<libc::msghdr>>,
    /// Read by the kernel when it gets the operation. Only operations that wait have it.
    time: Option<Box<types::Timespec>>,
    pub(super) file: Option<File>,
    pub(super) memories: Vec<Arc<dyn Memory>>,
    /// What is to be done, if a thread can do it as well.
    pub(super) work: Option<Work>,
    /// The lower, the older. Only operations with `work` have it, and what follows.
    pub(super) number: u64,
    /// How often the engine had looked at the operations' ages when this one began.
    pub(super) since: u32,
    pub(super) recall: Recall,
}

impl Slot {
    fn empty() -> Self {
        Self {
            state: State::Free,
            waker: None,
            segments: Vec::new(),
            message: None,
            time: None,
            file: None,
            memories: Vec::new(),
            work: None,
            number: 0,
            since: 0,
            recall: Recall::No,
        }
    }

    /// Whether the kernel has the operation, and a thread could have it instead.
    fn can_be_recalled(&self) -> bool {
        let is_under_way = matches!(self.state, State::Running | State::Forgotten);
        is_under_way && self.work.is_some() && self.recall != Recall::Elsewhere
    }

    fn release(&mut self) {
        self.state = State::Free;
        self.waker = None;
        self.time = None;
        self.file = None;
        self.work = None;
        self.recall = Recall::No;
        self.memories.clear();
        self.segments.clear();
    }

    /// Notes the segments of a transfer, as many as one operation takes.
    pub(super) fn set_segments(&mut self, parts: &[Buffer<'_>]) {
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
    pub(super) fn set_message(&mut self, parts: &[Buffer<'_>]) -> *mut libc::msghdr {
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

/// The slots of an engine.
#[derive(Default)]
pub(super) struct Slots {
    all: Vec<Slot>,
    free: Vec<u32>,
    /// Operations that the kernel has not answered.
    running: usize,
    /// Those of them that nobody waits for.
    forgotten: usize,
    /// Those of them that only wait for a time to be over.
    waits: usize,
}

impl Slots {
    /// A slot for an operation that the kernel is going to get.
    pub(super) fn take(&mut self) -> (u32, &mut Slot) {
        let place = self.free.pop().unwrap_or_else(|| {
            self.all.push(Slot::empty());
            self.all.len() as u32 - 1
        });
        self.running += 1;
        let slot = &mut self.all[place as usize];
        slot.state = State::Running;
        (place, slot)
    }

    /// The slot of an operation.
    pub(super) fn get(&self, place: u32) -> &Slot {
        &self.all[place as usize]
    }

    pub(super) fn get_mut(&mut self, place: u32) -> &mut Slot {
        &mut self.all[place as usize]
    }

    /// The operations on a file that the kernel has.
    pub(super) fn of_file(&self, file: &File) -> Vec<u32> {
        let on_file = |slot: &Slot| slot.file.as_ref().is_some_and(|of| Arc::ptr_eq(of, file));
        let found = self.recallable().filter(|(_, slot)| on_file(slot));
        found.map(|(place, _)| place).collect()
    }

    /// The oldest operation of each file, unless it began less than two looks before the `looks`th.
    pub(super) fn oldest(&self, looks: u32) -> Vec<u32> {
        let mut found: Vec<_> = self
            .recallable()
            .filter(|(_, slot)| looks.wrapping_sub(slot.since) >= 2)
            .map(|(place, slot)| (slot.file.as_ref().map(Arc::as_ptr), slot.number, place))
            .collect();
        found.sort_unstable();
        found.dedup_by_key(|(file, ..)| *file);
        found.into_iter().map(|(.., place)| place).collect()
    }

    fn recallable(&self) -> impl Iterator<Item = (u32, &Slot)> {
        let slots = (0..).zip(&self.all);
        slots.filter(|(_, slot)| slot.can_be_recalled())
    }

    /// The operation in the slot `place` only waits for this time to be over. Returns where the
    /// kernel reads it.
    pub(super) fn set_time(&mut self, place: u32, time: Duration) -> *const types::Timespec {
        self.waits += 1;
        let time = Box::new(types::Timespec::from(time));
        &raw const **self.all[place as usize].time.insert(time)
    }

    /// Whether the kernel works on an operation, and may touch its memory.
    pub(super) fn works(&self) -> bool {
        self.running > self.waits
    }

    /// Whether operations run that nobody waits for any more.
    pub(super) fn has_forgotten(&self) -> bool {
        self.forgotten > 0
    }

    /// The kernel has answered: with a count, or a negative errno.
    pub(super) fn ended(&mut self, place: u32, result: i32) {
        let Some(slot) = self.all.get_mut(place as usize) else {
            return;
        };
        self.running -= 1;
        self.waits -= usize::from(slot.time.is_some());
        if slot.state == State::Forgotten {
            self.forgotten -= 1;
            slot.release();
            self.free.push(place);
        } else {
            slot.state = State::Done(result);
            if let Some(waker) = slot.waker.take() {
                waker.wake();
            }
        }
    }

    /// Takes the answer, or leaves word whom to wake.
    pub(super) fn poll(
        &mut self,
        ticket: Ticket,
        context: &mut Context<'_>,
    ) -> Poll<io::Result<u32>> {
        let Some(slot) = self.all.get_mut(ticket.0 as usize) else {
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
                self.free.push(ticket.0);
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

    /// Nobody takes the answer any more. Says whether the operation only waits, and is of no use now.
    pub(super) fn forget(&mut self, ticket: Ticket) -> bool {
        let Some(slot) = self.all.get_mut(ticket.0 as usize) else {
            return false;
        };
        match slot.state {
            State::Running => {
                slot.state = State::Forgotten;
                slot.waker = None;
                self.forgotten += 1;
                slot.time.is_some()
            }
            State::Done(_) => {
                slot.release();
                self.free.push(ticket.0);
                false
            }
            State::Free | State::Forgotten => false,
        }
    }
}
