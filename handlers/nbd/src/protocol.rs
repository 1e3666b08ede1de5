//! The numbers of the NBD protocol: doc/proto.md of the NBD project.

/// The port that IANA gave to NBD.
pub(crate) const PORT: u16 = 10809;

/// The first 8 bytes that a server sends.
pub(crate) const MAGIC: u64 = 0x4e42_444d_4147_4943;
/// The next 8 of a newstyle server, and the first of each option.
pub(crate) const OPTION_MAGIC: u64 = 0x4948_4156_454f_5054;
/// Before each reply to an option.
pub(crate) const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
/// Before each request.
pub(crate) const REQUEST_MAGIC: u32 = 0x2560_9513;
/// Before a simple reply.
pub(crate) const SIMPLE_MAGIC: u32 = 0x6744_6698;
/// Before each chunk of a structured reply.
pub(crate) const CHUNK_MAGIC: u32 = 0x668e_33ef;

/// The longest string that the protocol allows, in bytes.
pub(crate) const MAX_STRING: usize = 4096;

/// Handshake flags, of the server and of the client alike.
pub(crate) mod handshake {
    pub(crate) const FIXED_NEWSTYLE: u16 = 1 << 0;
    pub(crate) const NO_ZEROES: u16 = 1 << 1;
}

/// Options that a client may send.
pub(crate) mod option {
    pub(crate) const START_TLS: u32 = 5;
    pub(crate) const GO: u32 = 7;
    pub(crate) const STRUCTURED_REPLY: u32 = 8;
    pub(crate) const SET_META_CONTEXT: u32 = 10;
}

/// The types of replies to options.
pub(crate) mod option_reply {
    pub(crate) const ACK: u32 = 1;
    pub(crate) const INFO: u32 = 3;
    pub(crate) const META_CONTEXT: u32 = 4;
    /// Set in all errors.
    pub(crate) const ERROR: u32 = 1 << 31;
    pub(crate) const UNSUPPORTED: u32 = ERROR + 1;
    pub(crate) const POLICY: u32 = ERROR + 2;
    pub(crate) const TLS_REQUIRED: u32 = ERROR + 5;
    pub(crate) const UNKNOWN: u32 = ERROR + 6;
    pub(crate) const SHUTDOWN: u32 = ERROR + 7;
}

/// What a server tells of an export.
pub(crate) mod info {
    pub(crate) const EXPORT: u16 = 0;
    pub(crate) const BLOCK_SIZE: u16 = 3;
}

/// Transmission flags.
pub(crate) mod flag {
    pub(crate) const HAS_FLAGS: u16 = 1 << 0;
    pub(crate) const READ_ONLY: u16 = 1 << 1;
    pub(crate) const FLUSH: u16 = 1 << 2;
    pub(crate) const FUA: u16 = 1 << 3;
    pub(crate) const TRIM: u16 = 1 << 5;
    pub(crate) const WRITE_ZEROES: u16 = 1 << 6;
    pub(crate) const CAN_MULTI_CONN: u16 = 1 << 8;
    pub(crate) const CACHE: u16 = 1 << 10;
}

/// Flags of requests.
pub(crate) mod command_flag {
    pub(crate) const FUA: u16 = 1 << 0;
    pub(crate) const NO_HOLE: u16 = 1 << 1;
    pub(crate) const REQ_ONE: u16 = 1 << 3;
}

/// The types of chunks.
pub(crate) mod chunk {
    /// The flag of a request's last chunk.
    pub(crate) const DONE: u16 = 1 << 0;

    pub(crate) const NONE: u16 = 0;
    pub(crate) const OFFSET_DATA: u16 = 1;
    pub(crate) const OFFSET_HOLE: u16 = 2;
    pub(crate) const BLOCK_STATUS: u16 = 5;
    /// Set in all errors.
    pub(crate) const ERROR: u16 = 1 << 15;
}

/// The flags of the metadata context `base:allocation`.
pub(crate) mod allocation {
    pub(crate) const NAME: &str = "base:allocation";
    pub(crate) const HOLE: u32 = 1 << 0;
}

/// The errors of requests.
pub(crate) mod error {
    pub(crate) const PERMISSION: u32 = 1;
    pub(crate) const NO_MEMORY: u32 = 12;
    pub(crate) const INVALID: u32 = 22;
    pub(crate) const NO_SPACE: u32 = 28;
    pub(crate) const OVERFLOW: u32 = 75;
    pub(crate) const NOT_SUPPORTED: u32 = 95;
    pub(crate) const SHUTDOWN: u32 = 108;
}
