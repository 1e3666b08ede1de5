//! READ, WRITE and SYNCHRONIZE CACHE: the fast path. Nothing here allocates or copies.

use tcmu::scsi::cdb::{Block6, Block10, Block12, Block16, Block32, FUA, LONGEST_CDB};
use tcmu::scsi::{AdditionalSense, Sense};
use tcmu_handler::{Backstore, Buffer, Extent, Io, WriteFlags};

use super::LogicalUnit;
use super::logical_unit::parse;
use super::reply::{Answer, Failure, Response, supplied};
use super::unit::Unit;

/// The fields that commands on a range of blocks have in common.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct BlockCommand {
    pub(super) lba: u64,
    pub(super) blocks: u32,
    /// Byte 1, or byte 10 of variable length commands.
    pub(super) flags: u8,
    /// Where the flags are.
    pub(super) flags_field: u16,
    /// Where the number of blocks is.
    pub(super) length_field: u16,
}

impl BlockCommand {
    /// Reads the fields, which lie where the CDB's length says.
    pub(super) fn new(cdb: &[u8]) -> Result<Self, Sense> {
        let (lba, blocks, flags, length_field) = match cdb.len() {
            6 => {
                let fields = parse::<Block6>(cdb)?;
                (fields.lba(), fields.blocks(), 0, 4)
            }
            10 => {
                let fields = parse::<Block10>(cdb)?;
                let blocks = fields.length.get().into();
                (fields.lba.get().into(), blocks, fields.flags, 7)
            }
            12 => {
                let fields = parse::<Block12>(cdb)?;
                let blocks = fields.length.get();
                (fields.lba.get().into(), blocks, fields.flags, 6)
            }
            16 => {
                let fields = parse::<Block16>(cdb)?;
                (fields.lba.get(), fields.length.get(), fields.flags, 10)
            }
            _ => {
                let fields = parse::<Block32>(cdb)?;
                (fields.lba.get(), fields.length.get(), fields.flags, 28)
            }
        };
        Ok(Self {
            lba,
            blocks,
            flags,
            flags_field: if cdb.len() == LONGEST_CDB { 10 } else { 1 },
            length_field,
        })
    }

    pub(super) fn fua(&self) -> bool {
        self.flags & FUA != 0
    }
}

impl Unit {
    /// Where the blocks lie in the image. A range of no blocks may begin right behind the last.
    pub(super) fn extent(&self, lba: u64, blocks: u32) -> Result<Extent, Sense> {
        match lba.checked_add(blocks.into()) {
            Some(end) if end <= self.blocks() => {
                let block_size = u64::from(self.block_size());
                // Neither overflows: the range lies within the image, whose size is in bytes.
                Ok(Extent {
                    offset: lba * block_size,
                    len: u64::from(blocks) * block_size,
                })
            }
            _ => Err(Sense::illegal_request(
                AdditionalSense::LOGICAL_BLOCK_ADDRESS_OUT_OF_RANGE,
            )),
        }
    }
}

impl Unit {
    /// The range of a command that transfers all of it.
    pub(super) fn transfer(&self, command: &BlockCommand) -> Result<Extent, Sense> {
        let extent = self.extent(command.lba, command.blocks)?;
        self.check_transfer(command)?;
        Ok(extent)
    }

    /// The range of a command that transfers all of it out of `data`.
    pub(super) fn data_out(
        &self,
        command: &BlockCommand,
        data: Buffer<'_>,
    ) -> Result<Extent, Sense> {
        let extent = self.transfer(command)?;
        match data.len() as u64 == extent.len {
            true => Ok(extent),
            false => Err(length_mismatch()),
        }
    }

    /// MAXIMUM TRANSFER LENGTH (SBC-3, 6.6.3).
    pub(super) fn check_transfer(&self, command: &BlockCommand) -> Result<(), Sense> {
        match self.max_transfer_blocks() {
            most if most != 0 && command.blocks > most => {
                Err(Sense::invalid_cdb_field(command.length_field, None))
            }
            _ => Ok(()),
        }
    }
}

/// The CDB asks for another length than the initiator has memory for. TCMU cannot report an
/// overflow, and a write that is cut off would be silent corruption: refused, with the sense that
/// LIO's own backstores use (`target_cmd_size_check` in target_core_transport.c).
pub(super) fn length_mismatch() -> Sense {
    Sense::illegal_request(AdditionalSense::INVALID_FIELD_IN_COMMAND_INFORMATION_UNIT)
}

impl<B: Backstore> LogicalUnit<B> {
    /// READ (6), (10), (12), (16) and (32): SBC-3, 5.10 to 5.14.
    pub(super) async fn read(&self, io: &Io, cdb: &[u8], data: Buffer<'_>) -> Answer {
        let command = BlockCommand::new(cdb)?;
        let extent = self.unit.transfer(&command)?;
        // A longer buffer is no harm: the rest is reported as a residual.
        let len = usize::try_from(extent.len).map_err(|_| length_mismatch())?;
        let wanted = data.slice(0..len).map_err(|_| length_mismatch())?;
        if len != 0 {
            let _range = self.unit.ranges.shared(extent).await;
            self.flush_before_reading(io, command.fua()).await?;
            self.backstore
                .read(io, wanted, extent.offset)
                .await
                .map_err(|error| self.failed("a read", &error))?;
        }
        Ok(supplied(data, len))
    }

    /// With `fua`, what is read next is on the medium, not only in the cache.
    pub(super) async fn flush_before_reading(&self, io: &Io, fua: bool) -> Result<(), Failure> {
        if fua && self.unit.write_cache() {
            self.flush(io).await?;
        }
        Ok(())
    }

    /// WRITE (6), (10), (12), (16) and (32): SBC-3, 5.28 to 5.32.
    pub(super) async fn write(&self, io: &Io, cdb: &[u8], data: Buffer<'_>) -> Answer {
        let command = BlockCommand::new(cdb)?;
        let extent = self.unit.data_out(&command, data)?;
        if extent.len == 0 {
            return Ok(Response::GOOD);
        }
        let _range = self.unit.ranges.shared(extent).await;
        self.store(io, data, extent.offset, command.fua()).await?;
        Ok(Response::GOOD)
    }

    /// Writes, durably if `fua` or the write cache asks for it.
    pub(super) async fn store(
        &self,
        io: &Io,
        data: Buffer<'_>,
        offset: u64,
        fua: bool,
    ) -> Result<(), Failure> {
        let native = self.native_fua(fua);
        self.backstore
            .write(io, data, offset, WriteFlags { fua: native })
            .await
            .map_err(|error| self.failed("a write", &error))?;
        self.settle(io, fua, native).await
    }

    /// SYNCHRONIZE CACHE (10) and (16): SBC-3, 5.22 and 5.23. The whole cache is flushed, whatever the
    /// range, and before the command ends even with IMMED: an error that is found later would go to
    /// whoever sends the next command, as TCMU does not say which initiator that is.
    pub(super) async fn synchronize_cache(&self, io: &Io, cdb: &[u8]) -> Answer {
        let command = BlockCommand::new(cdb)?;
        self.unit.extent(command.lba, command.blocks)?;
        self.flush(io).await?;
        Ok(Response::GOOD)
    }

    /// Whether to tell the backstore that this write has to be durable.
    pub(super) fn native_fua(&self, fua: bool) -> bool {
        self.unit.has_native_fua() && self.unit.must_be_durable(fua)
    }

    /// Makes a write that is done durable, if it has to be and is not yet (`is_durable`). The write
    /// cache may have been turned off meanwhile.
    pub(super) async fn settle(&self, io: &Io, fua: bool, is_durable: bool) -> Result<(), Failure> {
        if is_durable || !self.unit.must_be_durable(fua) {
            return Ok(());
        }
        self.flush(io).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_of_every_length() {
        let check = |cdb: &[u8], lba, blocks, flags| {
            let command = BlockCommand::new(cdb).unwrap();
            assert_eq!(
                (command.lba, command.blocks, command.flags),
                (lba, blocks, flags)
            );
            if cdb.len() > 6 {
                assert_eq!(cdb[usize::from(command.flags_field)], flags);
                let last = cdb[usize::from(command.length_field)..]
                    [..if cdb.len() == 10 { 2 } else { 4 }]
                    .iter()
                    .fold(0, |value, byte| value << 8 | u32::from(*byte));
                assert_eq!(last, blocks);
            }
        };
        check(&[0x08, 0x01, 0x02, 0x03, 0, 0], 0x01_0203, 256, 0);
        check(
            &[0x28, 0x08, 1, 2, 3, 4, 0x1f, 5, 6, 0],
            0x0102_0304,
            0x0506,
            0x08,
        );
        check(
            &[0xa8, 0x10, 1, 2, 3, 4, 5, 6, 7, 8, 0x1f, 0],
            0x0102_0304,
            0x0506_0708,
            0x10,
        );
        check(
            &[0x88, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 0x1f, 0],
            0x0102_0304_0506_0708,
            0x090a_0b0c,
            0,
        );
        let mut long = [0; 32];
        long[10] = 0x18;
        long[19] = 7;
        long[28..].copy_from_slice(&[1, 2, 3, 4]);
        check(&long, 7, 0x0102_0304, 0x18);
    }
}
