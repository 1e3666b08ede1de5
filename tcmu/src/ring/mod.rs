//! The command ring, user space's side.
//!
//! The kernel puts entries at `cmd_head`; [`Ring::next`] copies what they say out of the shared
//! memory and remembers where they are. Nothing is read from an entry a second time, so what
//! happens to the memory later cannot mislead the ring. The data stays where it is: a [`Command`]
//! names it by [`Segment`]s of the mapping.
//!
//! [`Ring::complete`] writes a response into the oldest entry that has none, whichever command
//! that entry brought: with out-of-order completion the kernel looks at the id in the response.
//! Where the kernel does not offer that, each response goes to its own entry, and `cmd_tail` waits
//! for the oldest. [`Ring::publish`] moves `cmd_tail` over all that is answered, once for a whole
//! batch. Entries that need no answer are stepped over on the way.
//!
//! One turn of a device's life, with the mock kernel (feature `mock`) for a device:
//!
//! ```
//! use std::sync::Arc;
//!
//! use tcmu::doorbell::Doorbell;
//! use tcmu::mock::{Config, Data, MockKernel};
//! use tcmu::ring::{Completion, Entry, Ring};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let (mut kernel, device) = MockKernel::new(Config::default())?;
//! let read = [0x28, 0, 0, 0, 0, 0, 0, 0, 1, 0];
//! kernel.submit(&read, Data::In(512))?;
//!
//! let mut ring = Ring::new(Arc::clone(device.memory()))?;
//! // ... once `device.poll_fd()` is readable:
//! device.clear()?;
//! while let Some(entry) = ring.next()? {
//!     match entry {
//!         Entry::Command(command) => {
//!             for segment in command.data() {
//!                 ring.memory().fill(segment.offset, segment.len, 0xda)?;
//!             }
//!             ring.complete(command, Completion::GOOD);
//!         }
//!         Entry::TaskManagement(notice) => println!("{:?}", notice.kind),
//!     }
//! }
//! if ring.publish() {
//!     device.kick()?;
//! }
//!
//! assert!(kernel.wait_kick()?);
//! assert_eq!(kernel.reap()[0].data_in, [0xda; 512]);
//! # Ok(())
//! # }
//! ```

mod command;
mod error;
mod fetch;
mod ids;
mod mailbox;
pub mod recovery;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::fmt;
use std::mem::{self, offset_of, size_of};
use std::rc::Rc;
use std::sync::Arc;

use self::command::{Abandoned, Ticket};
pub use self::command::{Command, Completion, Entry, Segment, TaskManagement, TmrKind};
pub use self::error::RingError;
use self::fetch::{Malformed, Request};
use self::ids::InFlight;
use self::mailbox::Mailbox;
use self::recovery::{Interrupted, Mismatch, Phases, Table};
use crate::abi;
pub use crate::cdb::Cdb;
#[cfg(feature = "kill-points")]
use crate::kill_points::{self, KillPoint};
use crate::mapping::{Mapping, OutOfBounds};
use crate::scsi::{AdditionalSense, Sense, SenseKey, Status};

/// One device's command ring. It stays on the thread that made it.
pub struct Ring {
    mailbox: Mailbox,
    /// `cmd_head` as last seen.
    head: u32,
    /// Up to where entries were fetched.
    fetched: u32,
    /// `cmd_tail` as last published.
    published: u32,
    /// The entries that were fetched and that the tail has not passed, oldest first.
    slots: VecDeque<Slot>,
    /// How many entries the tail has passed: the number of the first slot.
    passed: u64,
    in_flight: InFlight,
    abandoned: Rc<Abandoned>,
    /// Vectors for segments, kept so that a command needs no allocation.
    spare: Vec<Vec<Segment>>,
    malformed: u64,
    poison: Option<RingError>,
    /// Tells a successor what is in flight.
    table: Option<Table>,
    /// Why it does not any more.
    table_error: Option<std::io::Error>,
    /// What a predecessor published may not have been kicked.
    owes_kick: bool,
}

struct Slot {
    offset: u32,
    state: SlotState,
}

#[derive(PartialEq, Eq)]
enum SlotState {
    /// A command's entry without a response.
    Open,
    /// An entry that the tail may pass: answered, or not in need of an answer.
    Passable,
}

/// Cannot fail: an entry's place and length are checked when it is fetched.
const CHECKED: &str = "the entry lies in the mapping";

impl Ring {
    /// Opens the ring that `mapping` holds and goes on at `cmd_tail`.
    ///
    /// All entries between tail and head will be fetched. That is right for a fresh ring and for
    /// one that was reset. It is wrong for a ring whose earlier owner had completed commands out of
    /// order and went away with others in flight: such a ring no longer tells which those are, see
    /// [`with_table`](Self::with_table).
    ///
    /// # Errors
    /// A [`RingError`] if the mailbox is not one that this crate understands, or contradicts
    /// itself.
    pub fn new(mapping: Arc<Mapping>) -> Result<Self, RingError> {
        let mailbox = Mailbox::new(mapping)?;
        let tail = mailbox.tail();
        if !mailbox.is_position(tail) {
            return Err(RingError::Tail { tail });
        }
        let mut ring = Self {
            mailbox,
            head: tail,
            fetched: tail,
            published: tail,
            slots: VecDeque::new(),
            passed: 0,
            in_flight: InFlight::default(),
            abandoned: Rc::default(),
            spare: Vec::new(),
            malformed: 0,
            poison: None,
            table: None,
            table_error: None,
            owes_kick: false,
        };
        ring.look()?;
        Ok(ring)
    }

    /// Opens the ring that `mapping` holds and goes on where the process stopped that kept `table`;
    /// from now on this ring keeps it.
    ///
    /// Returns what that process had fetched and not completed, in the order in which it was fetched.
    /// All of it has to be executed again, and comes before what [`next`](Self::next) returns. See
    /// [`recovery`].
    ///
    /// # Errors
    /// A [`Mismatch`] if the table is not about the ring as it is now.
    pub fn with_table(
        mapping: Arc<Mapping>,
        mut table: Table,
    ) -> Result<(Self, Vec<Interrupted>), Mismatch> {
        let mut ring = Self::new(mapping)?;
        let (mut outstanding, published) = table.outstanding(&ring.mailbox)?;
        ring.walk(outstanding.len())?;
        table.go_on(&mut outstanding, published);
        ring.table = Some(table);
        ring.owes_kick = true;
        let mut interrupted = Vec::with_capacity(outstanding.len());
        for (entry, command) in outstanding.into_iter().enumerate() {
            ring.in_flight.insert(command.id);
            let mut ticket = Ticket::new(command.id, entry as u64, &ring.abandoned);
            match command.body {
                Some(body) => {
                    interrupted.push(Interrupted {
                        command: Command::new(ticket, body),
                        phase: command.phase,
                        runs: command.runs,
                    });
                }
                None => {
                    ring.malformed += 1;
                    ticket.redeem();
                    ring.fail(&ticket);
                }
            }
        }
        Ok((ring, interrupted))
    }

    /// Steps over the entries of so many commands that a predecessor had fetched.
    fn walk(&mut self, commands: usize) -> Result<(), Mismatch> {
        for entries in 0..commands {
            loop {
                if self.fetched == self.head {
                    return Err(Mismatch::Entries {
                        outstanding: commands,
                        entries,
                    });
                }
                let (offset, (op, len)) = (self.fetched, self.header()?);
                if op == abi::OP_CMD {
                    check_room_for_response(offset, len)?;
                    self.take(offset, len, SlotState::Open);
                    break;
                }
                self.take(offset, len, SlotState::Passable);
            }
        }
        Ok(())
    }

    /// Says whether [`next`](Self::next) would find an entry: one load, for polling.
    #[inline]
    pub fn has_new(&self) -> bool {
        self.poison.is_none() && (self.head != self.fetched || self.mailbox.head() != self.fetched)
    }

    /// Fetches the next entry; `None` if there is no new one.
    ///
    /// Call it until it returns `None`, then [`publish`](Self::publish) also if there was nothing
    /// to complete: entries that need no answer take room too.
    ///
    /// A command whose CDB or iovecs point outside the places for them is answered with CHECK
    /// CONDITION, HARDWARE ERROR at once and only [counted](Self::malformed).
    ///
    /// # Errors
    /// A [`RingError`] if the ring cannot be read any further. It stays: all later calls return
    /// the same. Commands fetched before can still be completed, save after
    /// [`RingError::Moved`], when the kernel no longer knows them. To go on after a reset, make a
    /// new `Ring` once no I/O uses the old commands' segments.
    #[expect(
        clippy::should_implement_trait,
        reason = "an iterator would borrow the ring"
    )]
    #[inline]
    pub fn next(&mut self) -> Result<Option<Entry>, RingError> {
        if let Some(error) = self.poison {
            return Err(error);
        }
        self.fetch().inspect_err(|error| self.poison = Some(*error))
    }

    /// Answers a command. The kernel sees it after [`publish`](Self::publish).
    ///
    /// A command of another ring is dropped.
    pub fn complete(&mut self, mut command: Command, completion: Completion<'_>) {
        if !command.ticket.is_of(&self.abandoned) {
            return;
        }
        command.ticket.redeem();
        let (data, bidi_in) = command.take_segments();
        self.recycle(data);
        self.recycle(bidi_in);
        self.answer(&command.ticket, completion);
    }

    /// Takes back a vector that [`Command::take_segments`] gave out.
    #[inline]
    pub fn recycle(&mut self, mut segments: Vec<Segment>) {
        if segments.capacity() > 0 {
            segments.clear();
            self.spare.push(segments);
        }
    }

    /// Shows the kernel all that was completed, and answers commands that were dropped.
    ///
    /// True if there was anything, and the first time in any case, for a predecessor that may not
    /// have come to it: the kernel must then be [kicked](crate::doorbell::Doorbell::kick). After
    /// this the kernel may reuse the completed commands' segments, kick or not.
    #[must_use = "the kernel must be kicked if this is true"]
    pub fn publish(&mut self) -> bool {
        self.answer_abandoned();
        self.pass();
        let tail = self.slots.front().map_or(self.fetched, |slot| slot.offset);
        if tail == self.published || self.is_lost() {
            return mem::take(&mut self.owes_kick);
        }
        let head = self.mailbox.head();
        if self.has_moved(head) {
            self.poison = Some(self.moved(head));
            return false;
        }
        self.owes_kick = false;
        if let Some(table) = &mut self.table {
            table.publishing(tail);
        }
        #[cfg(feature = "kill-points")]
        kill_points::pass(KillPoint::Publishing);
        self.mailbox.publish(tail);
        #[cfg(feature = "kill-points")]
        kill_points::pass(KillPoint::Published);
        self.published = tail;
        true
    }

    /// How many commands were fetched and not completed yet.
    #[inline]
    pub fn in_flight(&self) -> usize {
        self.in_flight.len()
    }

    /// How many entries this ring has answered or skipped because they were malformed.
    pub fn malformed(&self) -> u64 {
        self.malformed
    }

    /// Notes the phases of this ring's commands for a successor, if the ring has a table.
    pub fn phases(&self) -> Option<Phases> {
        self.table.as_ref().map(Table::phases)
    }

    /// Why the ring's table had to be given up, once: the file system has no room for it any more, as
    /// a rule. The ring goes on, but has to be reset if this process is killed.
    pub fn take_table_error(&mut self) -> Option<std::io::Error> {
        self.table_error.take()
    }

    /// Why the ring cannot be read any further, if so.
    pub fn error(&self) -> Option<RingError> {
        self.poison
    }

    /// Whether the kernel takes completions in any order.
    pub fn out_of_order(&self) -> bool {
        self.mailbox.offers(abi::FLAG_OUT_OF_ORDER)
    }

    /// Whether the kernel honours [`Completion::read_len`].
    pub fn read_len(&self) -> bool {
        self.mailbox.offers(abi::FLAG_READ_LEN)
    }

    /// Whether the kernel can send [`TaskManagement`] (`attrib/tmr_notification` switches it on).
    pub fn task_management(&self) -> bool {
        self.mailbox.offers(abi::FLAG_TMR)
    }

    /// The memory that the segments are ranges of.
    pub fn memory(&self) -> &Arc<Mapping> {
        self.mailbox.mapping()
    }

    /// Loads `cmd_head`.
    fn look(&mut self) -> Result<(), RingError> {
        let head = self.mailbox.head();
        if self.has_moved(head) {
            return Err(self.moved(head));
        }
        if !self.mailbox.is_position(head) {
            return Err(RingError::Head { head });
        }
        self.head = head;
        Ok(())
    }

    /// Says whether someone else wrote `cmd_tail`, or `cmd_head` went back, as a reset does.
    fn has_moved(&self, head: u32) -> bool {
        let distance = |to| self.mailbox.distance(self.published, to);
        self.mailbox.tail() != self.published
            || self.mailbox.is_position(head) && distance(head) < distance(self.fetched)
    }

    fn moved(&self, head: u32) -> RingError {
        RingError::Moved {
            head,
            tail: self.mailbox.tail(),
            fetched: self.fetched,
            published: self.published,
        }
    }

    /// True if head or tail were moved: the kernel no longer knows what was fetched.
    fn is_lost(&self) -> bool {
        matches!(self.poison, Some(RingError::Moved { .. }))
    }

    /// Each turn takes at least eight bytes of the ring, and `look` lets the head pass the
    /// published tail never, so this ends whatever the ring holds.
    fn fetch(&mut self) -> Result<Option<Entry>, RingError> {
        loop {
            if self.fetched == self.head {
                self.look()?;
                if self.fetched == self.head {
                    return Ok(None);
                }
            }
            let offset = self.fetched;
            let at = self.mailbox.at(offset);
            let (op, len) = self.header()?;
            match op {
                abi::OP_CMD => {
                    if let Some(command) = self.fetch_command(offset, len)? {
                        return Ok(Some(Entry::Command(command)));
                    }
                }
                abi::OP_TMR => {
                    if (len as usize) < size_of::<abi::TmrEntry>() {
                        return Err(RingError::ShortEntry { offset, len });
                    }
                    self.take(offset, len, SlotState::Passable);
                    match fetch::task_management(self.memory(), at, len as usize) {
                        Ok(notice) => return Ok(Some(Entry::TaskManagement(notice))),
                        Err(Malformed) => self.malformed += 1,
                    }
                }
                abi::OP_PAD => self.take(offset, len, SlotState::Passable),
                _ => {
                    let flags = at + offset_of!(abi::EntryHeader, uflags);
                    self.memory()
                        .store_u8(flags, abi::UFLAG_UNKNOWN_OP)
                        .expect(CHECKED);
                    self.take(offset, len, SlotState::Passable);
                    self.malformed += 1;
                }
            }
        }
    }

    /// The opcode and the length of the next entry to fetch; there is one.
    #[inline]
    fn header(&self) -> Result<(u32, u32), RingError> {
        let offset = self.fetched;
        let at = self.mailbox.at(offset);
        let len_op = self.memory().load_u32(at).expect(CHECKED);
        let len = len_op & !abi::OP_MASK;
        let available = if self.head > offset {
            self.head
        } else {
            self.mailbox.size()
        } - offset;
        if len == 0 {
            return Err(RingError::EmptyEntry { offset });
        }
        if len > available {
            return Err(RingError::EntryTooLong {
                offset,
                len,
                available,
            });
        }
        Ok((len_op & abi::OP_MASK, len))
    }

    /// Remembers an entry and steps over it.
    fn take(&mut self, offset: u32, len: u32, state: SlotState) {
        self.slots.push_back(Slot { offset, state });
        self.fetched = self.mailbox.advance(offset, len);
    }

    /// `None` if the command was malformed and is answered.
    fn fetch_command(&mut self, offset: u32, len: u32) -> Result<Option<Command>, RingError> {
        check_room_for_response(offset, len)?;
        let at = self.mailbox.at(offset);
        let request = Request::read(self.memory(), at).expect(CHECKED);
        let id = request.id();
        if id == 0 {
            return Err(RingError::NoCommandId { offset });
        }
        if !self.in_flight.insert(id) {
            return Err(RingError::DuplicateCommandId { offset, id });
        }
        let entry = self.passed + self.slots.len() as u64;
        self.take(offset, len, SlotState::Open);
        let mut ticket = Ticket::new(id, entry, &self.abandoned);
        let parsed = request.parse(at, len as usize, &self.mailbox, &mut self.spare);
        if let Some(table) = &mut self.table
            && let Err(error) = table.fetched(id, parsed.as_ref().ok())
        {
            self.table = None;
            self.table_error = Some(error);
        }
        #[cfg(feature = "kill-points")]
        kill_points::pass(KillPoint::Fetched);
        match parsed {
            Ok(body) => Ok(Some(Command::new(ticket, body))),
            Err(Malformed) => {
                self.malformed += 1;
                ticket.redeem();
                self.fail(&ticket);
                Ok(None)
            }
        }
    }

    fn answer_abandoned(&mut self) {
        loop {
            let ticket = self.abandoned.borrow_mut().pop();
            match ticket {
                Some(ticket) => self.fail(&ticket),
                None => return,
            }
        }
    }

    /// The answer to commands that nobody else answers.
    fn fail(&mut self, ticket: &Ticket) {
        const FAILURE: Sense = Sense::new(
            SenseKey::HardwareError,
            AdditionalSense::INTERNAL_TARGET_FAILURE,
        );
        let mut sense = [0; abi::SENSE_LEN];
        let len = FAILURE.write_to(&mut sense, false);
        self.answer(ticket, Completion::check_condition(&sense[..len]));
    }

    /// Writes a response into the entry that is due, and steps over it if it is the oldest.
    fn answer(&mut self, ticket: &Ticket, completion: Completion<'_>) {
        self.in_flight.remove(ticket.id);
        if self.is_lost() {
            return;
        }
        let index = if self.out_of_order() {
            self.pass();
            0
        } else {
            (ticket.entry - self.passed) as usize
        };
        if let Some(table) = &self.table {
            table.completed(ticket.id);
        }
        let slot = &mut self.slots[index];
        slot.state = SlotState::Passable;
        let at = self.mailbox.at(slot.offset);
        self.respond(at, ticket.id, completion).expect(CHECKED);
        self.pass();
    }

    fn respond(&self, at: usize, id: u16, completion: Completion<'_>) -> Result<(), OutOfBounds> {
        let memory = self.memory();
        let read_len = completion.read_len.filter(|_| self.read_len()).unwrap_or(0);
        let flags = if read_len == 0 {
            0
        } else {
            abi::UFLAG_READ_LEN
        };
        memory.store_u16(at + offset_of!(abi::EntryHeader, cmd_id), id)?;
        memory.store_u8(at + offset_of!(abi::EntryHeader, uflags), flags)?;
        memory.store_u8(
            at + offset_of!(abi::CommandResponse, scsi_status),
            completion.status,
        )?;
        memory.store_u32(at + offset_of!(abi::CommandResponse, read_len), read_len)?;
        if completion.status == Status::CheckCondition.code() {
            // The kernel passes on all of it, and the request still lies below.
            let mut sense = [0; abi::SENSE_LEN];
            let len = completion.sense.len().min(sense.len());
            sense[..len].copy_from_slice(&completion.sense[..len]);
            memory.write(at + offset_of!(abi::CommandResponse, sense), &sense)?;
        }
        Ok(())
    }

    /// Steps over the oldest entries as far as they need nothing more.
    fn pass(&mut self) {
        while self
            .slots
            .front()
            .is_some_and(|slot| slot.state == SlotState::Passable)
        {
            self.slots.pop_front();
            self.passed += 1;
        }
    }
}

fn check_room_for_response(offset: u32, len: u32) -> Result<(), RingError> {
    if (len as usize) < size_of::<abi::CommandResponse>() {
        return Err(RingError::ShortEntry { offset, len });
    }
    Ok(())
}

impl fmt::Debug for Ring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ring")
            .field("fetched", &self.fetched)
            .field("published", &self.published)
            .field("in_flight", &self.in_flight())
            .field("error", &self.poison)
            .finish_non_exhaustive()
    }
}
