//! PRE-FETCH (10) and (16): SBC-3, 5.9 and 5.10.

use tcmu_handler::{Backstore, Extent, Io};

use super::LogicalUnit;
use super::block_io::BlockCommand;
use super::reply::{Answer, Response};

/// How much is passed on to the backstore, in bytes: not all of a disk.
const MAX_PREFETCH_BYTES: u64 = 16 << 20;

impl<B: Backstore> LogicalUnit<B> {
    /// Ends with GOOD, with and without IMMED: CONDITION MET would promise that all the blocks are in
    /// a cache, and the backstore's caches, which others use as well, promise nothing.
    pub(super) async fn prefetch(&self, io: &Io, cdb: &[u8]) -> Answer {
        let command = BlockCommand::new(cdb)?;
        let Extent { offset, len } = self.unit.extent(command.lba, command.blocks)?;
        let len = match command.blocks {
            // Up to the end, which is not before the range.
            0 => self.unit.blocks() * u64::from(self.unit.block_size()) - offset,
            _ => len,
        };
        let len = len.min(MAX_PREFETCH_BYTES);
        if len != 0 {
            self.backstore
                .prefetch(io, Extent { offset, len })
                .await
                .map_err(|error| self.failed("reading ahead", &error))?;
        }
        Ok(Response::GOOD)
    }
}
