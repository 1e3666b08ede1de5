//! The memory layout that `target_core_user` shares with user space
//! (`include/uapi/linux/target_core_user.h`), for 64-bit kernels.
//!
//! The structures are never instantiated: shared memory is only reached through
//! [`Mapping`](crate::mapping::Mapping) with the offsets that they define.

use std::mem::{offset_of, size_of};

/// The only mailbox version that this crate speaks (`TCMU_MAILBOX_VERSION`).
pub const MAILBOX_VERSION: u16 = 2;

/// Mailbox flag: completions may be written in any order.
pub const FLAG_OUT_OF_ORDER: u16 = 1 << 0;
/// Mailbox flag: a response may state how many bytes were read.
pub const FLAG_READ_LEN: u16 = 1 << 1;
/// Mailbox flag: the kernel can put task management entries into the ring.
pub const FLAG_TMR: u16 = 1 << 2;
/// Mailbox flag: a completed command may keep its data blocks.
pub const FLAG_KEEP_BUF: u16 = 1 << 3;

/// The bits of [`EntryHeader::len_op`] that hold the opcode; the others are the length in bytes.
pub const OP_MASK: u32 = 0x7;
/// Opcode: filler up to the end of the ring.
pub const OP_PAD: u32 = 0;
/// Opcode: a SCSI command.
pub const OP_CMD: u32 = 1;
/// Opcode: a task management notification, which needs no response.
pub const OP_TMR: u32 = 2;
/// Every entry's offset and length is a multiple of this many bytes.
pub const OP_ALIGN: u32 = 8;

/// Response flag: the entry's opcode is unknown to user space.
pub const UFLAG_UNKNOWN_OP: u8 = 1 << 0;
/// Response flag: [`CommandResponse::read_len`] is valid.
pub const UFLAG_READ_LEN: u8 = 1 << 1;
/// Response flag: the kernel must keep the command's data blocks and id.
pub const UFLAG_KEEP_BUF: u8 = 1 << 2;

/// Bytes of sense data in a response (`TCMU_SENSE_BUFFERSIZE`).
pub const SENSE_LEN: usize = 96;

/// The start of the mapping: where the ring lies and how far both sides have come.
#[derive(Debug)]
#[repr(C)]
pub struct Mailbox {
    /// [`MAILBOX_VERSION`].
    pub version: u16,
    /// `FLAG_*`: what the kernel offers.
    pub flags: u16,
    /// Offset of the command ring from the start of the mapping, in bytes.
    pub cmdr_off: u32,
    /// Size of the command ring in bytes; not a power of two.
    pub cmdr_size: u32,
    /// Where the kernel puts the next entry, in bytes from the start of the ring.
    pub cmd_head: u32,
    reserved0: [u8; 48],
    /// Up to where user space has completed, in bytes from the start of the ring.
    pub cmd_tail: u32,
    reserved1: [u8; 60],
}

/// The first eight bytes of every entry.
#[derive(Debug)]
#[repr(C)]
pub struct EntryHeader {
    /// Length of the entry in bytes, with the opcode in its three low bits.
    pub len_op: u32,
    /// The command, 1..=65535; 0 in entries that are not commands.
    pub cmd_id: u16,
    /// Flags that the kernel sets.
    pub kflags: u8,
    /// `UFLAG_*`: flags that user space sets.
    pub uflags: u8,
}

/// A command as the kernel writes it; the iovecs follow, the CDB follows these.
#[derive(Debug)]
#[repr(C)]
pub struct CommandRequest {
    /// Length, opcode [`OP_CMD`], command id.
    pub header: EntryHeader,
    /// Number of iovecs of the data-out or data-in buffer.
    pub iov_cnt: u32,
    /// Number of iovecs of a bidirectional command's data-in buffer, after the others.
    pub iov_bidi_cnt: u32,
    /// Not used by the kernel.
    pub iov_dif_cnt: u32,
    /// Offset of the CDB from the start of the mapping.
    pub cdb_off: u64,
    reserved: [u64; 2],
}

/// A command's answer; it overlays the request.
#[derive(Debug)]
#[repr(C)]
pub struct CommandResponse {
    /// The id may be that of another command than the entry's own.
    pub header: EntryHeader,
    /// SAM status.
    pub scsi_status: u8,
    reserved: [u8; 3],
    /// Bytes of data-in that are valid, if [`UFLAG_READ_LEN`] is set and this is not 0.
    pub read_len: u32,
    /// Sense data, looked at if the status is CHECK CONDITION.
    pub sense: [u8; SENSE_LEN],
}

/// A task management notification; the ids follow, two bytes each.
#[derive(Debug)]
#[repr(C)]
pub struct TmrEntry {
    /// Length, opcode [`OP_TMR`].
    pub header: EntryHeader,
    /// The function, see [`TmrKind`](crate::ring::TmrKind).
    pub tmr_type: u8,
    reserved0: [u8; 3],
    /// Number of command ids.
    pub cmd_cnt: u32,
    reserved1: [u64; 2],
}

/// A range of the data area.
#[derive(Debug)]
#[repr(C)]
pub struct IoVec {
    /// Offset from the start of the mapping, in bytes.
    pub base: u64,
    /// Length in bytes.
    pub len: u64,
}

const _: () = {
    assert!(
        size_of::<usize>() == 8,
        "the layout of 32-bit kernels differs"
    );

    assert!(size_of::<Mailbox>() == 128);
    assert!(offset_of!(Mailbox, version) == 0);
    assert!(offset_of!(Mailbox, flags) == 2);
    assert!(offset_of!(Mailbox, cmdr_off) == 4);
    assert!(offset_of!(Mailbox, cmdr_size) == 8);
    assert!(offset_of!(Mailbox, cmd_head) == 12);
    assert!(offset_of!(Mailbox, cmd_tail) == 64);

    assert!(size_of::<EntryHeader>() == 8);
    assert!(offset_of!(EntryHeader, cmd_id) == 4);
    assert!(offset_of!(EntryHeader, kflags) == 6);
    assert!(offset_of!(EntryHeader, uflags) == 7);

    assert!(size_of::<CommandRequest>() == 48);
    assert!(offset_of!(CommandRequest, iov_cnt) == 8);
    assert!(offset_of!(CommandRequest, iov_bidi_cnt) == 12);
    assert!(offset_of!(CommandRequest, iov_dif_cnt) == 16);
    assert!(offset_of!(CommandRequest, cdb_off) == 24);

    assert!(size_of::<CommandResponse>() == 112);
    assert!(offset_of!(CommandResponse, scsi_status) == 8);
    assert!(offset_of!(CommandResponse, read_len) == 12);
    assert!(offset_of!(CommandResponse, sense) == 16);

    assert!(size_of::<TmrEntry>() == 32);
    assert!(offset_of!(TmrEntry, tmr_type) == 8);
    assert!(offset_of!(TmrEntry, cmd_cnt) == 12);

    assert!(size_of::<IoVec>() == 16);
};
