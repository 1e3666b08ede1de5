//! GET LBA STATUS (16) and (32): SBC-3, 5.6; SBC-4, 5.7.

use tcmu::scsi::cdb::{GetLbaStatus32, ServiceActionIn16};
use tcmu::scsi::lba_status::{DEALLOCATED, LbaStatusDescriptor, LbaStatusHeader, MAPPED};
use tcmu::scsi::{AdditionalSense, Sense};
use tcmu_handler::{Backstore, Buffer, Extent, Io};
use zerocopy::IntoBytes;

use super::LogicalUnit;
use super::logical_unit::parse;
use super::reply::{Answer, Failure, parameter_data};

const HEADER_LEN: usize = size_of::<LbaStatusHeader>();
const DESCRIPTOR_LEN: usize = size_of::<LbaStatusDescriptor>();

/// How often one command asks the backstore, and so how many descriptors there are at the most: an
/// initiator asks again for what follows.
const MAX_QUESTIONS: usize = 256;

/// Blocks that are kept alike.
#[derive(Clone, Copy)]
struct Run {
    lba: u64,
    blocks: u64,
    mapped: bool,
}

impl<B: Backstore> LogicalUnit<B> {
    pub(super) async fn get_lba_status(&self, io: &Io, cdb: &[u8], data: Buffer<'_>) -> Answer {
        let (lba, scan_length, allocation_length) = match cdb.len() {
            16 => {
                let command = parse::<ServiceActionIn16>(cdb)?;
                (command.lba.get(), 0, command.allocation_length.get())
            }
            _ => {
                let command = parse::<GetLbaStatus32>(cdb)?;
                let scan_length = command.scan_length.get();
                let allocation_length = command.allocation_length.get();
                (command.lba.get(), scan_length, allocation_length)
            }
        };
        let blocks = match self.unit.blocks().checked_sub(lba) {
            None | Some(0) => {
                let code = AdditionalSense::LOGICAL_BLOCK_ADDRESS_OUT_OF_RANGE;
                return Err(Sense::illegal_request(code).into());
            }
            Some(left) if scan_length == 0 => left,
            Some(left) => left.min(scan_length.into()),
        };
        let allocation_length = allocation_length as usize;
        let room = allocation_length.min(data.len()).saturating_sub(HEADER_LEN);
        // There is always one, of which as much is transferred as there is room for.
        let most = (room / DESCRIPTOR_LEN).max(1);
        let runs = self.runs(io, lba, blocks, most).await?;
        let mut bytes = LbaStatusHeader::new(runs.len() as u32).as_bytes().to_vec();
        for run in runs {
            let status = if run.mapped { MAPPED } else { DEALLOCATED };
            // Of a run that is too long for the field, the rest is left for the next command.
            let blocks = u32::try_from(run.blocks).unwrap_or(u32::MAX);
            let descriptor = LbaStatusDescriptor::new(run.lba, blocks, status);
            bytes.extend_from_slice(descriptor.as_bytes());
        }
        parameter_data(data, allocation_length, &bytes)
    }

    /// How the first of `blocks` blocks from `lba` on are kept, in at most `most` runs.
    async fn runs(&self, io: &Io, lba: u64, blocks: u64, most: usize) -> Result<Vec<Run>, Failure> {
        let end = lba + blocks;
        let mut runs: Vec<Run> = Vec::new();
        let mut at = lba;
        for _ in 0..MAX_QUESTIONS {
            if at == end {
                break;
            }
            let next = self.run_at(io, at, end).await?;
            at += next.blocks;
            let full = runs.len() == most;
            match runs.last_mut() {
                Some(last) if last.mapped == next.mapped => last.blocks += next.blocks,
                _ if full => break,
                _ => runs.push(next),
            }
            if runs
                .last()
                .is_some_and(|last| last.blocks > u32::MAX.into())
            {
                break;
            }
        }
        Ok(runs)
    }

    /// How the blocks from `at` on are kept; not beyond `end`, which lies behind.
    async fn run_at(&self, io: &Io, at: u64, end: u64) -> Result<Run, Failure> {
        let run = |blocks, mapped| Run {
            lba: at,
            blocks,
            mapped,
        };
        if self.unit.capabilities().unmap.is_none() {
            // Fully provisioned.
            return Ok(run(end - at, true));
        }
        let block_size = u64::from(self.unit.block_size());
        let extent = Extent {
            offset: at * block_size,
            len: (end - at) * block_size,
        };
        let status = self
            .backstore
            .block_status(io, extent)
            .await
            .map_err(|error| self.failed("finding out what is mapped", &error))?;
        let len = status.len.min(extent.len);
        Ok(if status.mapped {
            run(len.div_ceil(block_size).max(1), true)
        } else if len < block_size {
            // A block of which some bytes have storage is mapped.
            run(1, true)
        } else {
            run(len / block_size, false)
        })
    }
}
