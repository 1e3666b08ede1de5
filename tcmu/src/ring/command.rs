//! What comes out of a ring, and what goes back.

use std::cell::RefCell;
use std::fmt;
use std::mem;
use std::rc::Rc;

use crate::cdb::Cdb;
use crate::scsi::Status;

/// A range of the mapping: one iovec.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Offset from the start of the mapping, in bytes.
    pub offset: usize,
    /// Length in bytes.
    pub len: usize,
}

/// One thing that the kernel asks for or tells.
#[derive(Debug)]
pub enum Entry {
    /// A SCSI command; it must be completed.
    Command(Command),
    /// Commands were aborted; there is nothing to answer.
    TaskManagement(TaskManagement),
}

/// A command that the kernel waits for.
///
/// Give it back with [`Ring::complete`](super::Ring::complete). A command that is dropped instead
/// is answered with CHECK CONDITION, HARDWARE ERROR, INTERNAL TARGET FAILURE by the next
/// [`Ring::publish`](super::Ring::publish). Either way its segments belong to the kernel again
/// after that: complete or drop it only when no I/O uses them any more.
pub struct Command {
    pub(super) ticket: Ticket,
    body: Body,
}

/// What a command's entry says.
pub(super) struct Body {
    pub(super) cdb: Cdb,
    pub(super) data: Vec<Segment>,
    pub(super) data_len: usize,
    pub(super) bidi_in: Vec<Segment>,
}

impl Command {
    pub(super) fn new(ticket: Ticket, body: Body) -> Self {
        Self { ticket, body }
    }

    /// The kernel's name for this command; unique among those in flight on one ring, and the one
    /// that [`TaskManagement::commands`] uses.
    pub fn id(&self) -> u16 {
        self.ticket.id
    }

    /// Commands of one ring have ascending numbers, in the order in which they were fetched.
    pub fn number(&self) -> u64 {
        self.ticket.entry
    }

    /// The command descriptor block.
    pub fn cdb(&self) -> &Cdb {
        &self.body.cdb
    }

    /// The data buffer: data-out or data-in as the CDB says. All segments lie in the data area.
    ///
    /// A data-in buffer holds left-overs of earlier commands. The initiator gets all of it unless
    /// the completion says otherwise, so what is not data must be set to zero.
    pub fn data(&self) -> &[Segment] {
        &self.body.data
    }

    /// The data-in buffer of a bidirectional command, whose data-out is [`data`](Self::data).
    pub fn bidi_in(&self) -> &[Segment] {
        &self.body.bidi_in
    }

    /// Length of [`data`](Self::data) in bytes, also after the segments were taken.
    pub fn data_len(&self) -> usize {
        self.body.data_len
    }

    /// Takes [`data`](Self::data) and [`bidi_in`](Self::bidi_in) away, to hand them to an I/O
    /// engine. Return the vectors with [`Ring::recycle`](super::Ring::recycle).
    pub fn take_segments(&mut self) -> (Vec<Segment>, Vec<Segment>) {
        (
            mem::take(&mut self.body.data),
            mem::take(&mut self.body.bidi_in),
        )
    }
}

impl fmt::Debug for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Command")
            .field("id", &self.id())
            .field("cdb", &self.body.cdb)
            .field("data", &self.body.data)
            .field("bidi_in", &self.body.bidi_in)
            .finish_non_exhaustive()
    }
}

/// The right to answer one command, once.
pub(super) struct Ticket {
    pub(super) id: u16,
    /// Which entry of the ring brought the command, counted since the ring was opened.
    pub(super) entry: u64,
    abandoned: Option<Rc<Abandoned>>,
}

/// The tickets that were dropped unused, shared by a ring and its commands.
pub(super) type Abandoned = RefCell<Vec<Ticket>>;

impl Ticket {
    pub(super) fn new(id: u16, entry: u64, abandoned: &Rc<Abandoned>) -> Self {
        Self {
            id,
            entry,
            abandoned: Some(Rc::clone(abandoned)),
        }
    }

    /// Says whether the ring that owns `abandoned` issued this ticket.
    pub(super) fn is_of(&self, abandoned: &Rc<Abandoned>) -> bool {
        self.abandoned
            .as_ref()
            .is_some_and(|own| Rc::ptr_eq(own, abandoned))
    }

    /// Ends the ticket because the command is answered.
    pub(super) fn redeem(&mut self) {
        self.abandoned = None;
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        if let Some(abandoned) = self.abandoned.take() {
            let ticket = Self {
                id: self.id,
                entry: self.entry,
                abandoned: None,
            };
            abandoned.borrow_mut().push(ticket);
        }
    }
}

/// The kernel's notice that commands were aborted (`tmr_notification=1`).
///
/// The commands must still be completed. The target core waits for that, so finishing them early
/// ends the abort early; their status does not matter any more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TaskManagement {
    /// What happened.
    pub kind: TmrKind,
    /// [`Command::id`]s of the commands concerned.
    pub commands: Vec<u16>,
}

/// Task management functions (SAM-5, chapter 7; `TCMU_TMR_*`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TmrKind {
    /// ABORT TASK.
    AbortTask,
    /// ABORT TASK SET.
    AbortTaskSet,
    /// CLEAR ACA.
    ClearAca,
    /// CLEAR TASK SET.
    ClearTaskSet,
    /// LOGICAL UNIT RESET.
    LunReset,
    /// TARGET WARM RESET.
    TargetWarmReset,
    /// TARGET COLD RESET.
    TargetColdReset,
    /// A PERSISTENT RESERVE OUT with PREEMPT AND ABORT.
    PreemptAndAbort,
    /// A number that has no meaning yet, or 0 where the kernel has no number for the function.
    Other(u8),
}

impl From<u8> for TmrKind {
    fn from(number: u8) -> Self {
        match number {
            1 => Self::AbortTask,
            2 => Self::AbortTaskSet,
            3 => Self::ClearAca,
            4 => Self::ClearTaskSet,
            5 => Self::LunReset,
            6 => Self::TargetWarmReset,
            7 => Self::TargetColdReset,
            128 => Self::PreemptAndAbort,
            other => Self::Other(other),
        }
    }
}

impl From<TmrKind> for u8 {
    fn from(kind: TmrKind) -> Self {
        match kind {
            TmrKind::AbortTask => 1,
            TmrKind::AbortTaskSet => 2,
            TmrKind::ClearAca => 3,
            TmrKind::ClearTaskSet => 4,
            TmrKind::LunReset => 5,
            TmrKind::TargetWarmReset => 6,
            TmrKind::TargetColdReset => 7,
            TmrKind::PreemptAndAbort => 128,
            TmrKind::Other(number) => number,
        }
    }
}

/// How a command ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Completion<'a> {
    /// SAM status.
    pub status: u8,
    /// Sense data, for CHECK CONDITION; what exceeds 96 bytes is cut off.
    pub sense: &'a [u8],
    /// How many bytes of data-in are valid; `None` for all.
    ///
    /// The initiator gets these bytes, also together with CHECK CONDITION, and a residual for the
    /// others. The kernel ignores it for data-out and bidirectional commands. It has no way to say
    /// 0: there, and where [`Ring::read_len`](super::Ring::read_len) is false, the initiator gets
    /// the whole buffer, or none of it with CHECK CONDITION.
    pub read_len: Option<u32>,
}

impl<'a> Completion<'a> {
    /// Status GOOD.
    pub const GOOD: Self = Self {
        status: Status::Good.code(),
        sense: &[],
        read_len: None,
    };

    /// Status CHECK CONDITION with this sense data.
    pub const fn check_condition(sense: &'a [u8]) -> Self {
        Self {
            status: Status::CheckCondition.code(),
            sense,
            read_len: None,
        }
    }
}
