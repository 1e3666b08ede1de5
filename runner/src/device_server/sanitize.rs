//! SANITIZE: SBC-3, 4.11 and 5.24.
//!
//! BLOCK ERASE gives the storage of all blocks back and is there only where the backstore promises
//! that they read as zeroes then. What becomes of the storage is up to what lies below, a file system
//! or a disk: where that matters, OVERWRITE is the better choice, which writes every block in every
//! pass. There is no encryption here whose key could be thrown away (CRYPTOGRAPHIC ERASE).

use tcmu::scsi::opcode::sanitize::{BLOCK_ERASE, EXIT_FAILURE_MODE};
use tcmu::scsi::sanitize::{AUSE, IMMED, INVERT, OVERWRITE_COUNT, Overwrite, Sanitize, TEST};
use tcmu::scsi::{AdditionalSense, Sense};
use tcmu_handler::{Backstore, Buffer, Io};
use zerocopy::FromBytes;

use super::LogicalUnit;
use super::logical_unit::parse;
use super::operation::{Method, Operation};
use super::reply::{Answer, Response};
use super::unmap::parameter_list;

const SERVICE_ACTION: u8 = 0x1f;
const HEADER_LEN: usize = size_of::<Overwrite>();

impl<B: Backstore> LogicalUnit<B> {
    pub(super) async fn sanitize(&self, io: &Io, cdb: &[u8], data: Buffer<'_>) -> Answer {
        let command = parse::<Sanitize>(cdb)?;
        let len = usize::from(command.parameter_list_length.get());
        let service_action = u16::from(command.flags & SERVICE_ACTION);
        if service_action == EXIT_FAILURE_MODE {
            return self.exit_failure_mode(io, len).await;
        }
        let may_exit_failure = command.flags & AUSE != 0;
        if may_exit_failure && self.has_restricted_failure() {
            return Err(Sense::invalid_cdb_field(1, Some(5)).into());
        }
        let operation = if service_action == BLOCK_ERASE {
            if len != 0 {
                return Err(Sense::invalid_cdb_field(7, None).into());
            }
            Operation {
                method: Method::BlockErase,
                pattern: None,
                passes: 1,
                invert: false,
                may_exit_failure,
                failed: false,
            }
        } else {
            let block_size = self.unit.block_size() as usize;
            if len <= HEADER_LEN || len > HEADER_LEN + block_size {
                return Err(Sense::invalid_cdb_field(7, None).into());
            }
            let (passes, invert, pattern) = overwrite(&parameter_list(data, len)?, block_size)?;
            Operation {
                method: Method::Overwrite,
                pattern: Some(pattern),
                passes,
                invert,
                may_exit_failure,
                failed: false,
            }
        };
        let immediate = command.flags & IMMED != 0;
        self.start_operation(operation, immediate).await
    }

    /// The last SANITIZE failed and was in the restricted completion mode: only another one that
    /// succeeds ends that (SBC-3, 4.11.3).
    fn has_restricted_failure(&self) -> bool {
        let failed = self.unit.operations.failed.borrow();
        failed.as_ref().is_some_and(|operation| {
            operation.method != Method::Format && !operation.may_exit_failure
        })
    }

    async fn exit_failure_mode(&self, io: &Io, len: usize) -> Answer {
        if len != 0 {
            return Err(Sense::invalid_cdb_field(7, None).into());
        }
        if self.has_restricted_failure() {
            return Err(Sense::invalid_cdb_field(1, Some(4)).into());
        }
        let sanitize_failed = self
            .unit
            .operations
            .failed
            .borrow()
            .as_ref()
            .is_some_and(|operation| operation.method != Method::Format);
        if sanitize_failed {
            self.note(io, None).await.map_err(|error| {
                tracing::error!(%error, "the journal cannot be cleared");
                Sense::new(
                    tcmu::scsi::SenseKey::HardwareError,
                    AdditionalSense::INTERNAL_TARGET_FAILURE,
                )
            })?;
            self.unit.operations.failed.replace(None);
            self.unit.not_ready.set(None);
        }
        Ok(Response::GOOD)
    }
}

/// OVERWRITE COUNT, INVERT and INITIALIZATION PATTERN of a parameter list that is longer than its
/// header.
fn overwrite(list: &[u8], block_size: usize) -> Result<(u8, bool, Vec<u8>), Sense> {
    let too_short = Sense::illegal_request(AdditionalSense::PARAMETER_LIST_LENGTH_ERROR);
    let (header, rest) = Overwrite::ref_from_prefix(list).map_err(|_| too_short)?;
    let passes = header.passes & OVERWRITE_COUNT;
    if header.passes & TEST != 0 {
        return Err(Sense::invalid_parameter_field(0, Some(6)));
    }
    if passes == 0 {
        return Err(Sense::invalid_parameter_field(0, Some(4)));
    }
    let len = usize::from(header.pattern_length.get());
    let pattern = rest
        .get(..len)
        .filter(|pattern| !pattern.is_empty() && pattern.len() <= block_size)
        .ok_or(Sense::invalid_parameter_field(2, None))?;
    Ok((passes, header.passes & INVERT != 0, pattern.to_vec()))
}
