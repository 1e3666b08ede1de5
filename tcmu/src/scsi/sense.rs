//! Sense data (SPC-4, 4.5).

/// Space for sense data: the size of Linux's sense buffers (TRANSPORT_SENSE_BUFFER).
pub const SENSE_BUFFER_LEN: usize = 96;

/// The length of fixed-format sense data as written here.
pub const FIXED_SENSE_LEN: usize = 18;

/// What kind of condition it is (SPC-4, 4.5.6).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum SenseKey {
    /// Nothing to say.
    NoSense = 0x0,
    /// The command succeeded after some recovery.
    RecoveredError = 0x1,
    /// The logical unit cannot be accessed.
    NotReady = 0x2,
    /// The medium does not hold or take the data.
    MediumError = 0x3,
    /// Something other than the medium failed.
    HardwareError = 0x4,
    /// The command itself is wrong.
    IllegalRequest = 0x5,
    /// Something happened to the logical unit that the initiator has to know.
    UnitAttention = 0x6,
    /// The blocks are protected.
    DataProtect = 0x7,
    /// Blank or non-blank medium where the other was expected.
    BlankCheck = 0x8,
    /// The vendor's own.
    VendorSpecific = 0x9,
    /// A copy was given up.
    CopyAborted = 0xa,
    /// The device server gave the command up; sending it again may help.
    AbortedCommand = 0xb,
    /// Buffered data do not fit on the medium.
    VolumeOverflow = 0xd,
    /// The data differ from the medium's.
    Miscompare = 0xe,
    /// Completed.
    Completed = 0xf,
}

impl SenseKey {
    /// The key of this number; `None` for the one that is reserved, and from 16 on.
    pub const fn from_bits(key: u8) -> Option<Self> {
        Some(match key {
            0x0 => Self::NoSense,
            0x1 => Self::RecoveredError,
            0x2 => Self::NotReady,
            0x3 => Self::MediumError,
            0x4 => Self::HardwareError,
            0x5 => Self::IllegalRequest,
            0x6 => Self::UnitAttention,
            0x7 => Self::DataProtect,
            0x8 => Self::BlankCheck,
            0x9 => Self::VendorSpecific,
            0xa => Self::CopyAborted,
            0xb => Self::AbortedCommand,
            0xd => Self::VolumeOverflow,
            0xe => Self::Miscompare,
            0xf => Self::Completed,
            _ => return None,
        })
    }
}

/// Additional sense code and qualifier (SPC-4, annex F).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct AdditionalSense {
    /// ADDITIONAL SENSE CODE.
    pub asc: u8,
    /// ADDITIONAL SENSE CODE QUALIFIER.
    pub ascq: u8,
}

macro_rules! additional_sense {
    ($($asc:literal, $ascq:literal, $name:ident, $text:literal;)*) => {
        impl AdditionalSense {
            $(
                #[doc = concat!($text, ".")]
                pub const $name: Self = Self { asc: $asc, ascq: $ascq };
            )*

            /// The standard's words for the code.
            pub const fn text(self) -> &'static str {
                match (self.asc, self.ascq) {
                    $(($asc, $ascq) => $text,)*
                    _ => "(no name)",
                }
            }
        }
    };
}

additional_sense! {
    0x00, 0x00, NO_ADDITIONAL_SENSE_INFORMATION, "NO ADDITIONAL SENSE INFORMATION";
    0x04, 0x00, NOT_READY_CAUSE_NOT_REPORTABLE, "LOGICAL UNIT NOT READY, CAUSE NOT REPORTABLE";
    0x04, 0x03, MANUAL_INTERVENTION_REQUIRED, "LOGICAL UNIT NOT READY, MANUAL INTERVENTION REQUIRED";
    0x04, 0x04, FORMAT_IN_PROGRESS, "LOGICAL UNIT NOT READY, FORMAT IN PROGRESS";
    0x04, 0x1b, SANITIZE_IN_PROGRESS, "LOGICAL UNIT NOT READY, SANITIZE IN PROGRESS";
    0x08, 0x00, LOGICAL_UNIT_COMMUNICATION_FAILURE, "LOGICAL UNIT COMMUNICATION FAILURE";
    0x08, 0x01, LOGICAL_UNIT_COMMUNICATION_TIMEOUT, "LOGICAL UNIT COMMUNICATION TIME-OUT";
    0x08, 0x04, UNREACHABLE_COPY_TARGET, "UNREACHABLE COPY TARGET";
    0x0c, 0x00, WRITE_ERROR, "WRITE ERROR";
    0x0d, 0x01, THIRD_PARTY_DEVICE_FAILURE, "THIRD PARTY DEVICE FAILURE";
    0x0d, 0x02, COPY_TARGET_DEVICE_NOT_REACHABLE, "COPY TARGET DEVICE NOT REACHABLE";
    0x0d, 0x03, INCORRECT_COPY_TARGET_DEVICE_TYPE, "INCORRECT COPY TARGET DEVICE TYPE";
    0x0e, 0x03, INVALID_FIELD_IN_COMMAND_INFORMATION_UNIT, "INVALID FIELD IN COMMAND INFORMATION UNIT";
    0x11, 0x00, UNRECOVERED_READ_ERROR, "UNRECOVERED READ ERROR";
    0x1a, 0x00, PARAMETER_LIST_LENGTH_ERROR, "PARAMETER LIST LENGTH ERROR";
    0x1d, 0x00, MISCOMPARE_DURING_VERIFY_OPERATION, "MISCOMPARE DURING VERIFY OPERATION";
    0x20, 0x00, INVALID_COMMAND_OPERATION_CODE, "INVALID COMMAND OPERATION CODE";
    0x21, 0x00, LOGICAL_BLOCK_ADDRESS_OUT_OF_RANGE, "LOGICAL BLOCK ADDRESS OUT OF RANGE";
    0x24, 0x00, INVALID_FIELD_IN_CDB, "INVALID FIELD IN CDB";
    0x26, 0x00, INVALID_FIELD_IN_PARAMETER_LIST, "INVALID FIELD IN PARAMETER LIST";
    0x26, 0x06, TOO_MANY_TARGET_DESCRIPTORS, "TOO MANY TARGET DESCRIPTORS";
    0x26, 0x07, UNSUPPORTED_TARGET_DESCRIPTOR_TYPE_CODE, "UNSUPPORTED TARGET DESCRIPTOR TYPE CODE";
    0x26, 0x08, TOO_MANY_SEGMENT_DESCRIPTORS, "TOO MANY SEGMENT DESCRIPTORS";
    0x26, 0x09, UNSUPPORTED_SEGMENT_DESCRIPTOR_TYPE_CODE, "UNSUPPORTED SEGMENT DESCRIPTOR TYPE CODE";
    0x26, 0x0a, UNEXPECTED_INEXACT_SEGMENT, "UNEXPECTED INEXACT SEGMENT";
    0x26, 0x0b, INLINE_DATA_LENGTH_EXCEEDED, "INLINE DATA LENGTH EXCEEDED";
    0x26, 0x0d, COPY_SEGMENT_GRANULARITY_VIOLATION, "COPY SEGMENT GRANULARITY VIOLATION";
    0x27, 0x00, WRITE_PROTECTED, "WRITE PROTECTED";
    0x27, 0x01, HARDWARE_WRITE_PROTECTED, "HARDWARE WRITE PROTECTED";
    0x27, 0x02, LOGICAL_UNIT_SOFTWARE_WRITE_PROTECTED, "LOGICAL UNIT SOFTWARE WRITE PROTECTED";
    0x27, 0x07, SPACE_ALLOCATION_FAILED_WRITE_PROTECT, "SPACE ALLOCATION FAILED WRITE PROTECT";
    0x28, 0x00, NOT_READY_TO_READY_CHANGE, "NOT READY TO READY CHANGE, MEDIUM MAY HAVE CHANGED";
    0x29, 0x00, POWER_ON_RESET_OR_BUS_DEVICE_RESET_OCCURRED, "POWER ON, RESET, OR BUS DEVICE RESET OCCURRED";
    0x2a, 0x01, MODE_PARAMETERS_CHANGED, "MODE PARAMETERS CHANGED";
    0x2a, 0x09, CAPACITY_DATA_HAS_CHANGED, "CAPACITY DATA HAS CHANGED";
    0x31, 0x00, MEDIUM_FORMAT_CORRUPTED, "MEDIUM FORMAT CORRUPTED";
    0x31, 0x01, FORMAT_COMMAND_FAILED, "FORMAT COMMAND FAILED";
    0x31, 0x03, SANITIZE_COMMAND_FAILED, "SANITIZE COMMAND FAILED";
    0x38, 0x07, THIN_PROVISIONING_SOFT_THRESHOLD_REACHED, "THIN PROVISIONING SOFT THRESHOLD REACHED";
    0x39, 0x00, SAVING_PARAMETERS_NOT_SUPPORTED, "SAVING PARAMETERS NOT SUPPORTED";
    0x3e, 0x03, LOGICAL_UNIT_FAILED_SELF_TEST, "LOGICAL UNIT FAILED SELF-TEST";
    0x3f, 0x03, INQUIRY_DATA_HAS_CHANGED, "INQUIRY DATA HAS CHANGED";
    0x44, 0x00, INTERNAL_TARGET_FAILURE, "INTERNAL TARGET FAILURE";
    0x55, 0x03, INSUFFICIENT_RESOURCES, "INSUFFICIENT RESOURCES";
    0x67, 0x0a, SET_TARGET_PORT_GROUPS_COMMAND_FAILED, "SET TARGET PORT GROUPS COMMAND FAILED";
}

/// Where in the CDB or the parameter list the first wrong field is (SPC-4, 4.5.2.4.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FieldPointer {
    /// In the CDB; otherwise in the parameter list.
    pub in_cdb: bool,
    /// The field's first byte.
    pub byte: u16,
    /// The most significant bit of the field in that byte, if it does not begin with the byte.
    pub bit: Option<u8>,
}

impl FieldPointer {
    /// Byte 15 of the sense-key specific bytes, and the two that follow it.
    fn bytes(self) -> [u8; 3] {
        const SKSV: u8 = 0x80;
        const COMMAND_DATA: u8 = 0x40;
        const BIT_POINTER_VALID: u8 = 0x08;
        let mut first = SKSV;
        if self.in_cdb {
            first |= COMMAND_DATA;
        }
        if let Some(bit) = self.bit {
            first |= BIT_POINTER_VALID | (bit & 0x07);
        }
        let [high, low] = self.byte.to_be_bytes();
        [first, high, low]
    }
}

/// What sense data say, independent of their format.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Sense {
    /// What kind of condition it is.
    pub key: SenseKey,
    /// What it is exactly.
    pub code: AdditionalSense,
    /// INFORMATION: a logical block address or an offset, as the command defines it.
    pub information: Option<u64>,
    /// The field that is wrong, for [`SenseKey::IllegalRequest`].
    pub field: Option<FieldPointer>,
    /// PROGRESS INDICATION in 65536ths, for [`SenseKey::NotReady`] and [`SenseKey::NoSense`].
    pub progress: Option<u16>,
}

impl Sense {
    /// Sense data with nothing but key and code.
    pub const fn new(key: SenseKey, code: AdditionalSense) -> Self {
        Self {
            key,
            code,
            information: None,
            field: None,
            progress: None,
        }
    }

    /// ILLEGAL REQUEST with `code`.
    pub const fn illegal_request(code: AdditionalSense) -> Self {
        Self::new(SenseKey::IllegalRequest, code)
    }

    /// INVALID FIELD IN CDB that points at a field.
    pub const fn invalid_cdb_field(byte: u16, bit: Option<u8>) -> Self {
        let mut sense = Self::illegal_request(AdditionalSense::INVALID_FIELD_IN_CDB);
        sense.field = Some(FieldPointer {
            in_cdb: true,
            byte,
            bit,
        });
        sense
    }

    /// INVALID FIELD IN PARAMETER LIST that points at a field.
    pub const fn invalid_parameter_field(byte: u16, bit: Option<u8>) -> Self {
        let mut sense = Self::illegal_request(AdditionalSense::INVALID_FIELD_IN_PARAMETER_LIST);
        sense.field = Some(FieldPointer {
            in_cdb: false,
            byte,
            bit,
        });
        sense
    }

    /// The same with INFORMATION.
    #[must_use]
    pub const fn with_information(mut self, information: u64) -> Self {
        self.information = Some(information);
        self
    }

    /// The same with PROGRESS INDICATION: how much of a long operation is done, in 65536ths.
    #[must_use]
    pub const fn with_progress(mut self, progress: u16) -> Self {
        self.progress = Some(progress);
        self
    }

    /// SENSE KEY SPECIFIC (SPC-4, 4.5.2.4), if there is something to say.
    fn key_specific(&self) -> Option<[u8; 3]> {
        const SKSV: u8 = 0x80;
        if let Some(field) = self.field {
            return Some(field.bytes());
        }
        let [high, low] = self.progress?.to_be_bytes();
        Some([SKSV, high, low])
    }

    /// Writes current sense data in the descriptor format (`descriptor`, D_SENSE = 1) or the fixed
    /// format, fills the rest of the buffer with zeroes, and returns the length.
    pub fn write_to(&self, buffer: &mut [u8; SENSE_BUFFER_LEN], descriptor: bool) -> usize {
        buffer.fill(0);
        if descriptor {
            self.write_descriptors(buffer)
        } else {
            self.write_fixed(buffer)
        }
    }

    /// SPC-4, 4.5.3.
    fn write_fixed(&self, buffer: &mut [u8; SENSE_BUFFER_LEN]) -> usize {
        const CURRENT_FIXED: u8 = 0x70;
        const VALID: u8 = 0x80;
        buffer[0] = CURRENT_FIXED;
        buffer[2] = self.key as u8;
        // The field has four bytes: what does not fit is left out, as VALID = 0 says.
        if let Some(information) = self.information.and_then(|value| u32::try_from(value).ok()) {
            buffer[0] |= VALID;
            buffer[3..7].copy_from_slice(&information.to_be_bytes());
        }
        buffer[7] = FIXED_SENSE_LEN as u8 - 8;
        buffer[12] = self.code.asc;
        buffer[13] = self.code.ascq;
        if let Some(bytes) = self.key_specific() {
            buffer[15..18].copy_from_slice(&bytes);
        }
        FIXED_SENSE_LEN
    }

    /// SPC-4, 4.5.2.
    fn write_descriptors(&self, buffer: &mut [u8; SENSE_BUFFER_LEN]) -> usize {
        const CURRENT_DESCRIPTOR: u8 = 0x72;
        const HEADER_LEN: usize = 8;
        buffer[0] = CURRENT_DESCRIPTOR;
        buffer[1] = self.key as u8;
        buffer[2] = self.code.asc;
        buffer[3] = self.code.ascq;
        let mut end = HEADER_LEN;
        if let Some(information) = self.information {
            let descriptor = &mut buffer[end..end + 12];
            descriptor[..3].copy_from_slice(&[0x00, 0x0a, 0x80]);
            descriptor[4..].copy_from_slice(&information.to_be_bytes());
            end += descriptor.len();
        }
        if let Some(bytes) = self.key_specific() {
            let descriptor = &mut buffer[end..end + 8];
            descriptor[..2].copy_from_slice(&[0x02, 0x06]);
            descriptor[4..7].copy_from_slice(&bytes);
            end += descriptor.len();
        }
        buffer[7] = (end - HEADER_LEN) as u8;
        end
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(sense: Sense, descriptor: bool) -> Vec<u8> {
        let mut buffer = [0xff; SENSE_BUFFER_LEN];
        let len = sense.write_to(&mut buffer, descriptor);
        assert!(buffer[len..].iter().all(|&byte| byte == 0));
        buffer[..len].to_vec()
    }

    #[test]
    fn fixed_format() {
        let sense = Sense::invalid_cdb_field(0x0102, Some(5)).with_information(0x0a0b_0c0d);
        assert_eq!(
            bytes(sense, false),
            [
                0xf0, 0, 5, 0x0a, 0x0b, 0x0c, 0x0d, 10, 0, 0, 0, 0, 0x24, 0, 0, 0xcd, 1, 2
            ]
        );
    }

    #[test]
    fn fixed_format_leaves_out_information_that_does_not_fit() {
        let sense = Sense::new(
            SenseKey::MediumError,
            AdditionalSense::UNRECOVERED_READ_ERROR,
        )
        .with_information(1 << 32);
        assert_eq!(
            bytes(sense, false),
            [0x70, 0, 3, 0, 0, 0, 0, 10, 0, 0, 0, 0, 0x11, 0, 0, 0, 0, 0]
        );
    }

    #[test]
    fn descriptor_format() {
        let plain = Sense::new(
            SenseKey::UnitAttention,
            AdditionalSense::CAPACITY_DATA_HAS_CHANGED,
        );
        assert_eq!(bytes(plain, true), [0x72, 6, 0x2a, 9, 0, 0, 0, 0]);
        let full = Sense::invalid_parameter_field(9, None).with_information(1 << 32);
        assert_eq!(
            bytes(full, true),
            [
                0x72, 5, 0x26, 0, 0, 0, 0, 20, 0, 10, 0x80, 0, 0, 0, 0, 1, 0, 0, 0, 0, 2, 6, 0, 0,
                0x80, 0, 9, 0
            ]
        );
    }

    #[test]
    fn progress_is_sense_key_specific() {
        let sense = Sense::new(SenseKey::NotReady, AdditionalSense::FORMAT_IN_PROGRESS)
            .with_progress(0x1234);
        assert_eq!(
            bytes(sense, false),
            [
                0x70, 0, 2, 0, 0, 0, 0, 10, 0, 0, 0, 0, 4, 4, 0, 0x80, 0x12, 0x34
            ]
        );
        assert_eq!(
            bytes(sense, true),
            [0x72, 2, 4, 4, 0, 0, 0, 8, 2, 6, 0, 0, 0x80, 0x12, 0x34, 0]
        );
    }

    #[test]
    fn codes_have_their_names() {
        assert_eq!(AdditionalSense::WRITE_PROTECTED.text(), "WRITE PROTECTED");
        let unknown = AdditionalSense { asc: 0x7f, ascq: 1 };
        assert_eq!(unknown.text(), "(no name)");
    }
}
