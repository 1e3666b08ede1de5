//! UNMAP: SBC-3, 5.25.

use tcmu::scsi::cdb::ParameterList10;
use tcmu::scsi::unmap::{UnmapDescriptor, UnmapHeader};
use tcmu::scsi::{AdditionalSense, Sense};
use tcmu_handler::{Backstore, Buffer, Extent, Io};
use zerocopy::FromBytes;

use super::LogicalUnit;
use super::logical_unit::parse;
use super::reply::{Answer, Response};
use super::unit::Unit;

/// MAXIMUM UNMAP LBA COUNT in bytes: 2^20 of the smallest blocks, more than which looks like a mistake
/// to some initiators.
const MAX_UNMAP_BYTES: u64 = 512 << 20;

/// MAXIMUM UNMAP BLOCK DESCRIPTOR COUNT.
pub(super) const MAX_UNMAP_DESCRIPTORS: u32 = 256;

const HEADER_LEN: usize = size_of::<UnmapHeader>();
const DESCRIPTOR_LEN: usize = size_of::<UnmapDescriptor>();

impl Unit {
    /// MAXIMUM UNMAP LBA COUNT in blocks.
    pub(super) fn max_unmap_blocks(&self) -> u32 {
        // Half a GiB has less than 2^32 blocks of any length.
        self.in_blocks(MAX_UNMAP_BYTES).max(1) as u32
    }

    /// The ranges of an UNMAP parameter list, once all of it has been found valid.
    fn unmap_extents(&self, list: &[u8]) -> Result<Vec<Extent>, Sense> {
        let length_error = Sense::illegal_request(AdditionalSense::PARAMETER_LIST_LENGTH_ERROR);
        let (header, rest) = UnmapHeader::ref_from_prefix(list).map_err(|_| length_error)?;
        let len = usize::from(header.descriptors_length.get());
        let descriptors = rest.get(..len).ok_or(length_error)?;
        // An incomplete descriptor at the end is ignored.
        if descriptors.len() / DESCRIPTOR_LEN > MAX_UNMAP_DESCRIPTORS as usize {
            return Err(Sense::invalid_parameter_field(2, None));
        }
        let mut extents = Vec::new();
        let mut left = u64::from(self.max_unmap_blocks());
        for (index, bytes) in descriptors.chunks_exact(DESCRIPTOR_LEN).enumerate() {
            let descriptor = UnmapDescriptor::ref_from_bytes(bytes).map_err(|_| length_error)?;
            let blocks = descriptor.blocks.get();
            let extent = self.extent(descriptor.lba.get(), blocks)?;
            left = left.checked_sub(blocks.into()).ok_or_else(|| {
                let field = HEADER_LEN + index * DESCRIPTOR_LEN + 8;
                Sense::invalid_parameter_field(field as u16, None)
            })?;
            if extent.len != 0 {
                extents.push(extent);
            }
        }
        Ok(extents)
    }
}

impl<B: Backstore> LogicalUnit<B> {
    /// Nothing is unmapped unless the whole list is valid; the first range that fails ends the
    /// command with its error.
    pub(super) async fn unmap(&self, io: &Io, cdb: &[u8], data: Buffer<'_>) -> Answer {
        let command = parse::<ParameterList10>(cdb)?;
        let extents = match usize::from(command.parameter_list_length.get()) {
            0 => return Ok(Response::GOOD),
            len => self.unit.unmap_extents(&parameter_list(data, len)?)?,
        };
        for &extent in &extents {
            let _range = self.unit.ranges.shared(extent).await;
            self.backstore
                .unmap(io, extent)
                .await
                .map_err(|error| self.failed("an unmap", &error))?;
        }
        if !extents.is_empty() {
            self.settle(io, false, false).await?;
        }
        Ok(Response::GOOD)
    }
}

/// A private copy of the parameter list: checked bytes must not change afterwards.
pub(super) fn parameter_list(data: Buffer<'_>, len: usize) -> Result<Vec<u8>, Sense> {
    if data.len() < len {
        return Err(Sense::illegal_request(
            AdditionalSense::PARAMETER_LIST_LENGTH_ERROR,
        ));
    }
    let mut list = vec![0; len];
    data.copy_to(0, &mut list);
    Ok(list)
}
