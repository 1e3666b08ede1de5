//! The requests of a connection that have not ended.

use std::cell::Cell;
use std::mem;
use std::sync::Arc;
use std::task::Waker;

use tcmu_handler::{Buffer, Error, OutOfBounds, OwnedBuffer, Segment};

use crate::coverage::Coverage;
use crate::protocol::{command_flag, error};
use crate::reply::{Content, Malformed, Reply};
use crate::request::{Command, Request};

/// How many errors a server may report of one request.
const MAX_ERRORS: u32 = 4096;

/// How a request ended well.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    Done,
    /// The first so many bytes are kept alike; flags of [`allocation`](crate::protocol::allocation).
    Extent {
        len: u32,
        flags: u32,
    },
}

pub(crate) type Outcome = Result<Answer, Error>;

/// What a reply has led to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Applied {
    /// It is dealt with.
    Taken,
    /// So many bytes follow, which belong at this place of the request's buffer.
    Data { slot: u32, at: usize, len: usize },
    /// The server is about to end.
    ShutDown,
}

#[derive(Debug)]
enum Phase {
    Free,
    /// It waits to be sent.
    Queued,
    /// The kernel has it, or a part of it. The reply can come before the kernel says that all has
    /// been sent, because other requests go with the same message; it then ends the request when the
    /// kernel has let go of its memory.
    Sending(Option<Outcome>),
    /// All of it has been sent.
    Sent,
    Ended(Outcome),
}

#[derive(Debug)]
struct Slot {
    phase: Phase,
    /// Tells this request from the earlier ones of the slot.
    generation: u32,
    /// Where it stands among all requests.
    number: u64,
    request: Request,
    buffer: Option<OwnedBuffer>,
    /// The storage of the next buffer's list of segments.
    segments: Vec<Segment>,
    waker: Option<Waker>,
    /// On how many connections it has been sent.
    tries: u32,
    /// What has come so far.
    covered: Coverage,
    extent: Option<(u32, u32)>,
    failure: Option<(u32, String)>,
    errors: u32,
}

/// The requests of a connection, in slots that are used again: nothing is allocated per request.
#[derive(Debug, Default)]
pub(crate) struct Slots {
    slots: Vec<Slot>,
    free: Vec<u32>,
    /// Those that have not ended.
    waiting: usize,
    /// The reads among them.
    reads: usize,
    numbers: u64,
    /// The metadata context `base:allocation`.
    context: Option<u32>,
    /// Replies come in chunks, but for those that have no data.
    structured: bool,
}

impl Slots {
    /// What was agreed on for the replies: chunks, and the metadata context `base:allocation`.
    pub(crate) fn agree(&mut self, structured: bool, context: Option<u32>) {
        (self.structured, self.context) = (structured, context);
    }

    /// Whether replies come in chunks.
    pub(crate) fn is_structured(&self) -> bool {
        self.structured
    }

    /// Notes a request, with the memory for its data.
    pub(crate) fn insert(
        &mut self,
        request: Request,
        buffer: Option<Buffer<'_>>,
    ) -> Result<u32, OutOfBounds> {
        let index = self.free.pop().unwrap_or_else(|| {
            self.slots.push(Slot::new(request));
            self.slots.len() as u32 - 1
        });
        let slot = &mut self.slots[index as usize];
        if let Some(buffer) = buffer {
            let mut segments = mem::take(&mut slot.segments);
            segments.clear();
            segments.extend(buffer.segments());
            match OwnedBuffer::new(Arc::clone(buffer.memory()), segments) {
                Ok(buffer) => slot.buffer = Some(buffer),
                Err(error) => {
                    self.free.push(index);
                    return Err(error);
                }
            }
        }
        slot.phase = Phase::Queued;
        slot.request = request;
        slot.number = self.numbers;
        slot.tries = 0;
        slot.forget_replies();
        self.numbers += 1;
        self.waiting += 1;
        self.reads += usize::from(request.command == Command::Read);
        Ok(index)
    }

    /// What a request is known by to the server.
    pub(crate) fn cookie(&self, index: u32) -> u64 {
        let generation = self.slots[index as usize].generation;
        u64::from(generation) << 32 | u64::from(index)
    }

    pub(crate) fn request(&self, index: u32) -> Request {
        self.slots[index as usize].request
    }

    /// The memory of a request's data.
    pub(crate) fn buffer(&self, index: u32) -> Option<Buffer<'_>> {
        self.slots[index as usize]
            .buffer
            .as_ref()
            .map(OwnedBuffer::view)
    }

    /// How many requests have not ended.
    pub(crate) fn waiting(&self) -> usize {
        self.waiting
    }

    /// Whether data of reads can come.
    pub(crate) fn has_reads(&self) -> bool {
        self.reads > 0
    }

    /// Those that have not ended, the oldest first.
    pub(crate) fn in_order(&self) -> Vec<u32> {
        let mut waiting: Vec<u32> = (0..self.slots.len() as u32)
            .filter(|&index| self.slots[index as usize].is_waiting())
            .collect();
        waiting.sort_by_key(|&index| self.slots[index as usize].number);
        waiting
    }

    pub(crate) fn set_waker(&mut self, index: u32, waker: &Waker) {
        match &mut self.slots[index as usize].waker {
            Some(known) => known.clone_from(waker),
            none => *none = Some(waker.clone()),
        }
    }

    /// Wakes the task of a request.
    pub(crate) fn wake(&self, index: u32) {
        if let Some(waker) = &self.slots[index as usize].waker {
            waker.wake_by_ref();
        }
    }

    /// Wakes the task of some request that has not ended.
    pub(crate) fn wake_any(&self) {
        let waits = |slot: &&Slot| slot.is_waiting() && slot.waker.is_some();
        if let Some(waker) = self
            .slots
            .iter()
            .find(waits)
            .and_then(|slot| slot.waker.as_ref())
        {
            waker.wake_by_ref();
        }
    }

    /// The kernel has the request now.
    pub(crate) fn sending(&mut self, index: u32) {
        let slot = &mut self.slots[index as usize];
        if !matches!(slot.phase, Phase::Sending(_)) {
            slot.phase = Phase::Sending(None);
        }
    }

    /// All of the request has been sent.
    pub(crate) fn sent(&mut self, index: u32) {
        let slot = &mut self.slots[index as usize];
        let before = mem::replace(&mut slot.phase, Phase::Sent);
        if let Phase::Sending(Some(outcome)) = before {
            self.end(index, outcome);
        }
    }

    /// Prepares for the request to be sent on another connection; returns how many there were.
    pub(crate) fn again(&mut self, index: u32) -> u32 {
        let slot = &mut self.slots[index as usize];
        slot.phase = Phase::Queued;
        slot.tries += 1;
        slot.forget_replies();
        slot.tries
    }

    /// Ends a request.
    pub(crate) fn end(&mut self, index: u32, outcome: Outcome) {
        let slot = &mut self.slots[index as usize];
        if slot.is_waiting() {
            self.waiting -= 1;
            self.reads -= usize::from(slot.request.command == Command::Read);
            slot.phase = Phase::Ended(outcome);
            self.wake(index);
        }
    }

    /// Frees the slot of a request that has ended, and returns how.
    pub(crate) fn take(&mut self, index: u32) -> Option<Outcome> {
        let slot = &mut self.slots[index as usize];
        match mem::replace(&mut slot.phase, Phase::Free) {
            Phase::Ended(outcome) => {
                slot.generation = slot.generation.wrapping_add(1);
                slot.waker = None;
                if let Some(buffer) = slot.buffer.take() {
                    slot.segments = buffer.into_segments();
                }
                self.free.push(index);
                Some(outcome)
            }
            other => {
                slot.phase = other;
                None
            }
        }
    }

    /// Does what a reply says; counts in `changes` what was changed and can be lost.
    pub(crate) fn apply(
        &mut self,
        reply: Reply,
        changes: &Cell<u64>,
    ) -> Result<Applied, Malformed> {
        let index = reply.cookie as u32;
        let generation = (reply.cookie >> 32) as u32;
        let structured = self.structured;
        let context = self.context;
        let known = self.slots.get_mut(index as usize);
        let slot = known
            .filter(|slot| slot.generation == generation)
            .ok_or(Malformed("a reply to nothing that was asked"))?;
        if !matches!(slot.phase, Phase::Sending(None) | Phase::Sent) {
            return Err(Malformed("a reply to nothing that was asked"));
        }
        let request = slot.request;
        let is_read = request.command == Command::Read;
        match reply.content {
            Content::Success if is_read && !structured => {
                slot.covered.add(0, request.len)?;
                return Ok(Applied::Data {
                    slot: index,
                    at: 0,
                    len: request.len as usize,
                });
            }
            Content::Success if is_read || request.command == Command::BlockStatus => {
                return Err(Malformed("a simple reply where a structured one must be"));
            }
            Content::Success | Content::Nothing => {}
            Content::Data { offset, len } if is_read => {
                let at = slot.covered.add(within(&request, offset, len)?, len)?;
                return Ok(Applied::Data {
                    slot: index,
                    at,
                    len: len as usize,
                });
            }
            Content::Hole { offset, len } if is_read => {
                let at = slot.covered.add(within(&request, offset, len)?, len)?;
                let buffer = slot.buffer.as_ref().map(OwnedBuffer::view);
                let hole = buffer.and_then(|buffer| buffer.slice(at..at + len as usize).ok());
                hole.ok_or(Malformed("a hole outside of the request"))?
                    .fill(0);
            }
            Content::Status {
                context: of,
                len,
                flags,
            } if request.command == Command::BlockStatus
                && Some(of) == context
                && (1..=request.len).contains(&len)
                && slot.extent.is_none() =>
            {
                slot.extent = Some((len, flags));
            }
            Content::Data { .. } | Content::Hole { .. } | Content::Status { .. } => {
                return Err(Malformed("a reply that does not fit its request"));
            }
            Content::Error {
                code: error::SHUTDOWN,
                ..
            } => return Ok(Applied::ShutDown),
            Content::Error { code, message } => {
                slot.errors += 1;
                if slot.errors > MAX_ERRORS {
                    return Err(Malformed("errors without end"));
                }
                slot.failure.get_or_insert((code, message));
            }
        }
        if reply.done {
            self.finish(index, changes)?;
        }
        Ok(Applied::Taken)
    }

    /// The last part of a reply has come.
    pub(crate) fn finish(&mut self, index: u32, changes: &Cell<u64>) -> Result<(), Malformed> {
        let slot = &mut self.slots[index as usize];
        let request = slot.request;
        let outcome = match (slot.failure.take(), request.command) {
            (Some((code, message)), _) => Err(refused(&request, code, &message)),
            (None, Command::Read) if !slot.covered.is_whole(request.len) => {
                return Err(Malformed("a read's reply without all of its data"));
            }
            (None, Command::BlockStatus) => {
                let (len, flags) = slot.extent.ok_or(Malformed("a reply without the status"))?;
                Ok(Answer::Extent { len, flags })
            }
            (None, _) => Ok(Answer::Done),
        };
        // A change that failed may have been made in part.
        if request.command.stores() && request.flags & command_flag::FUA == 0 {
            changes.set(changes.get() + 1);
        }
        match &mut slot.phase {
            Phase::Sending(early) => *early = Some(outcome),
            _ => self.end(index, outcome),
        }
        Ok(())
    }
}

impl Slot {
    fn new(request: Request) -> Self {
        Self {
            phase: Phase::Free,
            generation: 0,
            number: 0,
            request,
            buffer: None,
            segments: Vec::new(),
            waker: None,
            tries: 0,
            covered: Coverage::default(),
            extent: None,
            failure: None,
            errors: 0,
        }
    }

    fn is_waiting(&self) -> bool {
        matches!(self.phase, Phase::Queued | Phase::Sending(_) | Phase::Sent)
    }

    fn forget_replies(&mut self) {
        self.covered.clear();
        self.extent = None;
        self.failure = None;
        self.errors = 0;
    }
}

/// Where in a request's buffer the bytes of a chunk belong.
fn within(request: &Request, offset: u64, len: u32) -> Result<u32, Malformed> {
    let at = offset.checked_sub(request.offset);
    at.and_then(|at| u32::try_from(at).ok())
        .filter(|at| at.checked_add(len).is_some_and(|end| end <= request.len))
        .ok_or(Malformed("data outside of the request"))
}

fn refused(request: &Request, code: u32, message: &str) -> Error {
    // The protocol's numbers are Linux's.
    let words = match message {
        "" => std::io::Error::from_raw_os_error(code.min(4095) as i32).to_string(),
        message => message.to_owned(),
    };
    Error::new(
        request.kind_of(code),
        format!("{request}: the NBD server says: {words} (error {code})"),
    )
}
