//! How completions are taken out of the ring.

use std::mem::{self, offset_of};

use super::{CHECKED, CommandTag, InFlight, MockKernel};
use crate::abi;
use crate::scsi::Status;

const CHECK_CONDITION: u8 = Status::CheckCondition.code();

/// A command's end as its initiator sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finished {
    /// Which command.
    pub tag: CommandTag,
    /// SAM status.
    pub status: u8,
    /// All 96 bytes of the response's sense with CHECK CONDITION, otherwise none. Also none if the
    /// kernel itself gave up the command.
    pub sense: Vec<u8>,
    /// The data that the initiator gets.
    pub data_in: Vec<u8>,
    /// What the response said, if that counts; never more than the command asked for.
    pub read_len: Option<u32>,
}

impl Finished {
    pub(super) fn without_data(tag: CommandTag, status: u8) -> Self {
        Self {
            tag,
            status,
            sense: Vec::new(),
            data_in: Vec::new(),
            read_len: None,
        }
    }
}

/// What the other side did so that nothing can complete any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Broken {
    /// A response for a command that is not in flight: never was, or is completed already.
    #[error("command id {id} is not in flight")]
    UnknownId {
        /// The id in the response.
        id: u16,
    },
    /// A response out of order, where that was not offered.
    #[error("command id {id} was completed in the place of {expected}")]
    OutOfOrder {
        /// The id in the response.
        id: u16,
        /// The id of the entry.
        expected: u16,
    },
    /// `cmd_tail` is not where an entry ends, or beyond `cmd_head`.
    #[error("cmd_tail {tail} is not the end of an entry")]
    Tail {
        /// The value found.
        tail: u32,
    },
    /// An entry's length or opcode was changed.
    #[error("the header of the entry at offset {offset} was overwritten")]
    Header {
        /// Where the entry starts.
        offset: u32,
    },
}

impl MockKernel {
    /// Takes all published completions, as the kernel does at a kick, and returns those that were
    /// not returned before.
    pub fn reap(&mut self) -> Vec<Finished> {
        // The kicks that led here are heard. What failed shows when the next one is waited for.
        let _ = self.bell.take();
        self.take_completions();
        mem::take(&mut self.finished)
    }

    /// Has a command time out (`cmd_time_out`). Its initiator gets this answer; the other side
    /// must still complete it. `None` if it is not in flight.
    pub fn expire(&mut self, tag: CommandTag) -> Option<Finished> {
        let command = self
            .commands
            .values_mut()
            .find(|command| command.tag == tag && !command.expired)?;
        command.expired = true;
        Some(Finished::without_data(tag, CHECK_CONDITION))
    }

    pub(super) fn take_completions(&mut self) {
        let tail = offset_of!(abi::Mailbox, cmd_tail);
        let tail = self.memory.load_acquire_u32(tail).expect(CHECKED);
        while self.broken.is_none() && self.cleaned != tail {
            if let Err(broken) = self.take_completion(tail) {
                self.broken = Some(broken);
            }
        }
    }

    fn take_completion(&mut self, tail: u32) -> Result<(), Broken> {
        let entry = self.entries.pop_front().ok_or(Broken::Tail { tail })?;
        let offset = entry.offset;
        if tail > offset && tail < offset + entry.len {
            return Err(Broken::Tail { tail });
        }
        let at = self.at(offset);
        let len_op = at + offset_of!(abi::EntryHeader, len_op);
        if self.memory.load_u32(len_op).expect(CHECKED) != entry.len | entry.op {
            return Err(Broken::Header { offset });
        }
        if entry.op == abi::OP_CMD {
            let cmd_id = at + offset_of!(abi::EntryHeader, cmd_id);
            let id = self.memory.load_u16(cmd_id).expect(CHECKED);
            if self.flags & abi::FLAG_OUT_OF_ORDER == 0 && id != entry.id {
                return Err(Broken::OutOfOrder {
                    id,
                    expected: entry.id,
                });
            }
            let command = self.commands.remove(&id).ok_or(Broken::UnknownId { id })?;
            if command.expired {
                self.late_completions += 1;
            } else {
                let finished = self.response(at, &command);
                self.finished.push(finished);
            }
            self.blocks.release(&command.blocks);
        }
        self.cleaned = (offset + entry.len) % self.ring_size;
        Ok(())
    }

    fn response(&self, at: usize, command: &InFlight) -> Finished {
        let byte = |field| self.memory.load_u8(at + field).expect(CHECKED);
        let uflags = byte(offset_of!(abi::EntryHeader, uflags));
        if uflags & abi::UFLAG_UNKNOWN_OP != 0 {
            return Finished::without_data(command.tag, CHECK_CONDITION);
        }
        let status = byte(offset_of!(abi::CommandResponse, scsi_status));
        let mut finished = Finished::without_data(command.tag, status);

        let len_in: usize = command.data_in.iter().map(|segment| segment.len).sum();
        let read_len = at + offset_of!(abi::CommandResponse, read_len);
        let read_len = self.memory.load_u32(read_len).expect(CHECKED);
        if len_in > 0
            && !command.bidirectional
            && self.flags & abi::FLAG_READ_LEN != 0
            && uflags & abi::UFLAG_READ_LEN != 0
            && read_len != 0
        {
            finished.read_len = Some(read_len.min(len_in as u32));
        }
        if status == CHECK_CONDITION {
            finished.sense = vec![0; abi::SENSE_LEN];
            let sense = at + offset_of!(abi::CommandResponse, sense);
            self.memory.read(sense, &mut finished.sense).expect(CHECKED);
            if finished.read_len.is_none() {
                return finished;
            }
        }
        let mut left = finished.read_len.map_or(len_in, |len| len as usize);
        for segment in &command.data_in {
            let part = segment.len.min(left);
            left -= part;
            let start = finished.data_in.len();
            finished.data_in.resize(start + part, 0);
            self.memory
                .read(segment.offset, &mut finished.data_in[start..])
                .expect(CHECKED);
        }
        finished
    }
}
