//! Devices that are no disks.

/// How a command ended that a backstore answered itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CdbAnswer {
    /// GOOD. The buffer's first `supplied` bytes are the command's data; the runner sets the others to
    /// zero. For a command that brought data, it is the buffer's length.
    Good {
        /// In bytes.
        supplied: usize,
    },
    /// CHECK CONDITION with these sense data (SPC-4, 4.5.6 and annex F).
    CheckCondition {
        /// SENSE KEY, 4 bits.
        key: u8,
        /// ADDITIONAL SENSE CODE.
        asc: u8,
        /// ADDITIONAL SENSE CODE QUALIFIER.
        ascq: u8,
    },
    /// BUSY: the initiator sends the command again after a while.
    Busy,
}
