//! ORWRITE (16): SBC-3, 5.8.

use tcmu_handler::{Backstore, Buffer, Io, WriteFlags, yield_now};

use super::LogicalUnit;
use super::block_io::{BlockCommand, length_mismatch};
use super::reply::{Answer, Response};
use super::scratch::pieces;

/// How many bytes are combined at a time: they are copied to the stack for that.
const COMBINED_AT_ONCE: usize = 4096;

impl<B: Backstore> LogicalUnit<B> {
    pub(super) async fn or_write(&self, io: &Io, cdb: &[u8], data: Buffer<'_>) -> Answer {
        let command = BlockCommand::new(cdb)?;
        let extent = self.unit.data_out(&command, data)?;
        if extent.len == 0 {
            return Ok(Response::GOOD);
        }
        let _range = self.unit.ranges.exclusive(extent).await;
        self.flush_before_reading(io, command.fua()).await?;
        let scratch = self.take_scratch(io).await?;
        let mut all_durable = true;
        for piece in pieces(extent, self.unit.piece_len()) {
            // Within the buffer, whose length is the range's.
            let done = (piece.offset - extent.offset) as usize;
            if done != 0 {
                yield_now().await;
            }
            let found = scratch
                .read(io, &self.backstore, piece)
                .await
                .map_err(|error| self.failed("the read of an ORWRITE", &error))?;
            let operand = data
                .slice(done..done + piece.len as usize)
                .map_err(|_| length_mismatch())?;
            or(found, operand);
            let fua = self.native_fua(command.fua());
            all_durable &= fua;
            scratch
                .write(io, &self.backstore, piece, WriteFlags { fua })
                .await
                .map_err(|error| self.failed("the write of an ORWRITE", &error))?;
        }
        self.settle(io, command.fua(), all_durable).await?;
        Ok(Response::GOOD)
    }
}

/// Sets those bits of `target` that are set in `operand`, which is as long.
fn or(target: Buffer<'_>, operand: Buffer<'_>) {
    let mut bytes = [0; COMBINED_AT_ONCE];
    let mut bits = [0; COMBINED_AT_ONCE];
    for at in (0..target.len()).step_by(COMBINED_AT_ONCE) {
        let len = target.copy_to(at, &mut bytes);
        operand.copy_to(at, &mut bits[..len]);
        for (byte, bits) in bytes.iter_mut().zip(&bits[..len]) {
            *byte |= bits;
        }
        target.copy_from(at, &bytes[..len]);
    }
}
