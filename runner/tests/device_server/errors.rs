//! What initiators hear of a backstore's errors.

use tcmu::scsi::{AdditionalSense as Code, SenseKey as Key, Status};
use tcmu_handler::ErrorKind;

use crate::disk::Kind;
use crate::target::{BLOCK, Target, assert_good, assert_sense, cdb};

#[test]
fn every_kind_has_its_sense() {
    let expected = [
        (
            ErrorKind::Read,
            Key::MediumError,
            Code::UNRECOVERED_READ_ERROR,
        ),
        (ErrorKind::Write, Key::MediumError, Code::WRITE_ERROR),
        (
            ErrorKind::NoSpace,
            Key::DataProtect,
            Code::SPACE_ALLOCATION_FAILED_WRITE_PROTECT,
        ),
        (ErrorKind::ReadOnly, Key::DataProtect, Code::WRITE_PROTECTED),
        (
            ErrorKind::OutOfRange,
            Key::IllegalRequest,
            Code::LOGICAL_BLOCK_ADDRESS_OUT_OF_RANGE,
        ),
        (
            ErrorKind::Unsupported,
            Key::IllegalRequest,
            Code::INVALID_COMMAND_OPERATION_CODE,
        ),
        (
            ErrorKind::TimedOut,
            Key::AbortedCommand,
            Code::LOGICAL_UNIT_COMMUNICATION_TIMEOUT,
        ),
        (
            ErrorKind::Gone,
            Key::NotReady,
            Code::LOGICAL_UNIT_COMMUNICATION_FAILURE,
        ),
        (
            ErrorKind::NotFound,
            Key::NotReady,
            Code::NOT_READY_CAUSE_NOT_REPORTABLE,
        ),
        (
            ErrorKind::PermissionDenied,
            Key::NotReady,
            Code::NOT_READY_CAUSE_NOT_REPORTABLE,
        ),
        (
            ErrorKind::InUse,
            Key::NotReady,
            Code::NOT_READY_CAUSE_NOT_REPORTABLE,
        ),
        (
            ErrorKind::InvalidConfig,
            Key::HardwareError,
            Code::INTERNAL_TARGET_FAILURE,
        ),
        (
            ErrorKind::Internal,
            Key::HardwareError,
            Code::INTERNAL_TARGET_FAILURE,
        ),
    ];
    let target = Target::new();
    for (error, key, code) in expected {
        target.disk().fail(Kind::Read, error);
        let (response, _) = target.data_in(&cdb::ten(0x28, 0, 0, 1), BLOCK);
        assert_sense(response, key, code);
        target.disk().fail(Kind::Write, error);
        let response = target.data_out(&cdb::ten(0x2a, 0, 0, 1), &[1; BLOCK]);
        assert_sense(response, key, code);
    }
    target.disk().heal();
    assert_good(target.data_in(&cdb::ten(0x28, 0, 0, 1), BLOCK).0);
}

#[test]
fn busy_is_a_status_and_leaks_nothing() {
    let target = Target::new();
    target.disk().fail(Kind::Read, ErrorKind::Busy);
    let (response, data) = target.data_in(&cdb::ten(0x28, 0, 0, 1), BLOCK);
    assert_eq!(response.status, Status::Busy);
    assert_eq!(data, [0; BLOCK]);
    target.disk().fail(Kind::BlockStatus, ErrorKind::Busy);
    let (response, data) = target.data_in(&cdb::sixteen(0x9e, 0x12, 0, 24), 24);
    assert_eq!(response.status, Status::Busy);
    assert_eq!(data, [0; 24]);
    target.disk().fail(Kind::Flush, ErrorKind::Busy);
    let (response, data) = target.data_in(&cdb::ten(0x28, 0x08, 0, 1), BLOCK);
    assert_eq!(response.status, Status::Busy);
    assert_eq!(data, [0; BLOCK]);
}
