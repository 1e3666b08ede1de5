//! REPORT SUPPORTED TASK MANAGEMENT FUNCTIONS parameter data (SPC-4, 6.36).

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// REPD in byte 2 of the CDB: the extended parameter data are asked for.
pub const REPD: u8 = 0x80;

/// The parameter data, extended by 12 bytes without timeouts.
#[derive(Clone, Copy, Debug, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned)]
#[repr(C)]
pub struct TaskManagementFunctions {
    /// [`ATS`], [`LURS`] and others.
    pub functions: u8,
    /// QAES, QTSS, ITNRS.
    pub more_functions: u8,
    reserved: u8,
    /// ADDITIONAL DATA LENGTH: the bytes that follow this field.
    pub additional_length: u8,
    extended: [u8; 12],
}

/// ATS: ABORT TASK.
pub const ATS: u8 = 0x80;
/// LURS: LOGICAL UNIT RESET.
pub const LURS: u8 = 0x08;

impl TaskManagementFunctions {
    /// How many bytes there are without REPD.
    pub const BASIC_LEN: usize = 4;

    /// The data; with `extended`, for REPD.
    pub fn new(functions: u8, extended: bool) -> Self {
        Self {
            functions,
            more_functions: 0,
            reserved: 0,
            additional_length: if extended { 12 } else { 0 },
            extended: [0; 12],
        }
    }
}

const _: () = assert!(size_of::<TaskManagementFunctions>() == 16);
