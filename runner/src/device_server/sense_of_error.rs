//! What an initiator hears of a backstore's errors.

use tcmu::scsi::{AdditionalSense, Sense, SenseKey, Status};
use tcmu_handler::ErrorKind;

use super::reply::Failure;

/// The status and sense data for each kind of error.
///
/// The choice among the codes follows what initiators do with them: ABORTED COMMAND is sent again a
/// few times, BUSY after a while, MEDIUM ERROR goes up to the file system at once.
pub(super) fn failure(kind: ErrorKind) -> Failure {
    use AdditionalSense as Code;
    use SenseKey as Key;
    let (key, code) = match kind {
        ErrorKind::Read => (Key::MediumError, Code::UNRECOVERED_READ_ERROR),
        ErrorKind::Write => (Key::MediumError, Code::WRITE_ERROR),
        // SBC-3, 4.7.3.6: the code for a thin provisioned unit without room; Linux makes ENOSPC of it.
        ErrorKind::NoSpace => (
            Key::DataProtect,
            Code::SPACE_ALLOCATION_FAILED_WRITE_PROTECT,
        ),
        ErrorKind::ReadOnly => (Key::DataProtect, Code::WRITE_PROTECTED),
        ErrorKind::OutOfRange => (
            Key::IllegalRequest,
            Code::LOGICAL_BLOCK_ADDRESS_OUT_OF_RANGE,
        ),
        // Found out only when it was tried, as with a file system without hole punching. Linux stops
        // using the command on this device.
        ErrorKind::Unsupported => (Key::IllegalRequest, Code::INVALID_COMMAND_OPERATION_CODE),
        ErrorKind::TimedOut => (
            Key::AbortedCommand,
            Code::LOGICAL_UNIT_COMMUNICATION_TIMEOUT,
        ),
        ErrorKind::Gone => (Key::NotReady, Code::LOGICAL_UNIT_COMMUNICATION_FAILURE),
        ErrorKind::NotFound | ErrorKind::PermissionDenied | ErrorKind::InUse => {
            (Key::NotReady, Code::NOT_READY_CAUSE_NOT_REPORTABLE)
        }
        ErrorKind::InvalidConfig | ErrorKind::Internal => {
            (Key::HardwareError, Code::INTERNAL_TARGET_FAILURE)
        }
        ErrorKind::Busy => {
            return Failure {
                status: Status::Busy,
                sense: None,
            };
        }
    };
    Sense::new(key, code).into()
}
