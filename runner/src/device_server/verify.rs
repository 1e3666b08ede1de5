//! VERIFY and WRITE AND VERIFY: SBC-3, 5.26 to 5.29 and 5.36 to 5.39.

use tcmu::scsi::{AdditionalSense, Sense, SenseKey};
use tcmu_handler::{Backstore, Buffer, Error, ErrorKind, Extent, Io, yield_now};

use super::LogicalUnit;
use super::block_io::{BlockCommand, length_mismatch};
use super::reply::{Answer, Failure, Response};
use super::scratch::{Piece, pieces};

/// BYTCHK, in the flags of a command.
const BYTCHK: u8 = 0x06;
/// BYTCHK: the blocks are compared with those in the data-out buffer.
const EVERY_BLOCK: u8 = 0x02;
/// BYTCHK: each block is compared with the one in the data-out buffer.
const ONE_BLOCK: u8 = 0x06;

/// How much of a verification that may be as long as the disk keeps exclusive commands waiting, in
/// bytes.
const HELD_AT_ONCE: u64 = 1 << 20;

/// What blocks are compared with.
#[derive(Clone, Copy)]
pub(super) enum Expected<'a> {
    /// Nothing: they only have to be readable.
    Anything,
    /// So many bytes.
    Bytes(Buffer<'a>),
    /// The same block all over.
    Block(Buffer<'a>),
}

impl Expected<'_> {
    /// Where `found`, the bytes of the range from `at` on, first differ.
    fn difference(self, at: usize, found: Buffer<'_>) -> Option<usize> {
        match self {
            Self::Anything => None,
            Self::Bytes(bytes) => {
                let rest = bytes.slice(at.min(bytes.len())..bytes.len()).ok()?;
                found.difference_from(rest)
            }
            Self::Block(block) => (0..found.len())
                .step_by(block.len().max(1))
                .find_map(|start| {
                    let rest = found.slice(start..found.len()).ok()?;
                    rest.difference_from(block).map(|at| start + at)
                }),
        }
    }
}

impl<B: Backstore> LogicalUnit<B> {
    /// VERIFY (10), (12), (16) and (32).
    pub(super) async fn verify(&self, io: &Io, cdb: &[u8], data: Buffer<'_>) -> Answer {
        let command = BlockCommand::new(cdb)?;
        let extent = self.unit.extent(command.lba, command.blocks)?;
        let expected = match command.flags & BYTCHK {
            // A data-out buffer that is there all the same is ignored.
            0 => Expected::Anything,
            EVERY_BLOCK => {
                self.unit.check_transfer(&command)?;
                if data.len() as u64 != extent.len {
                    return Err(length_mismatch().into());
                }
                Expected::Bytes(data)
            }
            ONE_BLOCK if extent.len == 0 => Expected::Anything,
            ONE_BLOCK => {
                if data.len() as u64 != u64::from(self.unit.block_size()) {
                    return Err(length_mismatch().into());
                }
                Expected::Block(data)
            }
            _ => return Err(Sense::invalid_cdb_field(command.flags_field, Some(2)).into()),
        };
        if extent.len == 0 {
            return Ok(Response::GOOD);
        }
        // What is verified is what is on the medium, not what is only in the cache.
        self.flush_before_reading(io, true).await?;
        let at_once = match expected {
            Expected::Bytes(_) => extent.len,
            // The same for every part.
            Expected::Anything | Expected::Block(_) => HELD_AT_ONCE.max(self.unit.piece_len()),
        };
        for part in pieces(extent, at_once) {
            let _range = self.unit.ranges.shared(part).await;
            if let Some(at) = self.compare(io, part, expected).await? {
                return Err(self.unit_miscompare(part.offset + at).into());
            }
        }
        Ok(Response::GOOD)
    }

    /// WRITE AND VERIFY (10), (12), (16) and (32).
    pub(super) async fn write_and_verify(&self, io: &Io, cdb: &[u8], data: Buffer<'_>) -> Answer {
        let command = BlockCommand::new(cdb)?;
        let extent = self.unit.data_out(&command, data)?;
        if extent.len == 0 {
            return Ok(Response::GOOD);
        }
        let expected = match command.flags & BYTCHK {
            EVERY_BLOCK => Expected::Bytes(data),
            _ => Expected::Anything,
        };
        // Nobody may write in between what would then not be found.
        let _range = self.unit.ranges.exclusive(extent).await;
        self.store(io, data, extent.offset, true).await?;
        match self.compare(io, extent, expected).await? {
            Some(at) => Err(self.unit_miscompare(extent.offset + at).into()),
            None => Ok(Response::GOOD),
        }
    }

    /// Reads a range, and says how many of its bytes are as expected if not all are. The caller holds
    /// the range.
    pub(super) async fn compare(
        &self,
        io: &Io,
        extent: Extent,
        expected: Expected<'_>,
    ) -> Result<Option<u64>, Failure> {
        let scratch = self.take_scratch(io).await?;
        for piece in pieces(extent, self.unit.piece_len()) {
            let done = piece.offset - extent.offset;
            if done != 0 {
                yield_now().await;
            }
            let found = scratch
                .read(io, &self.backstore, piece)
                .await
                .map_err(|error| self.failed("a read to compare", &error))?;
            // Where there are bytes to compare with, the range is not longer than they are.
            let difference = expected.difference(done as usize, found);
            if let Some(at) = difference {
                return Ok(Some(done + at as u64));
            }
        }
        Ok(None)
    }

    /// Memory for a piece of the medium.
    pub(super) async fn take_scratch(&self, io: &Io) -> Result<Piece<'_>, Failure> {
        let taken = self.scratch.take(io, self.unit.piece_len()).await;
        taken.map_err(|source| {
            let error = Error::os("memory to compare in", source).with_kind(ErrorKind::Busy);
            self.failed("a command", &error)
        })
    }

    /// INFORMATION is the first block that differs (SBC-3, 4.18.1).
    fn unit_miscompare(&self, offset: u64) -> Sense {
        miscompare(self.unit.in_blocks(offset))
    }
}

/// The end of a command that found other bytes than it expected.
pub(super) fn miscompare(information: u64) -> Sense {
    let code = AdditionalSense::MISCOMPARE_DURING_VERIFY_OPERATION;
    Sense::new(SenseKey::Miscompare, code).with_information(information)
}
