//! INQUIRY (SPC-4, 6.6) and REQUEST SENSE (SPC-4, 6.39).

use tcmu::scsi::cdb::{Inquiry, RequestSense};
use tcmu::scsi::inquiry::{MULTIP, Standard, THIRD_PARTY_COPY, TPGS_EXPLICIT, TPGS_IMPLICIT};
use tcmu::scsi::opcode::THIRD_PARTY_COPY_OUT;
use tcmu::scsi::sense::SENSE_BUFFER_LEN;
use tcmu::scsi::{AdditionalSense, Sense, SenseKey};
use tcmu_handler::Buffer;
use zerocopy::IntoBytes;

use super::logical_unit::parse;
use super::opcode_table;
use super::reply::{Answer, parameter_data};
use super::unit::Unit;

impl Unit {
    pub(super) fn inquiry(&self, cdb: &[u8], data: Buffer<'_>) -> Answer {
        let command = parse::<Inquiry>(cdb)?;
        let allocation_length = command.allocation_length.get().into();
        if command.evpd() {
            let page = self
                .vpd_page(command.page_code)
                .ok_or(Sense::invalid_cdb_field(2, None))?;
            self.identified.set(true);
            return parameter_data(data, allocation_length, &page);
        }
        if command.page_code != 0 {
            return Err(Sense::invalid_cdb_field(2, None).into());
        }
        self.identified.set(true);
        let identity = self.identity.borrow();
        let mut standard = Standard::disk(
            identity.vendor_field(),
            identity.product_field(),
            identity.revision_field(),
        );
        if self.features().own_type {
            standard.set_device_type(self.device_type());
        }
        if opcode_table::rows(THIRD_PARTY_COPY_OUT, self.features()).count() != 0 {
            standard.protection |= THIRD_PARTY_COPY;
        }
        let surroundings = self.surroundings.borrow();
        if surroundings.implicit() {
            standard.protection |= TPGS_IMPLICIT;
        }
        if surroundings.explicit() {
            standard.protection |= TPGS_EXPLICIT;
        }
        if surroundings.has_several_ports() {
            standard.enclosure |= MULTIP;
        }
        parameter_data(data, allocation_length, standard.as_bytes())
    }

    /// A pending unit attention is reported as data, and cleared; then why the unit is not ready.
    pub(super) fn request_sense(&self, cdb: &[u8], data: Buffer<'_>) -> Answer {
        let command = parse::<RequestSense>(cdb)?;
        let sense = self.attention.take().or(self.not_ready.get());
        let sense = sense.unwrap_or(Sense::new(
            SenseKey::NoSense,
            AdditionalSense::NO_ADDITIONAL_SENSE_INFORMATION,
        ));
        let mut bytes = [0; SENSE_BUFFER_LEN];
        let len = sense.write_to(&mut bytes, command.desc());
        parameter_data(data, command.allocation_length.into(), &bytes[..len])
    }
}
