//! MODE SENSE and MODE SELECT.

use std::io;
use std::sync::Arc;

use tcmu::scsi::{AdditionalSense, SenseKey, Status};
use tcmu_handler::{Capabilities, ErrorKind};

use crate::disk::{Call, Kind, everything};
use crate::ports::FakeCore;
use crate::target::{BLOCK, Target, assert_good, assert_illegal, assert_sense, cdb};

const CURRENT: u8 = 0x00;
const CHANGEABLE: u8 = 0x40;
const DEFAULT: u8 = 0x80;
const SAVED: u8 = 0xc0;
const DBD: u8 = 0x08;
const PF: u8 = 0x10;

fn sense_6(flags: u8, page: u8) -> [u8; 6] {
    [0x1a, flags, page, 0, 255, 0]
}

fn sense_10(flags: u8, page: u8) -> [u8; 10] {
    [0x5a, flags, page, 0, 0, 0, 0, 4, 0, 0]
}

/// One page, without what goes before it.
fn page(target: &Target, page: u8) -> Vec<u8> {
    target.parameters(&sense_6(DBD, page))[4..].to_vec()
}

fn subpage_of(target: &Target, page: u8, subpage: u8) -> Vec<u8> {
    target.parameters(&[0x1a, DBD, page, subpage, 255, 0])[4..].to_vec()
}

/// MODE SELECT (10) of pages.
fn select(target: &Target, pages: &[u8]) -> tcmu_runner::device_server::Response {
    let list = [&[0; 8], pages].concat();
    target.data_out(&cdb::ten(0x55, PF, 0, list.len() as u16), &list)
}

#[test]
fn headers_and_block_descriptors() {
    let target = Target::new();
    let six = target.parameters(&sense_6(0, 0x0a));
    assert_eq!(
        six[..12],
        [23, 0, 0x10, 8, 0, 0, 0x08, 0x00, 0, 0, 0x02, 0x00]
    );
    let ten = target.parameters(&sense_10(0, 0x0a));
    assert_eq!(ten[..8], [0, 26, 0, 0x10, 0, 0, 0, 8]);
    assert_eq!(ten[8..], six[4..]);
    let long = target.parameters(&sense_10(0x10, 0x0a));
    assert_eq!(long[..8], [0, 34, 0, 0x10, 1, 0, 0, 16]);
    assert_eq!(
        long[8..24],
        [0, 0, 0, 0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0, 2, 0]
    );
    let none = target.parameters(&sense_6(DBD, 0x0a));
    assert_eq!(none[..4], [15, 0, 0x10, 0]);
    assert_eq!(none[4..], six[12..]);
}

#[test]
fn all_pages_are_each_page_after_the_other() {
    let target = Target::new();
    for control in [CURRENT, CHANGEABLE, DEFAULT] {
        let all = page(&target, control | 0x3f);
        let each = |codes: &[(u8, u8)]| -> Vec<u8> {
            let codes = codes.iter();
            codes
                .flat_map(|&(code, subpage)| subpage_of(&target, control | code, subpage))
                .collect()
        };
        assert_eq!(all, each(&[(0x01, 0), (0x08, 0), (0x0a, 0), (0x1c, 0)]));
        let with_subpages = subpage_of(&target, control | 0x3f, 0xff);
        assert_eq!(
            with_subpages,
            each(&[(0x01, 0), (0x08, 0), (0x0a, 0), (0x0a, 1), (0x1c, 0)])
        );
        assert!(with_subpages.len() + 4 + 8 < 256);
        let control_pages = subpage_of(&target, control | 0x0a, 0xff);
        assert_eq!(control_pages, each(&[(0x0a, 0), (0x0a, 1)]));
        assert_eq!(
            subpage_of(&target, control | 0x08, 0xff),
            each(&[(0x08, 0)])
        );
    }
}

#[test]
fn what_there_is_not_is_refused() {
    let target = Target::new();
    for cdb in [
        sense_6(0, 0x05),
        sense_6(0, 0x00),
        [0x1a, 0, 0x0a, 0x02, 255, 0],
        [0x1a, 0, 0x08, 0x01, 255, 0],
        [0x1a, 0, 0x3f, 0x01, 255, 0],
    ] {
        let (response, _) = target.data_in(&cdb, 255);
        assert_illegal(response, AdditionalSense::INVALID_FIELD_IN_CDB);
    }
    let (response, _) = target.data_in(&sense_6(0, SAVED | 0x08), 255);
    assert_illegal(response, AdditionalSense::SAVING_PARAMETERS_NOT_SUPPORTED);
}

#[test]
fn write_protection_is_shown() {
    let mut capabilities = everything(1 << 20);
    capabilities.read_only = true;
    let target = Target::with(capabilities, true);
    assert_eq!(target.parameters(&sense_6(0, 0x08))[2], 0x90);
}

#[test]
fn the_caching_page_tells_of_a_volatile_cache_only() {
    let wce = |volatile, write_cache| {
        let mut capabilities = Capabilities::new(1 << 20);
        capabilities.volatile_cache = volatile;
        let target = Target::with(capabilities, write_cache);
        (page(&target, 0x08)[2], page(&target, CHANGEABLE | 0x08)[2])
    };
    assert_eq!(wce(true, true), (4, 4));
    assert_eq!(wce(true, false), (0, 4));
    assert_eq!(wce(false, true), (0, 0));
    assert_eq!(wce(false, false), (0, 0));
}

#[test]
fn wce_can_be_changed_and_flushes() {
    let target = Target::new();
    let mut caching = page(&target, 0x08);
    caching[2] = 0;
    assert_good(target.data_out(&cdb::ten(0x2a, 0, 0, 1), &[7; BLOCK]));
    assert_good(select(&target, &caching));
    assert_eq!(page(&target, 0x08), caching);
    assert_eq!(page(&target, DEFAULT | 0x08)[2], 4);
    assert!(!target.unit.write_cache());
    target.disk().cut_power();
    assert_eq!(target.disk().image.borrow()[..BLOCK], [7; BLOCK]);
    // On again, in six bytes as Linux does it.
    caching[2] = 4;
    let list = [&[0; 4], caching.as_slice()].concat();
    assert_good(target.data_out(&[0x15, PF, 0, 0, list.len() as u8, 0], &list));
    assert!(target.unit.write_cache());
}

#[test]
fn wce_stays_on_if_the_cache_cannot_be_flushed() {
    let target = Target::new();
    let mut caching = page(&target, 0x08);
    caching[2] = 0;
    target.disk().fail(Kind::Flush, ErrorKind::Write);
    assert_sense(
        select(&target, &caching),
        SenseKey::MediumError,
        AdditionalSense::WRITE_ERROR,
    );
    assert_eq!(page(&target, 0x08)[2], 4);
}

#[test]
fn the_target_core_keeps_wce() {
    let core = Arc::new(FakeCore::default());
    let target = Target::new().on(Arc::clone(&core));
    let kept = || std::mem::take(&mut *core.write_caches.lock().unwrap());
    let mut caching = page(&target, 0x08);
    assert_good(select(&target, &caching));
    assert_eq!(kept(), []);
    caching[2] = 0;
    assert_good(select(&target, &caching));
    assert_eq!(kept(), [false]);
    // What is not kept is not so, in either direction; and nobody hears of a change.
    caching[2] = 4;
    core.fail(Some(io::ErrorKind::ResourceBusy));
    let busy = select(&target, &caching);
    assert_eq!((busy.status, busy.sense), (Status::Busy, None));
    assert_eq!(page(&target, 0x08)[2], 0);
    core.fail(Some(io::ErrorKind::NotFound));
    assert_sense(
        select(&target, &caching),
        SenseKey::HardwareError,
        AdditionalSense::INTERNAL_TARGET_FAILURE,
    );
    assert_eq!(page(&target, 0x08)[2], 0);
}

#[test]
fn a_reset_restores_what_is_not_saved() {
    let target = Target::new();
    let mut pages = [page(&target, 0x08), page(&target, 0x0a)].concat();
    pages[2] = 0;
    pages[20 + 2] |= 0x04;
    pages[20 + 4] |= 0x08;
    assert_good(select(&target, &pages));
    target.unit.reset();
    assert!(!target.unit.descriptor_sense());
    assert!(!target.unit.write_cache());
    assert_eq!(page(&target, 0x0a), page(&target, DEFAULT | 0x0a));
}

#[test]
fn d_sense_chooses_the_format_of_sense_data() {
    let target = Target::new();
    assert!(!target.unit.descriptor_sense());
    let mut control = page(&target, 0x0a);
    assert_eq!(
        page(&target, CHANGEABLE | 0x0a)[2..],
        [4, 0, 8, 0, 0, 0, 0, 0, 0, 0]
    );
    control[2] |= 0x04;
    assert_good(select(&target, &control));
    assert!(target.unit.descriptor_sense());
    assert_eq!(page(&target, 0x0a), control);
}

#[test]
fn software_write_protection() {
    let target = Target::new();
    let mut control = page(&target, 0x0a);
    control[4] |= 0x08;
    assert_good(select(&target, &control));
    assert_sense(
        target.data_out(&cdb::ten(0x2a, 0, 0, 1), &[1; BLOCK]),
        SenseKey::DataProtect,
        AdditionalSense::LOGICAL_UNIT_SOFTWARE_WRITE_PROTECTED,
    );
    assert_eq!(target.parameters(&sense_6(0, 0x08))[2], 0x90);
    control[4] &= !0x08;
    assert_good(select(&target, &control));
    assert_good(target.data_out(&cdb::ten(0x2a, 0, 0, 1), &[1; BLOCK]));
}

#[test]
fn what_was_sensed_can_be_selected() {
    let target = Target::new();
    for (sense, select) in [
        (sense_6(0, 0x3f).to_vec(), 0x15),
        (sense_10(0, 0x3f).to_vec(), 0x55),
        (sense_10(0x10, 0x3f).to_vec(), 0x55),
        (sense_6(DBD, 0x3f).to_vec(), 0x15),
        ([0x1a, 0, 0x3f, 0xff, 255, 0].to_vec(), 0x15),
    ] {
        let list = target.parameters(&sense);
        let len = list.len() as u16;
        let cdb = match select {
            0x15 => vec![0x15, PF, 0, 0, len as u8, 0],
            _ => cdb::ten(0x55, PF, 0, len).to_vec(),
        };
        assert_good(target.data_out(&cdb, &list));
    }
    assert_eq!(target.calls(), []);
}

#[test]
fn nothing_changes_unless_all_is_right() {
    let target = Target::new();
    let before = page(&target, 0x3f);
    let mut caching = page(&target, 0x08);
    caching[2] = 0;
    let mut bad_control = page(&target, 0x0a);
    bad_control[5] ^= 0x80;
    let refused = select(&target, &[caching.as_slice(), &bad_control].concat());
    assert_illegal(refused, AdditionalSense::INVALID_FIELD_IN_PARAMETER_LIST);
    let field = refused.sense.unwrap().field.unwrap();
    assert!(!field.in_cdb);
    assert_eq!((field.byte, field.bit), (8 + 20 + 5, Some(7)));
    assert_eq!(page(&target, 0x3f), before);
    assert!(!target.calls().contains(&Call::Flush));
}

#[test]
fn bad_parameter_lists() {
    let target = Target::new();
    let caching = page(&target, 0x08);
    let invalid = AdditionalSense::INVALID_FIELD_IN_PARAMETER_LIST;
    let length = AdditionalSense::PARAMETER_LIST_LENGTH_ERROR;

    let mut wrong_length = caching.clone();
    wrong_length[1] -= 1;
    assert_illegal(select(&target, &wrong_length), invalid);
    assert_illegal(select(&target, &[0x05, 0x0a]), invalid);
    // Subpages that are not there, of another length, cut off, and one that is no subpage.
    assert_illegal(select(&target, &[0x4a, 0x02, 0, 28]), invalid);
    assert_illegal(select(&target, &[0x4a, 0x01, 0, 0]), invalid);
    assert_illegal(select(&target, &[0x4a, 0x01, 0]), length);
    assert_illegal(select(&target, &[0x4a]), length);
    assert_illegal(select(&target, &[0x48, 0x00, 0, 18]), invalid);
    // Cut off in the page, in its header, in the list's header.
    assert_illegal(select(&target, &caching[..19]), length);
    assert_illegal(select(&target, &caching[..1]), length);
    let header = target.data_out(&cdb::ten(0x55, PF, 0, 7), &[0; 7]);
    assert_illegal(header, length);
    // Less data than the CDB says.
    let short = target.data_out(&cdb::ten(0x55, PF, 0, 28), &[0; 20]);
    assert_illegal(short, length);
    // A block descriptor of another disk, and one that is cut off.
    let mut list = [0; 12];
    list[3] = 8;
    list[10] = 0x10;
    let cdb = [0x15, PF, 0, 0, 12, 0];
    assert_illegal(target.data_out(&cdb, &list), invalid);
    list[3] = 9;
    assert_illegal(target.data_out(&cdb, &list), length);
    list[3] = 4;
    assert_illegal(target.data_out(&cdb, &list), invalid);
    // A medium type.
    assert_illegal(
        target.data_out(&[0x15, PF, 0, 0, 4, 0], &[0, 1, 0, 0]),
        invalid,
    );
}

#[test]
fn an_empty_list_is_no_error_and_a_saved_page_is() {
    let target = Target::new();
    assert_good(target.no_data(&[0x15, PF, 0, 0, 0, 0]));
    assert_good(target.no_data(&[0x55, 0, 0, 0, 0, 0, 0, 0, 0, 0]));
    let saved = target.data_out(&[0x15, PF | 1, 0, 0, 4, 0], &[0; 4]);
    assert_illegal(saved, AdditionalSense::INVALID_FIELD_IN_CDB);
    let vendor_format = target.data_out(&[0x15, 0, 0, 0, 4, 0], &[0; 4]);
    assert_illegal(vendor_format, AdditionalSense::INVALID_FIELD_IN_CDB);
}
