//! COMPARE AND WRITE: SBC-3, 5.2.

use tcmu::scsi::Sense;
use tcmu_handler::{Backstore, Buffer, Comparison, Extent, Io, WriteFlags};

use super::LogicalUnit;
use super::block_io::{BlockCommand, length_mismatch};
use super::progress::{EQUAL, Progress, SWAPPING};
use super::reply::{Answer, Failure, Response};
use super::unit::Unit;
use super::verify::{Expected, miscompare};

/// The field that says how many blocks there are, and the most that fit into it.
const LENGTH_FIELD: u16 = 13;
const LARGEST_LENGTH: u64 = 255;

impl Unit {
    /// MAXIMUM COMPARE AND WRITE LENGTH in blocks.
    pub(super) fn max_compare_and_write_blocks(&self) -> u8 {
        let native = self.capabilities().compare_and_write;
        let blocks = match native {
            0 => LARGEST_LENGTH,
            native => self.in_blocks(native.into()).clamp(1, LARGEST_LENGTH),
        };
        blocks as u8
    }
}

impl<B: Backstore> LogicalUnit<B> {
    /// The data-out buffer has the blocks to compare with, and behind them those to write.
    ///
    /// Where another process was killed while it executed the command, the blocks may already be those
    /// to write, and must not be compared again.
    pub(super) async fn compare_and_write(
        &self,
        io: &Io,
        cdb: &[u8],
        data: Buffer<'_>,
        progress: &dyn Progress,
    ) -> Answer {
        let command = BlockCommand::new(cdb)?;
        let extent = self.unit.extent(command.lba, command.blocks)?;
        // Data for no blocks: the number of blocks does not fit into the field.
        let overflow = command.blocks == 0 && !data.is_empty();
        if overflow || command.blocks > self.unit.max_compare_and_write_blocks().into() {
            return Err(Sense::invalid_cdb_field(LENGTH_FIELD, None).into());
        }
        // Bounded by the number of blocks.
        let half = extent.len as usize;
        if data.len() != 2 * half {
            return Err(length_mismatch().into());
        }
        if half == 0 {
            return Ok(Response::GOOD);
        }
        let expected = data.slice(0..half).map_err(|_| length_mismatch())?;
        let new = data.slice(half..2 * half).map_err(|_| length_mismatch())?;
        let _range = self.unit.ranges.exclusive(extent).await;
        if progress.phase() == EQUAL {
            self.store(io, new, extent.offset, command.fua()).await?;
            return Ok(Response::GOOD);
        }
        self.flush_before_reading(io, command.fua()).await?;
        let longest = u64::from(self.unit.capabilities().compare_and_write);
        let difference = if longest < extent.len {
            let difference = self.compare(io, extent, Expected::Bytes(expected)).await?;
            if difference.is_none() {
                progress.note(EQUAL);
                self.store(io, new, extent.offset, command.fua()).await?;
            }
            difference
        } else {
            progress.note(SWAPPING);
            let difference = self.swap(io, expected, new, extent, command.fua()).await?;
            match difference {
                // Who finds its own data has written them before, as far as anybody can tell.
                Some(_) if progress.phase() == SWAPPING => {
                    let written = self.compare(io, extent, Expected::Bytes(new)).await?;
                    difference.filter(|_| written.is_some())
                }
                difference => difference,
            }
        };
        match difference {
            // INFORMATION is the offset in the data-out buffer.
            Some(at) => Err(miscompare(at).into()),
            None => Ok(Response::GOOD),
        }
    }

    /// Has the backstore write `new` if the range is as expected; otherwise says where the first
    /// difference is.
    async fn swap(
        &self,
        io: &Io,
        expected: Buffer<'_>,
        new: Buffer<'_>,
        extent: Extent,
        fua: bool,
    ) -> Result<Option<u64>, Failure> {
        let native = self.native_fua(fua);
        let flags = WriteFlags { fua: native };
        let swapped = self
            .backstore
            .compare_and_write(io, expected, new, extent.offset, flags)
            .await
            .map_err(|error| self.failed("a compare-and-write", &error))?;
        match swapped {
            Comparison::DiffersAt(at) => Ok(Some(at as u64)),
            Comparison::Equal => {
                self.settle(io, fua, native).await?;
                Ok(None)
            }
        }
    }
}
