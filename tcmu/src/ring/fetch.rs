//! Copying an entry out of the ring, once, and judging the copy.

use std::mem::{offset_of, size_of};

use super::command::Body;
use super::mailbox::Mailbox;
use super::{Segment, TaskManagement};
use crate::abi;
use crate::cdb::Cdb;
use crate::mapping::{Mapping, OutOfBounds};

/// The entry points outside the places for what it names; it can be answered all the same.
pub(super) struct Malformed;

impl From<OutOfBounds> for Malformed {
    fn from(_: OutOfBounds) -> Self {
        Self
    }
}

/// A copy of a command's entry up to the iovecs.
pub(super) struct Request([u8; size_of::<abi::CommandRequest>()]);

impl Request {
    pub(super) fn read(memory: &Mapping, at: usize) -> Result<Self, OutOfBounds> {
        let mut request = [0; size_of::<abi::CommandRequest>()];
        memory.read(at, &mut request)?;
        Ok(Self(request))
    }

    pub(super) fn id(&self) -> u16 {
        u16::from_ne_bytes(field(&self.0, offset_of!(abi::EntryHeader, cmd_id)))
    }

    /// Gets the rest of the entry, which starts `at` and has `len` bytes. Vectors for the segments
    /// come from `spare`.
    pub(super) fn parse(
        &self,
        at: usize,
        len: usize,
        mailbox: &Mailbox,
        spare: &mut Vec<Vec<Segment>>,
    ) -> Result<Body, Malformed> {
        let count = |offset| u32::from_ne_bytes(field(&self.0, offset)) as usize;
        let data_count = count(offset_of!(abi::CommandRequest, iov_cnt));
        let bidi_count = count(offset_of!(abi::CommandRequest, iov_bidi_cnt));
        let room = (len - size_of::<abi::CommandRequest>()) / size_of::<abi::IoVec>();
        if data_count + bidi_count > room {
            return Err(Malformed);
        }

        let cdb_off = field(&self.0, offset_of!(abi::CommandRequest, cdb_off));
        let cdb_off = u64::from_ne_bytes(cdb_off) as usize;
        let ring = mailbox.ring();
        if !ring.contains(&cdb_off) {
            return Err(Malformed);
        }
        let memory = mailbox.mapping();
        let cdb = Cdb::fetch(ring.end - cdb_off, |from, to| {
            memory.read(cdb_off + from, to)
        })?
        .ok_or(Malformed)?;

        let mut iovecs = at + size_of::<abi::CommandRequest>();
        let (data, data_len) = segments(iovecs, data_count, mailbox, spare)?;
        iovecs += data_count * size_of::<abi::IoVec>();
        let (bidi_in, _) = segments(iovecs, bidi_count, mailbox, spare)?;
        Ok(Body {
            cdb,
            data,
            data_len,
            bidi_in,
        })
    }
}

/// The `count` iovecs at `at`, and how many bytes they are together.
fn segments(
    at: usize,
    count: usize,
    mailbox: &Mailbox,
    spare: &mut Vec<Vec<Segment>>,
) -> Result<(Vec<Segment>, usize), Malformed> {
    if count == 0 {
        return Ok((Vec::new(), 0));
    }
    let memory = mailbox.mapping();
    let data_area = mailbox.ring().end;
    let mut segments = spare.pop().unwrap_or_default();
    let mut total = 0_usize;
    for index in 0..count {
        let mut iovec = [0; size_of::<abi::IoVec>()];
        memory.read(at + index * iovec.len(), &mut iovec)?;
        let offset = u64::from_ne_bytes(field(&iovec, offset_of!(abi::IoVec, base))) as usize;
        let len = u64::from_ne_bytes(field(&iovec, offset_of!(abi::IoVec, len))) as usize;
        memory.check(offset, len)?;
        if offset < data_area {
            return Err(Malformed);
        }
        total = total.checked_add(len).ok_or(Malformed)?;
        segments.push(Segment { offset, len });
    }
    Ok((segments, total))
}

/// The task management entry that starts `at` and has `len` bytes, no fewer than its fixed part.
pub(super) fn task_management(
    memory: &Mapping,
    at: usize,
    len: usize,
) -> Result<TaskManagement, Malformed> {
    let mut entry = [0; size_of::<abi::TmrEntry>()];
    memory.read(at, &mut entry)?;
    let count = u32::from_ne_bytes(field(&entry, offset_of!(abi::TmrEntry, cmd_cnt))) as usize;
    if count > (len - entry.len()) / size_of::<u16>() {
        return Err(Malformed);
    }
    let mut ids = vec![0; count * size_of::<u16>()];
    memory.read(at + entry.len(), &mut ids)?;
    Ok(TaskManagement {
        kind: entry[offset_of!(abi::TmrEntry, tmr_type)].into(),
        commands: ids
            .chunks_exact(size_of::<u16>())
            .map(|id| u16::from_ne_bytes([id[0], id[1]]))
            .collect(),
    })
}

/// The bytes of a structure's field.
fn field<const N: usize>(structure: &[u8], offset: usize) -> [u8; N] {
    let mut bytes = [0; N];
    bytes.copy_from_slice(&structure[offset..offset + N]);
    bytes
}
