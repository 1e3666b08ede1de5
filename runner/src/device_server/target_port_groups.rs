//! REPORT TARGET PORT GROUPS and SET TARGET PORT GROUPS: SPC-4, 6.37 and 6.45.
//!
//! The states are the target core's, which also refuses commands where a state does not allow them.
//! It establishes ASYMMETRIC ACCESS STATE CHANGED for every initiator when a state changes, for the
//! one that changed it too: it takes a change from user space for one of its own.

use tcmu::configfs::TargetPortGroup;
use tcmu::scsi::cdb::Maintenance;
use tcmu::scsi::target_port_groups::{
    EXTENDED_HEADER_FORMAT, ExtendedHeader, GroupDescriptor, PREF, PortDescriptor, SET_HEADER_LEN,
    SetDescriptor, access_state,
};
use tcmu::scsi::{AdditionalSense, Sense, SenseKey};
use tcmu_handler::{Backstore, Buffer, Io};
use zerocopy::{FromBytes, IntoBytes};

use super::LogicalUnit;
use super::logical_unit::parse;
use super::reply::{Answer, Response, parameter_data};
use super::target_core::obeys_initiators;
use super::unit::Unit;
use super::unmap::parameter_list;

const LENGTH_ERROR: Sense = Sense::illegal_request(AdditionalSense::PARAMETER_LIST_LENGTH_ERROR);

/// A list with more groups than a backstore ever has.
const MOST_BYTES: usize = 4096;

impl Unit {
    pub(super) fn report_target_port_groups(&self, cdb: &[u8], data: Buffer<'_>) -> Answer {
        let command = parse::<Maintenance>(cdb)?;
        let surroundings = self.surroundings.borrow();
        let groups = || surroundings.groups.iter().filter(|g| !g.ports.is_empty());
        let mut descriptors = Vec::new();
        for group in groups() {
            let pref = if group.preferred { PREF } else { 0 };
            // The count has 8 bits.
            let ports = &group.ports[..group.ports.len().min(u8::MAX.into())];
            let descriptor = GroupDescriptor::new(
                pref | group.state,
                group.supported_states,
                group.id,
                group.status,
                ports.len() as u8,
            );
            descriptors.extend_from_slice(descriptor.as_bytes());
            for port in ports {
                descriptors.extend_from_slice(PortDescriptor::new(port.relative_id).as_bytes());
            }
        }
        let header = if command.service_action & EXTENDED_HEADER_FORMAT != 0 {
            let transition_time = groups().map(|group| group.transition_time).max();
            let len = descriptors.len() as u32 + 4;
            let header = ExtendedHeader::new(len, transition_time.unwrap_or(0));
            header.as_bytes().to_vec()
        } else {
            (descriptors.len() as u32).to_be_bytes().to_vec()
        };
        let allocation_length = command.length.get() as usize;
        parameter_data(data, allocation_length, &[header, descriptors].concat())
    }

    /// The groups of a SET TARGET PORT GROUPS parameter list with their new states, once all of it
    /// has been found valid.
    fn new_access_states(&self, list: &[u8]) -> Result<Vec<(TargetPortGroup, u8)>, Sense> {
        let bytes = list.get(SET_HEADER_LEN..).ok_or(LENGTH_ERROR)?;
        let descriptors = <[SetDescriptor]>::ref_from_bytes(bytes).map_err(|_| LENGTH_ERROR)?;
        let surroundings = self.surroundings.borrow();
        let mut states = Vec::new();
        for (descriptor, at) in descriptors.iter().zip((SET_HEADER_LEN as u16..).step_by(4)) {
            let state = descriptor.state & 0x0f;
            let group = surroundings
                .groups
                .iter()
                .find(|group| group.id == descriptor.group.get() && obeys_initiators(group))
                .ok_or(Sense::invalid_parameter_field(at + 2, None))?;
            // Offline is a state of single ports, which the kernel keeps to itself.
            if state > access_state::UNAVAILABLE || group.supported_states & 1 << state == 0 {
                return Err(Sense::invalid_parameter_field(at, Some(3)));
            }
            states.push((group.clone(), state));
        }
        Ok(states)
    }
}

impl<B: Backstore> LogicalUnit<B> {
    pub(super) async fn set_target_port_groups(
        &self,
        io: &Io,
        cdb: &[u8],
        data: Buffer<'_>,
    ) -> Answer {
        const FAILED: Sense = Sense::new(
            SenseKey::HardwareError,
            AdditionalSense::SET_TARGET_PORT_GROUPS_COMMAND_FAILED,
        );
        let command = parse::<Maintenance>(cdb)?;
        let len = command.length.get() as usize;
        if len == 0 {
            return Ok(Response::GOOD);
        }
        if len > MOST_BYTES {
            return Err(LENGTH_ERROR.into());
        }
        let list = parameter_list(data, len)?;
        let states = self.unit.new_access_states(&list)?;
        let core = self.target_core.clone().ok_or(FAILED)?;
        let set = io.blocking(move || {
            states
                .iter()
                .try_for_each(|(group, state)| core.set_access_state(group, *state))
        });
        if let Err(error) = set.await.and_then(|result| result) {
            let lun = &self.unit.identity.borrow().name;
            tracing::warn!(lun, %error, "an initiator could not change the state of target port groups");
            return Err(FAILED.into());
        }
        Ok(Response::GOOD)
    }
}
