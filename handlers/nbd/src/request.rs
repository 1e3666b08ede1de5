//! What is asked of a server.

use tcmu_handler::ErrorKind;

use crate::protocol::{REQUEST_MAGIC, error};

/// The length of a request's header, in bytes.
pub(crate) const HEADER_LEN: usize = 28;

/// The types of requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub(crate) enum Command {
    Read = 0,
    Write = 1,
    Disconnect = 2,
    Flush = 3,
    Trim = 4,
    Cache = 5,
    WriteZeroes = 6,
    BlockStatus = 7,
}

impl Command {
    /// Whether it changes the export's bytes, or may.
    pub(crate) fn changes(self) -> bool {
        matches!(self, Self::Write | Self::Trim | Self::WriteZeroes)
    }

    /// Whether it is a loss if it is undone. What was trimmed may hold anything.
    pub(crate) fn stores(self) -> bool {
        matches!(self, Self::Write | Self::WriteZeroes)
    }

    fn name(self) -> &'static str {
        match self {
            Self::Read => "reading",
            Self::Write => "writing",
            Self::Disconnect => "disconnecting",
            Self::Flush => "flushing",
            Self::Trim => "trimming",
            Self::Cache => "reading ahead",
            Self::WriteZeroes => "zeroing",
            Self::BlockStatus => "asking for the status of",
        }
    }
}

/// A request, without the data of a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Request {
    pub(crate) command: Command,
    /// Of [`command_flag`](crate::protocol::command_flag).
    pub(crate) flags: u16,
    /// In bytes.
    pub(crate) offset: u64,
    /// In bytes.
    pub(crate) len: u32,
}

impl Request {
    /// The header as it is sent.
    pub(crate) fn header(&self, cookie: u64) -> [u8; HEADER_LEN] {
        let mut header = [0; HEADER_LEN];
        header[0..4].copy_from_slice(&REQUEST_MAGIC.to_be_bytes());
        header[4..6].copy_from_slice(&self.flags.to_be_bytes());
        header[6..8].copy_from_slice(&(self.command as u16).to_be_bytes());
        header[8..16].copy_from_slice(&cookie.to_be_bytes());
        header[16..24].copy_from_slice(&self.offset.to_be_bytes());
        header[24..28].copy_from_slice(&self.len.to_be_bytes());
        header
    }

    /// What an error of the server's means for the backstore.
    pub(crate) fn kind_of(&self, code: u32) -> ErrorKind {
        match code {
            error::PERMISSION if self.command.changes() => ErrorKind::ReadOnly,
            error::PERMISSION => ErrorKind::PermissionDenied,
            error::NO_MEMORY => ErrorKind::Busy,
            error::INVALID => ErrorKind::Internal,
            error::NO_SPACE => ErrorKind::NoSpace,
            error::OVERFLOW => ErrorKind::OutOfRange,
            error::NOT_SUPPORTED => ErrorKind::Unsupported,
            _ if matches!(self.command, Command::Read | Command::BlockStatus) => ErrorKind::Read,
            _ => ErrorKind::Write,
        }
    }
}

impl std::fmt::Display for Request {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let name = self.command.name();
        match self.command {
            Command::Flush | Command::Disconnect => f.write_str(name),
            _ => write!(f, "{name} {} bytes at {}", self.len, self.offset),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_is_what_the_protocol_says() {
        let request = Request {
            command: Command::WriteZeroes,
            flags: 3,
            offset: 0x0102_0304_0506_0708,
            len: 0x1000,
        };
        assert_eq!(
            request.header(0xa1a2_a3a4_a5a6_a7a8),
            [
                0x25, 0x60, 0x95, 0x13, 0, 3, 0, 6, 0xa1, 0xa2, 0xa3, 0xa4, 0xa5, 0xa6, 0xa7, 0xa8,
                1, 2, 3, 4, 5, 6, 7, 8, 0, 0, 0x10, 0
            ]
        );
    }
}
