//! The Third-party Copy VPD page: SPC-4, 7.8.17.

use tcmu::scsi::copy::{
    COPY_MANAGERS_OWN_UNIT, GeneralCopyOperations, ParameterData, ThirdPartyDescriptor, third_party,
};
use tcmu::scsi::opcode::{
    THIRD_PARTY_COPY_IN, THIRD_PARTY_COPY_OUT, third_party_copy_in, third_party_copy_out,
};
use zerocopy::IntoBytes;

use super::copy_list::{DESCRIPTOR_TYPES, MAX_CSCDS, MAX_DESCRIPTORS_LEN, MAX_SEGMENTS};
use super::extended_copy::{MAX_CONCURRENT_COPIES, MAX_SEGMENT_LEN};
use super::unit::Unit;

impl Unit {
    /// The page without its header.
    pub(super) fn third_party_copy(&self) -> Vec<u8> {
        let parameters = ParameterData::new(
            MAX_CSCDS as u16,
            MAX_SEGMENTS as u16,
            MAX_DESCRIPTORS_LEN as u32,
        );
        let operations = GeneralCopyOperations::new(
            MAX_CONCURRENT_COPIES.into(),
            MAX_SEGMENT_LEN,
            self.block_size().trailing_zeros() as u8,
        );
        let mut descriptor_types = vec![DESCRIPTOR_TYPES.len() as u8];
        descriptor_types.extend(DESCRIPTOR_TYPES);
        let mut ids = 2u16.to_be_bytes().to_vec();
        ids.extend(COPY_MANAGERS_OWN_UNIT.to_be_bytes());
        let descriptors = [
            (third_party::SUPPORTED_COMMANDS, commands()),
            (third_party::PARAMETER_DATA, parameters.as_bytes().to_vec()),
            (third_party::SUPPORTED_DESCRIPTORS, descriptor_types),
            (third_party::SUPPORTED_CSCD_IDS, ids),
            (
                third_party::GENERAL_COPY_OPERATIONS,
                operations.as_bytes().to_vec(),
            ),
        ];
        let mut page = Vec::new();
        for (descriptor_type, mut body) in descriptors {
            body.resize(body.len().next_multiple_of(4), 0);
            let header = ThirdPartyDescriptor {
                descriptor_type: descriptor_type.into(),
                // All are shorter than 64 KiB.
                length: (body.len() as u16).into(),
            };
            page.extend_from_slice(header.as_bytes());
            page.extend(body);
        }
        page
    }
}

/// The list of commands: each its opcode, and its service actions in ascending order.
fn commands() -> Vec<u8> {
    let list: [(u8, &[u16]); 2] = [
        (
            THIRD_PARTY_COPY_OUT,
            &[third_party_copy_out::EXTENDED_COPY_LID1],
        ),
        (
            THIRD_PARTY_COPY_IN,
            &[
                third_party_copy_in::RECEIVE_COPY_STATUS_LID1,
                third_party_copy_in::RECEIVE_COPY_OPERATING_PARAMETERS,
                third_party_copy_in::RECEIVE_COPY_FAILURE_DETAILS_LID1,
            ],
        ),
    ];
    let mut bytes = Vec::new();
    for (opcode, actions) in list {
        bytes.extend([opcode, actions.len() as u8]);
        bytes.extend(actions.iter().map(|&action| action as u8));
    }
    bytes.insert(0, bytes.len() as u8);
    bytes
}
