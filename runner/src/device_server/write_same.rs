//! WRITE SAME (10), (16) and (32): SBC-3, 5.42 to 5.44.

use tcmu::scsi::Sense;
use tcmu_handler::{
    Backstore, Buffer, Error, ErrorKind, Extent, Io, WriteFlags, ZeroFlags, yield_now,
};

use super::LogicalUnit;
use super::block_io::{BlockCommand, length_mismatch};
use super::reply::{Answer, Failure, Response};
use super::unit::Unit;

/// UNMAP: the blocks may be unmapped if they then read as the pattern.
const UNMAP: u8 = 0x08;
/// NDOB, of WRITE SAME (16) and (32): no data-out buffer, the pattern is zeroes.
const NDOB: u8 = 0x01;

/// MAXIMUM WRITE SAME LENGTH in bytes: what a slow medium writes before initiators and the kernel
/// lose patience after 30 s.
const MAX_WRITE_SAME_BYTES: u64 = 256 << 20;

/// The memory in bytes in which a pattern is repeated, unless a block is larger.
const PATTERN_BYTES: u64 = 512 << 10;

impl Unit {
    /// MAXIMUM WRITE SAME LENGTH in blocks.
    pub(super) fn max_write_same_blocks(&self) -> u64 {
        self.in_blocks(MAX_WRITE_SAME_BYTES).max(1)
    }
}

impl<B: Backstore> LogicalUnit<B> {
    pub(super) async fn write_same(&self, io: &Io, cdb: &[u8], data: Buffer<'_>) -> Answer {
        let command = BlockCommand::new(cdb)?;
        // WSNZ: 0 blocks do not stand for all up to the end, an accident not to be had.
        if command.blocks == 0 || u64::from(command.blocks) > self.unit.max_write_same_blocks() {
            return Err(Sense::invalid_cdb_field(command.length_field, None).into());
        }
        let extent = self.unit.extent(command.lba, command.blocks)?;
        let may_unmap = command.flags & UNMAP != 0;
        // Some initiators unmap without a block that says what to read then.
        let no_block = command.flags & NDOB != 0 || (may_unmap && data.is_empty());
        let pattern = if no_block {
            None
        } else {
            non_zero_block(data, self.unit.block_size() as usize)?
        };
        let _range = self.unit.ranges.exclusive(extent).await;
        match pattern {
            // With UNMAP as well: unmapped blocks would not read as the pattern.
            Some(pattern) => self.write_pattern(io, &pattern, extent).await?,
            None => self.write_zeroes(io, extent, may_unmap).await?,
        }
        Ok(Response::GOOD)
    }

    /// Makes `extent` read as zeroes.
    async fn write_zeroes(&self, io: &Io, extent: Extent, may_unmap: bool) -> Result<(), Failure> {
        if self.unit.capabilities().write_zeroes {
            let fua = self.native_fua(false);
            let flags = ZeroFlags { fua, may_unmap };
            match self.backstore.write_zeroes(io, extent, flags).await {
                Ok(()) => return self.settle(io, false, fua).await,
                // Found out only now, as with a file system that cannot: write them.
                Err(error) if error.kind() == ErrorKind::Unsupported => {}
                Err(error) => return Err(self.failed("writing zeroes", &error)),
            }
        }
        let zeroes = vec![0; self.unit.block_size() as usize];
        self.write_pattern(io, &zeroes, extent).await
    }

    /// Fills `extent` with repetitions of `pattern`, which is one block.
    async fn write_pattern(&self, io: &Io, pattern: &[u8], extent: Extent) -> Result<(), Failure> {
        let block = pattern.len() as u64;
        let chunk = (PATTERN_BYTES / block).max(1) * block;
        // At most the larger of 512 KiB and a block.
        let len = chunk.min(extent.len) as usize;
        let memory = io.allocate(len).map_err(|source| {
            let error = Error::os("memory for WRITE SAME", source).with_kind(ErrorKind::Busy);
            self.failed("WRITE SAME", &error)
        })?;
        let repeated = memory.view();
        for at in (0..len).step_by(pattern.len()) {
            repeated.copy_from(at, pattern);
        }
        let mut offset = extent.offset;
        let mut all_durable = true;
        while offset < extent.end() {
            if offset != extent.offset {
                yield_now().await;
            }
            let now = (extent.end() - offset).min(len as u64);
            let part = repeated
                .slice(0..now as usize)
                .map_err(|_| length_mismatch())?;
            let fua = self.native_fua(false);
            all_durable &= fua;
            self.backstore
                .write(io, part, offset, WriteFlags { fua })
                .await
                .map_err(|error| self.failed("WRITE SAME", &error))?;
            offset += now;
        }
        self.settle(io, false, all_durable).await
    }
}

/// The one block of the data-out buffer, or `None` if it is all zeroes.
fn non_zero_block(data: Buffer<'_>, block_size: usize) -> Result<Option<Vec<u8>>, Sense> {
    if data.len() != block_size {
        return Err(length_mismatch());
    }
    let mut block = vec![0; block_size];
    data.copy_to(0, &mut block);
    Ok(block.iter().any(|&byte| byte != 0).then_some(block))
}
