//! The stream of replies: where the bytes that come belong.
//!
//! The data of reads go from the socket into the requests' own memory. Everything else goes through a
//! small inbox. While reads are outstanding, no more is received into it than what surely stands
//! before the next data, and what stands behind data is received together with them; without reads,
//! many replies come at a time. Only data whose request was made while such a receipt was under way
//! can come into the inbox, and are copied from there.

use std::cell::Cell;

use tcmu_handler::{Buffer, OwnedBuffer};

use crate::reply::{BEFORE_DATA, LONGEST, Malformed, Parsed, SIMPLE_LEN, parse};
use crate::slots::{Applied, Slots};

/// The inbox's size in bytes.
pub(crate) const INBOX: usize = 2 * LONGEST.next_power_of_two();
/// From this many bytes on, data are received alone and completely: what stands behind them can wait.
const LARGE: usize = 64 << 10;
/// How many bytes are moved at a time, in the few cases where bytes are moved.
const PIECE: usize = 512;

/// What is to be received next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Expected {
    Reply,
    /// So many bytes of a request's data, for this place of its buffer.
    Data {
        slot: u32,
        at: usize,
        left: usize,
        done: bool,
    },
}

/// How far the stream has been followed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Progress {
    /// More has to come.
    More,
    /// The server is about to end.
    ShutDown,
}

#[derive(Debug)]
pub(crate) struct Receiver {
    inbox: OwnedBuffer,
    /// The bytes of the inbox that have not been looked at.
    start: usize,
    end: usize,
    /// The length of the reply that they begin, as far as is known.
    need: usize,
    expected: Expected,
}

impl Receiver {
    /// A stream that begins with a reply; `inbox` has [`INBOX`] bytes.
    pub(crate) fn new(inbox: OwnedBuffer) -> Self {
        Self {
            inbox,
            start: 0,
            end: 0,
            need: 0,
            expected: Expected::Reply,
        }
    }

    /// Begins another stream.
    pub(crate) fn restart(&mut self) {
        (self.start, self.end, self.need) = (0, 0, 0);
        self.expected = Expected::Reply;
    }

    /// Whose data are coming.
    pub(crate) fn target(&self) -> Option<u32> {
        match self.expected {
            Expected::Reply => None,
            Expected::Data { slot, .. } => Some(slot),
        }
    }

    /// Makes room for what is to come.
    pub(crate) fn prepare(&mut self, slots: &Slots) {
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
        } else if self.end + self.least(slots) > INBOX {
            let view = self.inbox.view();
            let mut piece = [0; PIECE];
            let mut moved = 0;
            while moved < self.end - self.start {
                let len = PIECE.min(self.end - self.start - moved);
                view.copy_to(self.start + moved, &mut piece[..len]);
                view.copy_from(moved, &piece[..len]);
                moved += len;
            }
            (self.start, self.end) = (0, moved);
        }
    }

    /// Where the next bytes are to be received, one part behind the other, and whether all of them
    /// are to be waited for. [`prepare`](Self::prepare) comes first. The second part can be empty.
    pub(crate) fn parts<'a>(&'a self, slots: &'a Slots) -> ([Buffer<'a>; 2], bool) {
        let inbox = |len: usize| {
            let view = self.inbox.view();
            view.slice(self.end..self.end + len)
                .expect("the inbox was made ready for what may come at once")
        };
        let nothing = inbox(0);
        match self.expected {
            Expected::Data { slot, at, left, .. } => {
                let buffer = slots.buffer(slot).and_then(|b| b.slice(at..at + left).ok());
                let Some(data) = buffer else {
                    return ([nothing, nothing], false);
                };
                match left >= LARGE {
                    true => ([data, nothing], true),
                    false => ([data, inbox(least_behind_data(slots))], false),
                }
            }
            Expected::Reply if slots.has_reads() => ([inbox(self.least(slots)), nothing], false),
            Expected::Reply => ([inbox(INBOX - self.end), nothing], false),
        }
    }

    /// So many bytes were received into the parts.
    pub(crate) fn received(&mut self, count: usize) {
        let direct = match &mut self.expected {
            Expected::Reply => 0,
            Expected::Data { at, left, .. } => {
                let direct = count.min(*left);
                *at += direct;
                *left -= direct;
                direct
            }
        };
        self.end = (self.end + count - direct).min(INBOX);
    }

    /// Takes bytes of the stream that were received in another way.
    pub(crate) fn take(
        &mut self,
        slots: &mut Slots,
        changes: &Cell<u64>,
        mut bytes: &[u8],
    ) -> Result<Progress, Malformed> {
        while !bytes.is_empty() {
            self.prepare(slots);
            let (parts, _) = self.parts(slots);
            let mut stored = 0;
            for part in parts {
                stored += part.copy_from(0, &bytes[stored..]);
            }
            if stored == 0 {
                return Err(Malformed("more than there is room for"));
            }
            self.received(stored);
            bytes = &bytes[stored..];
            match self.advance(slots, changes)? {
                Progress::More => {}
                Progress::ShutDown => return Ok(Progress::ShutDown),
            }
        }
        Ok(Progress::More)
    }

    /// Follows the stream as far as it has come.
    pub(crate) fn advance(
        &mut self,
        slots: &mut Slots,
        changes: &Cell<u64>,
    ) -> Result<Progress, Malformed> {
        loop {
            if let Expected::Data { slot, done, .. } = self.expected {
                if !self.fill(slots) {
                    return Ok(Progress::More);
                }
                self.expected = Expected::Reply;
                if done {
                    slots.finish(slot, changes)?;
                }
            }
            let reply = match self.peek(slots.is_structured())? {
                Parsed::Reply(reply) => reply,
                Parsed::Incomplete(need) => {
                    self.need = need;
                    return Ok(Progress::More);
                }
            };
            let (len, done) = (reply.len, reply.done);
            match slots.apply(reply, changes)? {
                Applied::Taken => {}
                Applied::Data { slot, at, len } => {
                    self.expected = Expected::Data {
                        slot,
                        at,
                        left: len,
                        done,
                    };
                }
                Applied::ShutDown => return Ok(Progress::ShutDown),
            }
            self.start += len;
            self.need = 0;
        }
    }

    /// How many bytes may be received now without touching any data.
    fn least(&self, slots: &Slots) -> usize {
        let have = self.end - self.start;
        least_behind_data(slots).max(self.need).saturating_sub(have)
    }

    /// The first reply in the inbox.
    fn peek(&self, structured: bool) -> Result<Parsed, Malformed> {
        let view = self.inbox.view();
        let have = self.end - self.start;
        let mut short = [0; 2 * BEFORE_DATA];
        let copied = view.copy_to(self.start, &mut short[..have.min(2 * BEFORE_DATA)]);
        match parse(&short[..copied], structured)? {
            Parsed::Incomplete(len) if len <= have => {
                let mut long = [0; LONGEST];
                let len = len.min(LONGEST);
                view.copy_to(self.start, &mut long[..len]);
                parse(&long[..len], structured)
            }
            parsed => Ok(parsed),
        }
    }

    /// Moves data that came into the inbox to where they belong; true if no more are missing.
    fn fill(&mut self, slots: &Slots) -> bool {
        let Expected::Data { slot, at, left, .. } = &mut self.expected else {
            return true;
        };
        let view = self.inbox.view();
        let mut piece = [0; PIECE];
        while *left > 0 && self.start < self.end {
            let len = PIECE.min(*left).min(self.end - self.start);
            view.copy_to(self.start, &mut piece[..len]);
            if let Some(buffer) = slots.buffer(*slot) {
                buffer.copy_from(*at, &piece[..len]);
            }
            *at += len;
            *left -= len;
            self.start += len;
        }
        *left == 0
    }
}

/// How many bytes behind the data of a read are no data of another, at least.
fn least_behind_data(slots: &Slots) -> usize {
    match slots.is_structured() {
        true => BEFORE_DATA,
        false => SIMPLE_LEN,
    }
}
