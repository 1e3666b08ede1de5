//! The parameter list of EXTENDED COPY (LID1): SPC-4, 6.4 and 6.6.
//!
//! CSCD stands for copy source or copy destination.

use tcmu::scsi::copy::{
    BLOCK_TO_BLOCK, BlockToBlock, COPY_MANAGERS_OWN_UNIT, DC, IDENTIFICATION_CSCD,
    IdentificationCscd, LIST_ID_RESERVED, LIST_ID_USAGE, ListHeader, NO_LIST_ID,
};
use tcmu::scsi::vpd::{CODE_SET_BINARY, DESIGNATOR_NAA};
use tcmu::scsi::{AdditionalSense, Sense};
use zerocopy::FromBytes;

/// MAXIMUM CSCD DESCRIPTOR COUNT.
pub(super) const MAX_CSCDS: usize = 16;
/// MAXIMUM SEGMENT DESCRIPTOR COUNT.
pub(super) const MAX_SEGMENTS: usize = 64;
/// MAXIMUM DESCRIPTOR LIST LENGTH in bytes.
pub(super) const MAX_DESCRIPTORS_LEN: usize = MAX_CSCDS * CSCD_LEN + MAX_SEGMENTS * SEGMENT_LEN;
/// The longest parameter list in bytes.
pub(super) const MAX_LIST_LEN: usize = HEADER_LEN + MAX_DESCRIPTORS_LEN;

/// The descriptor types that are understood, in ascending order.
pub(super) const DESCRIPTOR_TYPES: [u8; 2] = [BLOCK_TO_BLOCK, IDENTIFICATION_CSCD];

const HEADER_LEN: usize = size_of::<ListHeader>();
const CSCD_LEN: usize = size_of::<IdentificationCscd>();
const SEGMENT_LEN: usize = size_of::<BlockToBlock>();
const SEGMENT_HEADER_LEN: usize = 4;

/// A list whose form is right.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct CopyList {
    /// LIST IDENTIFIER, if there is one.
    pub(super) list_identifier: Option<u8>,
    pub(super) cscds: Vec<Cscd>,
    pub(super) segments: Vec<Segment>,
}

/// A copy source or copy destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Cscd {
    /// PERIPHERAL DEVICE TYPE.
    pub(super) device_type: u8,
    /// An NAA designator of a logical unit; other designators lead nowhere.
    pub(super) designator: Option<[u8; 16]>,
    /// DISK BLOCK LENGTH in bytes.
    pub(super) block_length: u32,
}

/// Names a [`Cscd`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum CscdId {
    /// By its place in the list.
    Listed(u16),
    /// The unit that the command was sent to.
    Own,
}

/// A range of blocks to be copied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Segment {
    pub(super) source: CscdId,
    pub(super) destination: CscdId,
    /// How many blocks: the source's, or with `counts_destination` the destination's.
    pub(super) blocks: u16,
    pub(super) counts_destination: bool,
    pub(super) source_lba: u64,
    pub(super) destination_lba: u64,
}

impl CopyList {
    /// Reads a list of more than 0 bytes.
    pub(super) fn parse(list: &[u8]) -> Result<Self, Sense> {
        let length_error = Sense::illegal_request(AdditionalSense::PARAMETER_LIST_LENGTH_ERROR);
        let (header, rest) = ListHeader::ref_from_prefix(list).map_err(|_| length_error)?;
        let list_identifier = match header.flags & LIST_ID_USAGE {
            LIST_ID_RESERVED => return Err(Sense::invalid_parameter_field(1, Some(4))),
            NO_LIST_ID if header.list_identifier != 0 => {
                return Err(Sense::invalid_parameter_field(0, None));
            }
            NO_LIST_ID => None,
            _ => Some(header.list_identifier),
        };
        let cscds_len = usize::from(header.cscd_list_length.get());
        let segments_len = header.segment_list_length.get() as usize;
        if cscds_len.saturating_add(segments_len) > MAX_DESCRIPTORS_LEN {
            return Err(length_error);
        }
        if header.inline_data_length.get() != 0 {
            return Err(Sense::illegal_request(
                AdditionalSense::INLINE_DATA_LENGTH_EXCEEDED,
            ));
        }
        let cscds = rest.get(..cscds_len).ok_or(length_error)?;
        let segments = rest.get(cscds_len..cscds_len + segments_len);
        Ok(Self {
            list_identifier,
            cscds: parse_cscds(cscds)?,
            segments: parse_segments(segments.ok_or(length_error)?, HEADER_LEN + cscds_len)?,
        })
    }
}

fn parse_cscds(list: &[u8]) -> Result<Vec<Cscd>, Sense> {
    let chunks = list.chunks_exact(CSCD_LEN);
    if !chunks.remainder().is_empty() {
        return Err(Sense::invalid_parameter_field(2, None));
    }
    if chunks.len() > MAX_CSCDS {
        return Err(Sense::illegal_request(
            AdditionalSense::TOO_MANY_TARGET_DESCRIPTORS,
        ));
    }
    chunks
        .map(|bytes| {
            let unsupported =
                Sense::illegal_request(AdditionalSense::UNSUPPORTED_TARGET_DESCRIPTOR_TYPE_CODE);
            let cscd = IdentificationCscd::ref_from_bytes(bytes).map_err(|_| unsupported)?;
            if cscd.descriptor_type != IDENTIFICATION_CSCD {
                return Err(unsupported);
            }
            Ok(Cscd {
                device_type: cscd.device_type & 0x1f,
                designator: naa(cscd),
                block_length: cscd.block_length(),
            })
        })
        .collect()
}

/// The NAA designator of 16 bytes that the descriptor holds, if it does.
fn naa(cscd: &IdentificationCscd) -> Option<[u8; 16]> {
    // ASSOCIATION has to be 0, the logical unit.
    let is_naa = cscd.code_set & 0x0f == CODE_SET_BINARY
        && cscd.designator_type & 0x3f == DESIGNATOR_NAA
        && cscd.designator_length == 16;
    if !is_naa {
        return None;
    }
    cscd.designator.first_chunk().copied()
}

/// `at` is where the list begins in the parameter list.
fn parse_segments(mut list: &[u8], mut at: usize) -> Result<Vec<Segment>, Sense> {
    let mut segments = Vec::new();
    while let Some(&descriptor_type) = list.first() {
        if segments.len() == MAX_SEGMENTS {
            return Err(Sense::illegal_request(
                AdditionalSense::TOO_MANY_SEGMENT_DESCRIPTORS,
            ));
        }
        if descriptor_type != BLOCK_TO_BLOCK {
            return Err(Sense::illegal_request(
                AdditionalSense::UNSUPPORTED_SEGMENT_DESCRIPTOR_TYPE_CODE,
            ));
        }
        let length_error = Sense::illegal_request(AdditionalSense::PARAMETER_LIST_LENGTH_ERROR);
        let (descriptor, rest) = BlockToBlock::ref_from_prefix(list).map_err(|_| length_error)?;
        let length = usize::from(descriptor.header.descriptor_length.get());
        if length != SEGMENT_LEN - SEGMENT_HEADER_LEN {
            // All lists are shorter than 64 KiB.
            return Err(Sense::invalid_parameter_field(at as u16 + 2, None));
        }
        segments.push(Segment {
            source: cscd_id(descriptor.source.get()),
            destination: cscd_id(descriptor.destination.get()),
            blocks: descriptor.blocks.get(),
            counts_destination: descriptor.header.flags & DC != 0,
            source_lba: descriptor.source_lba.get(),
            destination_lba: descriptor.destination_lba.get(),
        });
        list = rest;
        at += SEGMENT_LEN;
    }
    Ok(segments)
}

fn cscd_id(id: u16) -> CscdId {
    match id {
        COPY_MANAGERS_OWN_UNIT => CscdId::Own,
        place => CscdId::Listed(place),
    }
}
