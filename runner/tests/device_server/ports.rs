//! Target ports: INQUIRY, REPORT and SET TARGET PORT GROUPS on a target core of the test's own.

use std::io;
use std::sync::{Arc, Mutex};

use tcmu::configfs::{TargetPort, TargetPortGroup};
use tcmu::scsi::{AdditionalSense, SenseKey};
use tcmu_runner::device_server::{Surroundings, TargetCore, Told};

use crate::opcodes::supported;
use crate::target::{Target, assert_good, assert_illegal, assert_sense};

/// A target core that notes what it is told.
#[derive(Debug, Default)]
pub(crate) struct FakeCore {
    surroundings: Mutex<Surroundings>,
    pub(crate) write_caches: Mutex<Vec<bool>>,
    failing: Mutex<Option<io::ErrorKind>>,
}

impl FakeCore {
    pub(crate) fn fail(&self, kind: Option<io::ErrorKind>) {
        *self.failing.lock().unwrap() = kind;
    }

    fn result(&self) -> io::Result<()> {
        match *self.failing.lock().unwrap() {
            Some(kind) => Err(kind.into()),
            None => Ok(()),
        }
    }

    fn change(&self, change: impl FnOnce(&mut Surroundings)) {
        change(&mut self.surroundings.lock().unwrap());
    }
}

impl TargetCore for FakeCore {
    fn surroundings(&self) -> io::Result<Surroundings> {
        self.result()?;
        Ok(self.surroundings.lock().unwrap().clone())
    }

    fn set_access_state(&self, group: &TargetPortGroup, state: u8) -> io::Result<()> {
        self.result()?;
        self.change(|now| {
            let group = now.groups.iter_mut().find(|other| other.name == group.name);
            let group = group.unwrap();
            (group.state, group.status) = (state, 1);
        });
        Ok(())
    }

    fn set_write_cache(&self, enabled: bool, told: Told) {
        self.write_caches.lock().unwrap().push(enabled);
        told(self.result());
    }
}

fn group(id: u16, ports: &[(u16, bool)]) -> TargetPortGroup {
    TargetPortGroup {
        name: format!("group{id}"),
        id,
        preferred: false,
        state: 0,
        supported_states: 0xcf,
        status: 0,
        implicit: true,
        explicit: true,
        transition_time: 0,
        ports: ports
            .iter()
            .map(|&(relative_id, enabled)| TargetPort {
                relative_id,
                enabled,
            })
            .collect(),
    }
}

fn target(groups: Vec<TargetPortGroup>) -> (Target, Arc<FakeCore>) {
    let core = Arc::new(FakeCore::default());
    core.change(|now| {
        *now = Surroundings {
            groups,
            reservations: true,
        }
    });
    let target = Target::new().on(Arc::clone(&core));
    (target, core)
}

/// TPGS and MULTIP of the standard INQUIRY data.
fn tpgs(target: &Target) -> (u8, u8) {
    let data = target.parameters(&[0x12, 0, 0, 0, 96, 0]);
    (data[5] >> 4 & 3, data[6])
}

/// The designators of ports in page 83h, by type.
fn port_designators(target: &Target) -> Vec<(u8, u16)> {
    let page = target.parameters(&[0x12, 1, 0x83, 4, 0, 0]);
    let mut rest = &page[4..];
    let mut found = Vec::new();
    while !rest.is_empty() {
        let (descriptor, after) = rest.split_at(4 + usize::from(rest[3]));
        if descriptor[1] & 0x30 == 0x10 {
            assert_eq!(descriptor[..4], [1, descriptor[1], 0, 4]);
            let number = u16::from_be_bytes([descriptor[6], descriptor[7]]);
            found.push((descriptor[1] & 0x0f, number));
        }
        rest = after;
    }
    found
}

fn report(format: u8) -> [u8; 12] {
    [0xa3, format | 0x0a, 0, 0, 0, 0, 0, 0, 16, 0, 0, 0]
}

fn set(target: &Target, descriptors: &[[u8; 4]]) -> tcmu_runner::device_server::Response {
    let list = [&[0; 4], descriptors.concat().as_slice()].concat();
    let mut cdb = [0; 12];
    (cdb[0], cdb[1], cdb[9]) = (0xa4, 0x0a, list.len() as u8);
    target.data_out(&cdb, &list)
}

fn has(target: &Target, opcode: u8, action: u16) -> bool {
    supported(target)
        .iter()
        .any(|row| (row.0, row.1) == (opcode, Some(action)))
}

#[test]
fn nothing_is_claimed_without_ports() {
    for target in [Target::new(), target(vec![group(0, &[])]).0] {
        assert_eq!(tpgs(&target), (0, 0));
        assert_eq!(port_designators(&target), []);
        assert!(!has(&target, 0xa3, 0x0a));
        let (response, _) = target.data_in(&report(0), 64);
        assert_illegal(response, AdditionalSense::INVALID_FIELD_IN_CDB);
        assert_illegal(
            set(&target, &[[0; 4]]),
            AdditionalSense::INVALID_COMMAND_OPERATION_CODE,
        );
    }
}

#[test]
fn the_only_port_is_named() {
    let (target, _) = target(vec![group(7, &[(3, true)])]);
    assert_eq!(tpgs(&target), (3, 0));
    assert_eq!(port_designators(&target), [(4, 3), (5, 7)]);
}

#[test]
fn of_several_ports_none_is_named_that_a_command_may_not_have_come_through() {
    let (several, _) = target(vec![group(7, &[(3, true), (4, true)])]);
    assert_eq!(tpgs(&several), (3, 0x10));
    assert_eq!(port_designators(&several), [(5, 7)]);
    let (other_group, _) = target(vec![group(7, &[(3, true)]), group(8, &[(4, true)])]);
    assert_eq!(port_designators(&other_group), []);
    // Another machine's ports are known, and commands do not come through them here.
    let (cluster, _) = target(vec![group(7, &[(3, false)]), group(8, &[(4, true)])]);
    assert_eq!(tpgs(&cluster), (3, 0x10));
    assert_eq!(port_designators(&cluster), [(4, 4), (5, 8)]);
}

#[test]
fn groups_are_reported() {
    let mut preferred = group(0x0102, &[(1, true), (0x0203, false)]);
    preferred.preferred = true;
    preferred.status = 2;
    preferred.transition_time = 30;
    let mut standby = group(3, &[(9, true)]);
    standby.state = 2;
    let (target, _) = target(vec![preferred, standby, group(4, &[])]);
    let descriptors = [
        0x80, 0xcf, 1, 2, 0, 2, 0, 2, 0, 0, 0, 1, 0, 0, 2, 3, //
        0x02, 0xcf, 0, 3, 0, 0, 0, 1, 0, 0, 0, 9,
    ];
    let plain = target.parameters(&report(0));
    assert_eq!(plain, [&[0, 0, 0, 28], &descriptors[..]].concat());
    let extended = target.parameters(&report(0x20));
    assert_eq!(
        extended,
        [&[0, 0, 0, 32, 0x10, 30, 0, 0], &descriptors[..]].concat()
    );
    for len in [0u8, 3, 4, 20] {
        let mut cdb = report(0);
        (cdb[8], cdb[9]) = (0, len);
        let (response, data) = target.data_in(&cdb, 64);
        assert_eq!(response.read_len, Some(len.into()));
        assert_eq!(data[..len.into()], plain[..len.into()]);
        assert!(data[len.into()..].iter().all(|&byte| byte == 0));
    }
}

#[test]
fn initiators_change_the_state() {
    let (target, _) = target(vec![group(1, &[(1, true)]), group(2, &[(2, true)])]);
    assert!(has(&target, 0xa4, 0x0a));
    assert_good(set(&target, &[[1, 0, 0, 2], [2, 0, 0, 1]]));
    let data = target.parameters(&report(0));
    assert_eq!((data[4], data[4 + 5]), (2, 1));
    assert_eq!((data[16], data[16 + 5]), (1, 1));
    assert_good(target.no_data(&[0xa4, 0x0a, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]));
}

#[test]
fn a_bad_list_changes_nothing() {
    let (target, core) = target(vec![group(1, &[(1, true)]), group(2, &[(2, true)])]);
    let before = target.parameters(&report(0));
    for (bad, byte) in [
        ([1, 0, 0, 3], 8 + 2),
        ([0x4, 0, 0, 2], 8),
        ([0xe, 0, 0, 2], 8),
        ([0xf, 0, 0, 2], 8),
    ] {
        let response = set(&target, &[[2, 0, 0, 1], bad]);
        assert_illegal(response, AdditionalSense::INVALID_FIELD_IN_PARAMETER_LIST);
        assert_eq!(response.sense.unwrap().field.unwrap().byte, byte);
    }
    let mut cdb = [0xa4, 0x0a, 0, 0, 0, 0, 0, 0, 0, 7, 0, 0];
    let cut = target.data_out(&cdb, &[0; 7]);
    assert_illegal(cut, AdditionalSense::PARAMETER_LIST_LENGTH_ERROR);
    cdb[6..10].fill(0xff);
    let long = target.data_out(&cdb, &[0; 8]);
    assert_illegal(long, AdditionalSense::PARAMETER_LIST_LENGTH_ERROR);
    assert_eq!(target.parameters(&report(0)), before);
    core.fail(Some(io::ErrorKind::InvalidInput));
    assert_sense(
        set(&target, &[[2, 0, 0, 1]]),
        SenseKey::HardwareError,
        AdditionalSense::SET_TARGET_PORT_GROUPS_COMMAND_FAILED,
    );
}

#[test]
fn only_what_the_kernel_lets_us_change_is_explicit() {
    let mut implicit = group(1, &[(1, true)]);
    implicit.explicit = false;
    let (implicit, _) = target(vec![implicit, group(2, &[(2, true)])]);
    assert_eq!(tpgs(&implicit).0, 1);
    assert!(has(&implicit, 0xa3, 0x0a) && !has(&implicit, 0xa4, 0x0a));
    let mut explicit = group(1, &[(1, true)]);
    explicit.implicit = false;
    let (explicit, _) = target(vec![explicit]);
    assert_eq!(tpgs(&explicit).0, 0);
    assert!(!has(&explicit, 0xa3, 0x0a));
}

#[test]
fn what_was_known_holds_while_nothing_can_be_read() {
    let (target, core) = target(vec![group(7, &[(3, true)])]);
    assert_eq!(tpgs(&target).0, 3);
    core.change(|now| now.reservations = false);
    assert!(!supported(&target).iter().any(|row| row.0 == 0x5e));
    core.fail(Some(io::ErrorKind::NotFound));
    core.change(|now| *now = Surroundings::default());
    assert_eq!(tpgs(&target).0, 3);
    assert_eq!(target.parameters(&report(0))[6..8], [0, 7]);
}

#[test]
fn implicit_changes_show_in_the_control_extension_page() {
    let page = |target: &Target| target.parameters(&[0x1a, 8, 0x0a, 1, 255, 0])[4..].to_vec();
    let (with, _) = target(vec![group(1, &[(1, true)])]);
    // The target core is asked by INQUIRY.
    tpgs(&with);
    assert_eq!(page(&with)[..5], [0x4a, 1, 0, 28, 1]);
    assert_eq!(page(&Target::new())[..5], [0x4a, 1, 0, 28, 0]);
}
