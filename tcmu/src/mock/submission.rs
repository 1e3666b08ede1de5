//! How entries get into the ring.

use std::mem::{offset_of, size_of};

use super::{CHECKED, CommandTag, InFlight, MockKernel, RingEntry};
use crate::abi;
use crate::cdb::Cdb;
use crate::ring::{Segment, TmrKind};

/// A command's data.
#[derive(Clone, Copy, Debug)]
pub enum Data<'a> {
    /// No data.
    None,
    /// From the initiator.
    Out(&'a [u8]),
    /// To the initiator: this many bytes.
    In(usize),
    /// Both.
    Bidi {
        /// From the initiator.
        out: &'a [u8],
        /// Bytes to the initiator.
        len_in: usize,
    },
}

/// Why a command was not put into the ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SubmitError {
    /// No room in the ring or in the data area until commands complete.
    #[error("there is no room until commands complete")]
    Full,
    /// There will never be room: more than half of the ring, or more than the data area.
    #[error("the command is too big for this device")]
    TooBig,
    /// The device is broken.
    #[error("the device is broken")]
    Broken,
}

impl MockKernel {
    /// Puts a command into the ring and signals it.
    ///
    /// # Errors
    /// [`SubmitError`]; nothing has changed then.
    ///
    /// # Panics
    /// If `cdb` is shorter than its opcode says.
    pub fn submit(&mut self, cdb: &[u8], data: Data<'_>) -> Result<CommandTag, SubmitError> {
        let cdb = Cdb::new(cdb).expect("the CDB is as long as its opcode says");
        if self.broken.is_some() {
            return Err(SubmitError::Broken);
        }
        let (first, second) = match data {
            Data::None => (0, 0),
            Data::Out(out) => (out.len(), 0),
            Data::In(len_in) => (len_in, 0),
            Data::Bidi { out, len_in } => (out.len(), len_in),
        };
        let needed = self.blocks.count(first) + self.blocks.count(second);
        if needed > self.blocks.total() {
            return Err(SubmitError::TooBig);
        }
        if needed > self.blocks.free() {
            return Err(SubmitError::Full);
        }
        let Some(id) = (1..=u16::MAX).find(|id| !self.commands.contains_key(id)) else {
            return Err(SubmitError::Full);
        };

        let mut blocks = Vec::with_capacity(needed);
        let main = self.blocks.take(first, &mut blocks);
        let bidi = self.blocks.take(second, &mut blocks);
        let base =
            size_of::<abi::CommandRequest>() + (main.len() + bidi.len()) * size_of::<abi::IoVec>();
        let base = base.max(size_of::<abi::CommandResponse>());
        let len = base + cdb.len().next_multiple_of(abi::OP_ALIGN as usize);
        let offset = match self.make_room(len) {
            Ok(offset) => offset,
            Err(error) => {
                self.blocks.release(&blocks);
                return Err(error);
            }
        };

        let at = self.at(offset);
        self.header(offset, len, abi::OP_CMD, id);
        let word = |field, value: usize| {
            self.memory
                .store_u32(at + field, value as u32)
                .expect(CHECKED);
        };
        word(offset_of!(abi::CommandRequest, iov_cnt), main.len());
        word(offset_of!(abi::CommandRequest, iov_bidi_cnt), bidi.len());
        let cdb_off = offset_of!(abi::CommandRequest, cdb_off);
        self.memory
            .store_u64(at + cdb_off, (at + base) as u64)
            .expect(CHECKED);
        self.memory.write(at + base, &cdb).expect(CHECKED);
        let mut iovec = at + size_of::<abi::CommandRequest>();
        for segment in main.iter().chain(&bidi) {
            let base = iovec + offset_of!(abi::IoVec, base);
            self.memory
                .store_u64(base, segment.offset as u64)
                .expect(CHECKED);
            let len = iovec + offset_of!(abi::IoVec, len);
            self.memory
                .store_u64(len, segment.len as u64)
                .expect(CHECKED);
            iovec += size_of::<abi::IoVec>();
        }
        let (data_in, bidirectional) = match data {
            Data::None => (Vec::new(), false),
            Data::In(_) => (main, false),
            Data::Out(out) => {
                self.scatter(&main, out);
                (Vec::new(), false)
            }
            Data::Bidi { out, .. } => {
                self.scatter(&main, out);
                (bidi, true)
            }
        };

        let tag = CommandTag(self.next_tag);
        self.next_tag += 1;
        self.commands.insert(
            id,
            InFlight {
                tag,
                blocks,
                data_in,
                bidirectional,
                expired: false,
            },
        );
        self.finish_entry(offset, len, abi::OP_CMD, id);
        Ok(tag)
    }

    /// Puts a task management notice about these commands into the ring and signals it. Commands
    /// that are not in flight are left out.
    ///
    /// # Errors
    /// [`SubmitError`]; nothing has changed then.
    pub fn notify_task_management(
        &mut self,
        kind: TmrKind,
        commands: &[CommandTag],
    ) -> Result<(), SubmitError> {
        if self.broken.is_some() {
            return Err(SubmitError::Broken);
        }
        let ids: Vec<u8> = self
            .commands
            .iter()
            .filter(|(_, command)| commands.contains(&command.tag))
            .flat_map(|(id, _)| id.to_ne_bytes())
            .collect();
        let len = size_of::<abi::TmrEntry>() + ids.len();
        let len = len.next_multiple_of(abi::OP_ALIGN as usize);
        let offset = self.make_room(len)?;
        let at = self.at(offset);
        self.header(offset, len, abi::OP_TMR, 0);
        let tmr_type = at + offset_of!(abi::TmrEntry, tmr_type);
        self.memory.store_u8(tmr_type, kind.into()).expect(CHECKED);
        let count = (ids.len() / size_of::<u16>()) as u32;
        let cmd_cnt = at + offset_of!(abi::TmrEntry, cmd_cnt);
        self.memory.store_u32(cmd_cnt, count).expect(CHECKED);
        self.memory
            .write(at + size_of::<abi::TmrEntry>(), &ids)
            .expect(CHECKED);
        self.finish_entry(offset, len, abi::OP_TMR, 0);
        Ok(())
    }

    /// Finds where an entry of `len` bytes can start, and fills up the ring's end if it does not
    /// fit there.
    fn make_room(&mut self, len: usize) -> Result<u32, SubmitError> {
        let size = self.ring_size as usize;
        if len > size / 2 {
            return Err(SubmitError::TooBig);
        }
        let (head, cleaned) = (self.head as usize, self.cleaned as usize);
        let used = if head >= cleaned {
            head - cleaned
        } else {
            size + head - cleaned
        };
        let to_end = size - head;
        let padding = if to_end < len { to_end } else { 0 };
        // One byte stays free, else a full ring would look like an empty one.
        if size - used - 1 < len + padding {
            return Err(SubmitError::Full);
        }
        if padding > 0 {
            let offset = self.head;
            self.memory
                .store_u32(self.at(offset), padding as u32 | abi::OP_PAD)
                .expect(CHECKED);
            self.memory
                .store_u32(self.at(offset) + 4, 0)
                .expect(CHECKED);
            self.append(offset, padding, abi::OP_PAD, 0);
        }
        Ok(self.head)
    }

    /// Clears an entry and writes its header.
    fn header(&self, offset: u32, len: usize, op: u32, id: u16) {
        let at = self.at(offset);
        self.memory.fill(at, len, 0).expect(CHECKED);
        let len_op = at + offset_of!(abi::EntryHeader, len_op);
        self.memory
            .store_u32(len_op, len as u32 | op)
            .expect(CHECKED);
        let cmd_id = at + offset_of!(abi::EntryHeader, cmd_id);
        self.memory.store_u16(cmd_id, id).expect(CHECKED);
    }

    /// Makes an entry visible and signals it.
    fn finish_entry(&mut self, offset: u32, len: usize, op: u32, id: u16) {
        self.append(offset, len, op, id);
        self.notify();
    }

    fn append(&mut self, offset: u32, len: usize, op: u32, id: u16) {
        let len = len as u32;
        self.entries.push_back(RingEntry {
            offset,
            len,
            op,
            id,
        });
        self.head = (self.head + len) % self.ring_size;
        self.publish_head();
    }

    fn scatter(&self, segments: &[Segment], mut data: &[u8]) {
        for segment in segments {
            let (part, rest) = data.split_at(segment.len);
            self.memory.write(segment.offset, part).expect(CHECKED);
            data = rest;
        }
    }
}
