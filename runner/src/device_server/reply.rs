//! How commands end.

use tcmu::scsi::{Sense, Status};
use tcmu_handler::Buffer;

/// The end of a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Response {
    /// The status.
    pub status: Status,
    /// The sense data, with CHECK CONDITION. Their format is
    /// [`LogicalUnit::descriptor_sense`](super::LogicalUnit::descriptor_sense)'s.
    pub sense: Option<Sense>,
    /// How many bytes of the data-in buffer the command supplied, if not all of them. The bytes
    /// behind are zero.
    pub read_len: Option<u32>,
}

impl Response {
    /// GOOD, with the whole buffer, or without data.
    pub(super) const GOOD: Self = Self {
        status: Status::Good,
        sense: None,
        read_len: None,
    };
}

/// Why a command cannot end with GOOD.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Failure {
    pub(super) status: Status,
    pub(super) sense: Option<Sense>,
}

/// The command was aborted, and ends early.
pub(super) const TASK_ABORTED: Failure = Failure {
    status: Status::TaskAborted,
    sense: None,
};

impl From<Sense> for Failure {
    fn from(sense: Sense) -> Self {
        Self {
            status: Status::CheckCondition,
            sense: Some(sense),
        }
    }
}

impl From<Failure> for Response {
    fn from(failure: Failure) -> Self {
        Self {
            status: failure.status,
            sense: failure.sense,
            read_len: None,
        }
    }
}

/// What the functions that run a command return.
pub(super) type Answer = Result<Response, Failure>;

/// Ends a command with parameter data: at most `allocation_length` bytes of `data`, and zeroes
/// behind them.
pub(super) fn parameter_data(buffer: Buffer<'_>, allocation_length: usize, data: &[u8]) -> Answer {
    let len = data.len().min(allocation_length).min(buffer.len());
    buffer.copy_from(0, &data[..len]);
    Ok(supplied(buffer, len))
}

/// GOOD with the first `len` bytes of the buffer, once the others are zero.
///
/// The kernel hands pages of the data area from command to command as they are, so what a command
/// leaves in its buffer may be another initiator's data.
pub(super) fn supplied(buffer: Buffer<'_>, len: usize) -> Response {
    if len >= buffer.len() {
        return Response::GOOD;
    }
    if let Ok(rest) = buffer.slice(len..buffer.len()) {
        rest.fill(0);
    }
    Response {
        // It is less than the buffer's length, which the kernel keeps in 32 bits.
        read_len: u32::try_from(len).ok(),
        ..Response::GOOD
    }
}
