//! WRITE ATOMIC (16): SBC-4, 5.50.

use tcmu::scsi::Sense;
use tcmu_handler::{AtomicWrites, Backstore, Buffer, Io};

use super::LogicalUnit;
use super::block_io::{BlockCommand, length_mismatch};
use super::reply::{Answer, Response};
use super::unit::Unit;

const LBA_FIELD: u16 = 2;
const LENGTH_FIELD: u16 = 12;

/// Which writes are atomic, in blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct AtomicLimits {
    pub(super) max_blocks: u32,
    /// At least 1.
    pub(super) alignment: u32,
    /// At least 1.
    pub(super) granularity: u32,
}

impl Unit {
    /// What WRITE ATOMIC takes, where a block of the unit can be written as a whole.
    pub(super) fn atomic_limits(&self) -> Option<AtomicLimits> {
        let AtomicWrites {
            max_len,
            alignment,
            granularity,
        } = self.capabilities().atomic_writes?;
        let block_size = self.block_size();
        let granularity = (granularity / block_size).max(1);
        let mut max_blocks = max_len / block_size;
        if self.max_transfer_blocks() != 0 {
            max_blocks = max_blocks.min(self.max_transfer_blocks());
        }
        max_blocks -= max_blocks % granularity;
        (max_blocks != 0).then_some(AtomicLimits {
            max_blocks,
            alignment: (alignment / block_size).max(1),
            granularity,
        })
    }
}

impl<B: Backstore> LogicalUnit<B> {
    pub(super) async fn write_atomic(&self, io: &Io, cdb: &[u8], data: Buffer<'_>) -> Answer {
        let command = BlockCommand::new(cdb)?;
        let extent = self.unit.extent(command.lba, command.blocks)?;
        let wrong = |field| Sense::invalid_cdb_field(field, None);
        let limits = self.unit.atomic_limits().ok_or(wrong(0))?;
        if command.lba % u64::from(limits.alignment) != 0 {
            return Err(wrong(LBA_FIELD).into());
        }
        if command.blocks > limits.max_blocks || command.blocks % limits.granularity != 0 {
            return Err(wrong(LENGTH_FIELD).into());
        }
        if data.len() as u64 != extent.len {
            return Err(length_mismatch().into());
        }
        if extent.len == 0 {
            return Ok(Response::GOOD);
        }
        // Reads of this unit see all of it or nothing.
        let _range = self.unit.ranges.exclusive(extent).await;
        self.store(io, data, extent.offset, command.fua()).await?;
        Ok(Response::GOOD)
    }
}
