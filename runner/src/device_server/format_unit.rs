//! FORMAT UNIT: SBC-3, 5.3.
//!
//! Every block is set to zeroes or to the initialization pattern. There are no defects: defect lists
//! that are not empty are refused, and options on how to find defects change nothing. Neither is
//! there protection information. The block length changes by MODE SELECT alone, which refuses that.

use tcmu::scsi::format::{
    CMPLST, DCRT, DEFAULT_PATTERN, DPRY, FMTDATA, FOV, FormatUnit, IMMED, IP,
    InitializationPattern, LONGLIST, LongHeader, REPEATED_PATTERN, SI, STPF, ShortHeader,
};
use tcmu::scsi::{AdditionalSense, Sense};
use tcmu_handler::{Backstore, Buffer};
use zerocopy::FromBytes;

use super::LogicalUnit;
use super::logical_unit::parse;
use super::operation::{Method, Operation};
use super::reply::Answer;

/// DEFECT LIST FORMAT.
const DEFECT_LIST_FORMAT: u8 = 0x07;

impl<B: Backstore> LogicalUnit<B> {
    pub(super) async fn format_unit(&self, cdb: &[u8], data: Buffer<'_>) -> Answer {
        let command = parse::<FormatUnit>(cdb)?;
        let (pattern, immediate) = if command.flags & FMTDATA != 0 {
            let longest = size_of::<LongHeader>()
                + size_of::<InitializationPattern>()
                + self.unit.block_size() as usize;
            let mut list = vec![0; data.len().min(longest)];
            data.copy_to(0, &mut list);
            let long = command.flags & LONGLIST != 0;
            parameters(&list, long, self.unit.block_size() as usize)?
        } else if let wrong @ 1.. = command.flags & (LONGLIST | CMPLST | DEFECT_LIST_FORMAT) {
            // They describe a list that is not there.
            let bit = 7 - wrong.leading_zeros() as u8;
            return Err(Sense::invalid_cdb_field(1, Some(bit)).into());
        } else {
            (None, false)
        };
        let operation = Operation {
            method: Method::Format,
            pattern,
            passes: 1,
            invert: false,
            may_exit_failure: false,
            failed: false,
        };
        self.start_operation(operation, immediate).await
    }
}

/// The pattern that a parameter list asks for, if it is not zeroes by any means, and IMMED.
fn parameters(
    list: &[u8],
    long: bool,
    block_size: usize,
) -> Result<(Option<Vec<u8>>, bool), Sense> {
    let too_short = Sense::illegal_request(AdditionalSense::PARAMETER_LIST_LENGTH_ERROR);
    let (protection, options, interval, defects, header_len) = if long {
        let (header, _) = LongHeader::ref_from_prefix(list).map_err(|_| too_short)?;
        let defects = header.defect_list_length.get();
        let len = size_of::<LongHeader>();
        (
            header.protection,
            header.options,
            header.interval,
            defects,
            len,
        )
    } else {
        let (header, _) = ShortHeader::ref_from_prefix(list).map_err(|_| too_short)?;
        let defects = header.defect_list_length.get().into();
        let len = size_of::<ShortHeader>();
        (header.protection, header.options, 0, defects, len)
    };
    if protection != 0 {
        return Err(Sense::invalid_parameter_field(0, None));
    }
    let known = FOV | DPRY | DCRT | STPF | IP | IMMED;
    let needs_fov = DPRY | DCRT | STPF | IP;
    let wrong = if options & FOV == 0 {
        options & (!known | needs_fov)
    } else {
        options & !known
    };
    if wrong != 0 {
        let bit = 7 - wrong.leading_zeros() as u8;
        return Err(Sense::invalid_parameter_field(1, Some(bit)));
    }
    if interval != 0 {
        return Err(Sense::invalid_parameter_field(3, None));
    }
    if defects != 0 {
        let field = if long { 4 } else { 2 };
        return Err(Sense::invalid_parameter_field(field, None));
    }
    let pattern = if options & IP == 0 {
        None
    } else {
        initialization_pattern(&list[header_len..], header_len as u16, block_size)?
    };
    Ok((pattern, options & IMMED != 0))
}

/// The pattern of an initialization pattern descriptor that begins at byte `at` of its list.
fn initialization_pattern(
    descriptor: &[u8],
    at: u16,
    block_size: usize,
) -> Result<Option<Vec<u8>>, Sense> {
    let too_short = Sense::illegal_request(AdditionalSense::PARAMETER_LIST_LENGTH_ERROR);
    let (descriptor, rest) =
        InitializationPattern::ref_from_prefix(descriptor).map_err(|_| too_short)?;
    if descriptor.flags & !SI != 0 {
        return Err(Sense::invalid_parameter_field(at, None));
    }
    let len = usize::from(descriptor.length.get());
    match descriptor.pattern_type {
        DEFAULT_PATTERN if len == 0 => {
            let every_block_is_written = descriptor.flags & SI != 0;
            Ok(every_block_is_written.then(|| vec![0]))
        }
        REPEATED_PATTERN if len != 0 && len <= block_size => {
            Ok(Some(rest.get(..len).ok_or(too_short)?.to_vec()))
        }
        DEFAULT_PATTERN | REPEATED_PATTERN => Err(Sense::invalid_parameter_field(at + 2, None)),
        _ => Err(Sense::invalid_parameter_field(at + 1, None)),
    }
}
