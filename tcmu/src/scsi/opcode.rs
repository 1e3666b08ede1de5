//! Operation codes and service actions (SPC-4, SBC-3).

/// TEST UNIT READY.
pub const TEST_UNIT_READY: u8 = 0x00;
/// REQUEST SENSE.
pub const REQUEST_SENSE: u8 = 0x03;
/// FORMAT UNIT.
pub const FORMAT_UNIT: u8 = 0x04;
/// READ (6).
pub const READ_6: u8 = 0x08;
/// WRITE (6).
pub const WRITE_6: u8 = 0x0a;
/// INQUIRY.
pub const INQUIRY: u8 = 0x12;
/// MODE SELECT (6).
pub const MODE_SELECT_6: u8 = 0x15;
/// RESERVE (6).
pub const RESERVE_6: u8 = 0x16;
/// RELEASE (6).
pub const RELEASE_6: u8 = 0x17;
/// MODE SENSE (6).
pub const MODE_SENSE_6: u8 = 0x1a;
/// START STOP UNIT.
pub const START_STOP_UNIT: u8 = 0x1b;
/// RECEIVE DIAGNOSTIC RESULTS.
pub const RECEIVE_DIAGNOSTIC_RESULTS: u8 = 0x1c;
/// SEND DIAGNOSTIC.
pub const SEND_DIAGNOSTIC: u8 = 0x1d;
/// READ CAPACITY (10).
pub const READ_CAPACITY_10: u8 = 0x25;
/// READ (10).
pub const READ_10: u8 = 0x28;
/// WRITE (10).
pub const WRITE_10: u8 = 0x2a;
/// WRITE AND VERIFY (10).
pub const WRITE_AND_VERIFY_10: u8 = 0x2e;
/// VERIFY (10).
pub const VERIFY_10: u8 = 0x2f;
/// PRE-FETCH (10).
pub const PRE_FETCH_10: u8 = 0x34;
/// SYNCHRONIZE CACHE (10).
pub const SYNCHRONIZE_CACHE_10: u8 = 0x35;
/// READ DEFECT DATA (10).
pub const READ_DEFECT_DATA_10: u8 = 0x37;
/// WRITE SAME (10).
pub const WRITE_SAME_10: u8 = 0x41;
/// UNMAP.
pub const UNMAP: u8 = 0x42;
/// SANITIZE.
pub const SANITIZE: u8 = 0x48;
/// LOG SENSE.
pub const LOG_SENSE: u8 = 0x4d;
/// MODE SELECT (10).
pub const MODE_SELECT_10: u8 = 0x55;
/// RESERVE (10).
pub const RESERVE_10: u8 = 0x56;
/// RELEASE (10).
pub const RELEASE_10: u8 = 0x57;
/// MODE SENSE (10).
pub const MODE_SENSE_10: u8 = 0x5a;
/// PERSISTENT RESERVE IN.
pub const PERSISTENT_RESERVE_IN: u8 = 0x5e;
/// PERSISTENT RESERVE OUT.
pub const PERSISTENT_RESERVE_OUT: u8 = 0x5f;
/// A CDB with a service action, longer than 16 bytes.
pub const VARIABLE_LENGTH: u8 = 0x7f;
/// THIRD-PARTY COPY OUT.
pub const THIRD_PARTY_COPY_OUT: u8 = 0x83;
/// THIRD-PARTY COPY IN.
pub const THIRD_PARTY_COPY_IN: u8 = 0x84;
/// READ (16).
pub const READ_16: u8 = 0x88;
/// COMPARE AND WRITE.
pub const COMPARE_AND_WRITE: u8 = 0x89;
/// WRITE (16).
pub const WRITE_16: u8 = 0x8a;
/// ORWRITE (16).
pub const ORWRITE_16: u8 = 0x8b;
/// WRITE AND VERIFY (16).
pub const WRITE_AND_VERIFY_16: u8 = 0x8e;
/// VERIFY (16).
pub const VERIFY_16: u8 = 0x8f;
/// PRE-FETCH (16).
pub const PRE_FETCH_16: u8 = 0x90;
/// SYNCHRONIZE CACHE (16).
pub const SYNCHRONIZE_CACHE_16: u8 = 0x91;
/// WRITE SAME (16).
pub const WRITE_SAME_16: u8 = 0x93;
/// WRITE ATOMIC (16).
pub const WRITE_ATOMIC_16: u8 = 0x9c;
/// SERVICE ACTION IN (16).
pub const SERVICE_ACTION_IN_16: u8 = 0x9e;
/// REPORT LUNS.
pub const REPORT_LUNS: u8 = 0xa0;
/// MAINTENANCE IN.
pub const MAINTENANCE_IN: u8 = 0xa3;
/// MAINTENANCE OUT.
pub const MAINTENANCE_OUT: u8 = 0xa4;
/// READ (12).
pub const READ_12: u8 = 0xa8;
/// WRITE (12).
pub const WRITE_12: u8 = 0xaa;
/// WRITE AND VERIFY (12).
pub const WRITE_AND_VERIFY_12: u8 = 0xae;
/// VERIFY (12).
pub const VERIFY_12: u8 = 0xaf;
/// READ DEFECT DATA (12).
pub const READ_DEFECT_DATA_12: u8 = 0xb7;

/// Service actions of [`VARIABLE_LENGTH`].
pub mod variable_length {
    /// READ (32).
    pub const READ_32: u16 = 0x0009;
    /// VERIFY (32).
    pub const VERIFY_32: u16 = 0x000a;
    /// WRITE (32).
    pub const WRITE_32: u16 = 0x000b;
    /// WRITE AND VERIFY (32).
    pub const WRITE_AND_VERIFY_32: u16 = 0x000c;
    /// WRITE SAME (32).
    pub const WRITE_SAME_32: u16 = 0x000d;
    /// GET LBA STATUS (32).
    pub const GET_LBA_STATUS_32: u16 = 0x0012;
}

/// Service actions of [`SERVICE_ACTION_IN_16`].
pub mod service_action_in_16 {
    /// READ CAPACITY (16).
    pub const READ_CAPACITY_16: u16 = 0x10;
    /// GET LBA STATUS (16).
    pub const GET_LBA_STATUS_16: u16 = 0x12;
}

/// Service actions of [`MAINTENANCE_IN`].
pub mod maintenance_in {
    /// REPORT TARGET PORT GROUPS.
    pub const REPORT_TARGET_PORT_GROUPS: u16 = 0x0a;
    /// REPORT SUPPORTED OPERATION CODES.
    pub const REPORT_SUPPORTED_OPERATION_CODES: u16 = 0x0c;
    /// REPORT SUPPORTED TASK MANAGEMENT FUNCTIONS.
    pub const REPORT_SUPPORTED_TASK_MANAGEMENT_FUNCTIONS: u16 = 0x0d;
}

/// Service actions of [`MAINTENANCE_OUT`].
pub mod maintenance_out {
    /// SET TARGET PORT GROUPS.
    pub const SET_TARGET_PORT_GROUPS: u16 = 0x0a;
}

/// Service actions of [`PERSISTENT_RESERVE_IN`].
pub mod persistent_reserve_in {
    /// READ KEYS.
    pub const READ_KEYS: u16 = 0x00;
    /// READ RESERVATION.
    pub const READ_RESERVATION: u16 = 0x01;
    /// REPORT CAPABILITIES.
    pub const REPORT_CAPABILITIES: u16 = 0x02;
    /// READ FULL STATUS.
    pub const READ_FULL_STATUS: u16 = 0x03;
}

/// Service actions of [`PERSISTENT_RESERVE_OUT`].
pub mod persistent_reserve_out {
    /// REGISTER.
    pub const REGISTER: u16 = 0x00;
    /// RESERVE.
    pub const RESERVE: u16 = 0x01;
    /// RELEASE.
    pub const RELEASE: u16 = 0x02;
    /// CLEAR.
    pub const CLEAR: u16 = 0x03;
    /// PREEMPT.
    pub const PREEMPT: u16 = 0x04;
    /// PREEMPT AND ABORT.
    pub const PREEMPT_AND_ABORT: u16 = 0x05;
    /// REGISTER AND IGNORE EXISTING KEY.
    pub const REGISTER_AND_IGNORE_EXISTING_KEY: u16 = 0x06;
    /// REGISTER AND MOVE.
    pub const REGISTER_AND_MOVE: u16 = 0x07;
}

/// Service actions of [`SANITIZE`].
pub mod sanitize {
    /// OVERWRITE.
    pub const OVERWRITE: u16 = 0x01;
    /// BLOCK ERASE.
    pub const BLOCK_ERASE: u16 = 0x02;
    /// EXIT FAILURE MODE.
    pub const EXIT_FAILURE_MODE: u16 = 0x1f;
}

/// Service actions of [`THIRD_PARTY_COPY_OUT`].
pub mod third_party_copy_out {
    /// EXTENDED COPY (LID1).
    pub const EXTENDED_COPY_LID1: u16 = 0x00;
}

/// Service actions of [`THIRD_PARTY_COPY_IN`].
pub mod third_party_copy_in {
    /// RECEIVE COPY STATUS (LID1).
    pub const RECEIVE_COPY_STATUS_LID1: u16 = 0x00;
    /// RECEIVE COPY OPERATING PARAMETERS.
    pub const RECEIVE_COPY_OPERATING_PARAMETERS: u16 = 0x03;
    /// RECEIVE COPY FAILURE DETAILS (LID1).
    pub const RECEIVE_COPY_FAILURE_DETAILS_LID1: u16 = 0x04;
}
