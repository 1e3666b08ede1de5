//! What a backstore does: the only source of what a LUN claims to its initiators.

/// How a backstore makes one write durable before the write completes (FUA, force unit access).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fua {
    /// The runner follows the write by [`flush`](crate::Backstore::flush).
    Emulate,
    /// The backstore honours [`WriteFlags::fua`](crate::WriteFlags::fua).
    Native,
}

/// Who has to see the bytes of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DataAccess {
    /// The backstore only hands them from one file descriptor to another; the kernel can move them.
    FdToFd,
    /// The backstore computes on them (compression, encryption, a library's own transport).
    Bytes,
}

/// How a backstore gives storage back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unmap {
    /// The unit in which storage is given back, in bytes; at least the block size. Smaller or
    /// unaligned parts of a request are kept.
    pub granularity: u64,
    /// Unmapped bytes read back as zeroes, always (LBPRZ).
    pub reads_zeroes: bool,
}

/// Which writes are done as a whole or not at all, whoever reads meanwhile and whenever the power
/// fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AtomicWrites {
    /// The longest one in bytes; a multiple of the block size.
    pub max_len: u32,
    /// What their offsets are multiples of, in bytes; a power of two.
    pub alignment: u32,
    /// What their lengths are multiples of, in bytes; a power of two.
    pub granularity: u32,
}

/// What one open image does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capabilities {
    /// The image's size in bytes; the LUN is never larger.
    pub size: u64,
    /// The smallest request in bytes that the image takes, also its alignment: a power of two. The
    /// LUN's block size is never smaller.
    pub block_size: u32,
    /// The unit in bytes that the medium writes as a whole: a power of two, at least `block_size`.
    pub physical_block_size: u32,
    /// A request size in bytes that works well, or 0 if none is better than another.
    pub optimal_io_size: u32,
    /// Writes are refused.
    pub read_only: bool,
    /// Completed writes can be lost with the power until a flush has succeeded.
    pub volatile_cache: bool,
    /// How single writes are made durable. Without a volatile cache every write is.
    pub fua: Fua,
    /// Whether and how storage is given back.
    pub unmap: Option<Unmap>,
    /// [`usage`](crate::Backstore::usage) is implemented. It counts only where storage is given back.
    pub usage: bool,
    /// [`write_zeroes`](crate::Backstore::write_zeroes) is implemented; otherwise the runner writes
    /// buffers of zeroes.
    pub write_zeroes: bool,
    /// The longest [`compare_and_write`](crate::Backstore::compare_and_write) in bytes; 0 if it is
    /// not implemented. The runner then reads, compares and writes, which is atomic among the
    /// requests of this LUN, but not towards others who have the same storage open.
    pub compare_and_write: u32,
    /// Which writes are atomic, if any are.
    pub atomic_writes: Option<AtomicWrites>,
    /// Who has to see the bytes.
    pub data_access: DataAccess,
    /// The PERIPHERAL DEVICE TYPE (SPC-4, 6.6.2) of a device that is no disk: its backstore answers
    /// the type's commands itself, in [`handle_cdb`](crate::Backstore::handle_cdb). From 0 to 31.
    pub device_type: Option<u8>,
}

impl Capabilities {
    /// A plain image of `size` bytes: writable, 512-byte blocks, no volatile cache, nothing
    /// optional.
    pub const fn new(size: u64) -> Self {
        Self {
            size,
            block_size: 512,
            physical_block_size: 512,
            optimal_io_size: 0,
            read_only: false,
            volatile_cache: false,
            fua: Fua::Emulate,
            unmap: None,
            usage: false,
            write_zeroes: false,
            compare_and_write: 0,
            atomic_writes: None,
            data_access: DataAccess::Bytes,
            device_type: None,
        }
    }
}
