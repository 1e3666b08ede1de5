//! READ CAPACITY (10) and (16): SBC-3, 5.15 and 5.16.

use tcmu::scsi::Sense;
use tcmu::scsi::capacity::{Capacity10, Capacity16, LBPME, LBPRZ};
use tcmu::scsi::cdb::{Block10, ServiceActionIn16};
use tcmu_handler::Buffer;
use zerocopy::IntoBytes;

use super::logical_unit::parse;
use super::reply::{Answer, parameter_data};
use super::unit::Unit;

/// PMI, obsolete since SBC-3: the last block before a delay, which here is the last of all.
const PMI: u8 = 0x01;

impl Unit {
    pub(super) fn read_capacity_10(&self, cdb: &[u8], data: Buffer<'_>) -> Answer {
        let command = parse::<Block10>(cdb)?;
        // PMI lies in the lower byte of what is a length in other commands.
        check_pmi(command.lba.get().into(), command.length.get() as u8)?;
        let capacity = Capacity10 {
            last_lba: u32::try_from(self.last_lba()).unwrap_or(u32::MAX).into(),
            block_len: self.block_size().into(),
        };
        parameter_data(data, size_of::<Capacity10>(), capacity.as_bytes())
    }

    pub(super) fn read_capacity_16(&self, cdb: &[u8], data: Buffer<'_>) -> Answer {
        let command = parse::<ServiceActionIn16>(cdb)?;
        check_pmi(command.lba.get(), command.flags)?;
        let provisioning = match self.capabilities().unmap {
            None => 0,
            Some(unmap) if unmap.reads_zeroes => LBPME | LBPRZ,
            Some(_) => LBPME,
        };
        let capacity = Capacity16::new(
            self.last_lba(),
            self.block_size(),
            self.physical_exponent(),
            provisioning,
        );
        let allocation_length = command.allocation_length.get() as usize;
        parameter_data(data, allocation_length, capacity.as_bytes())
    }

    /// LOGICAL BLOCKS PER PHYSICAL BLOCK EXPONENT.
    fn physical_exponent(&self) -> u8 {
        let physical = self.capabilities().physical_block_size / self.block_size();
        physical.checked_ilog2().unwrap_or(0).min(15) as u8
    }
}

/// SBC-2's rule for the obsolete fields: an address means something only with PMI.
fn check_pmi(lba: u64, flags: u8) -> Result<(), Sense> {
    if lba != 0 && flags & PMI == 0 {
        return Err(Sense::invalid_cdb_field(2, None));
    }
    Ok(())
}
