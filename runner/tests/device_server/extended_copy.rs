//! EXTENDED COPY within one logical unit, and RECEIVE COPY RESULTS.

use tcmu::scsi::{AdditionalSense, SenseKey};
use tcmu_handler::ErrorKind;
use tcmu_runner::device_server::Response;

use crate::disk::{Kind, everything};
use crate::target::{BLOCK, BLOCKS, Target, assert_good, assert_illegal, assert_sense};

const OWN: u16 = 0xffff;

/// A block device to block device segment.
#[derive(Clone, Copy)]
struct Segment {
    source: u16,
    destination: u16,
    blocks: u16,
    from: u64,
    to: u64,
}

fn segment(blocks: u16, from: u64, to: u64) -> Segment {
    Segment {
        source: 0,
        destination: 0,
        blocks,
        from,
        to,
    }
}

fn cscd(naa: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0xe4, 0, 0, 0, 1, 3, 0, naa.len() as u8];
    bytes.extend(naa);
    bytes.resize(29, 0);
    bytes.extend([0, 2, 0]);
    bytes
}

fn list(cscds: &[Vec<u8>], segments: &[Segment]) -> Vec<u8> {
    let mut list = vec![7, 0];
    list.extend((cscds.len() as u16 * 32).to_be_bytes());
    list.extend([0; 4]);
    list.extend((segments.len() as u32 * 28).to_be_bytes());
    list.extend([0; 4]);
    list.extend(cscds.concat());
    for segment in segments {
        list.extend([2, 0, 0, 0x18]);
        list.extend(segment.source.to_be_bytes());
        list.extend(segment.destination.to_be_bytes());
        list.extend([0; 2]);
        list.extend(segment.blocks.to_be_bytes());
        list.extend(segment.from.to_be_bytes());
        list.extend(segment.to.to_be_bytes());
    }
    list
}

/// The unit's own NAA designator, as it says itself.
fn own_naa(target: &Target) -> Vec<u8> {
    let page = target.parameters(&[0x12, 1, 0x83, 0, 255, 0]);
    assert_eq!(page[4..8], [1, 3, 0, 16]);
    page[8..24].to_vec()
}

fn copy_list(target: &Target, list: &[u8]) -> Response {
    let mut cdb = [0; 16];
    cdb[0] = 0x83;
    cdb[10..14].copy_from_slice(&(list.len() as u32).to_be_bytes());
    target.data_out(&cdb, list)
}

fn copy(target: &Target, segments: &[Segment]) -> Response {
    copy_list(target, &list(&[cscd(&own_naa(target))], segments))
}

fn results(action: u8, list_identifier: u8) -> [u8; 16] {
    let mut cdb = [0; 16];
    cdb[0] = 0x84;
    cdb[1] = action;
    cdb[2] = list_identifier;
    cdb[12] = 4;
    cdb
}

/// A unit whose blocks are numbered.
fn numbered() -> Target {
    let target = Target::new();
    let mut image = target.disk().image.borrow_mut();
    for (number, block) in image.chunks_mut(BLOCK).enumerate() {
        block.fill(number as u8);
        block[..8].copy_from_slice(&(number as u64).to_be_bytes());
    }
    drop(image);
    target
}

fn blocks(target: &Target) -> Vec<u64> {
    let image = target.disk().image.borrow();
    image
        .chunks(BLOCK)
        .map(|block| u64::from_be_bytes(block[..8].try_into().unwrap()))
        .collect()
}

#[test]
fn blocks_are_copied_and_nothing_else() {
    let target = numbered();
    let mut expected: Vec<u64> = (0..BLOCKS).collect();
    expected.copy_within(3..13, 1000);
    expected.copy_within(5..6, 2047);
    assert_good(copy(&target, &[segment(10, 3, 1000), segment(1, 5, 2047)]));
    assert!(blocks(&target) == expected);
}

#[test]
fn a_copy_may_reach_into_itself() {
    for (from, to) in [(0, 1), (1, 0), (0, 300), (300, 0)] {
        let target = numbered();
        let mut expected: Vec<u64> = (0..BLOCKS).collect();
        expected.copy_within(from..from + 1500, to);
        assert_good(copy(&target, &[segment(1500, from as u64, to as u64)]));
        assert!(blocks(&target) == expected, "{from} to {to}");
    }
}

#[test]
fn the_unit_itself_has_an_id() {
    let target = numbered();
    let own = Segment {
        source: OWN,
        destination: OWN,
        ..segment(1, 9, 10)
    };
    assert_good(copy_list(&target, &list(&[], &[own])));
    assert_eq!(blocks(&target)[10], 9);
}

#[test]
fn without_the_write_cache_copies_are_durable() {
    for native in [true, false] {
        let mut capabilities = everything(BLOCKS * BLOCK as u64);
        if !native {
            capabilities.fua = tcmu_handler::Fua::Emulate;
        }
        let target = Target::with(capabilities, false);
        target.disk().image.borrow_mut()[..BLOCK].fill(5);
        assert_good(copy(&target, &[segment(1, 0, 8)]));
        target.disk().cut_power();
        assert_eq!(target.disk().image.borrow()[8 * BLOCK], 5);
    }
}

#[test]
fn no_list_and_no_blocks_are_no_errors() {
    let target = numbered();
    assert_good(copy_list(&target, &[]));
    assert_good(copy(&target, &[]));
    assert_good(copy(&target, &[segment(0, BLOCKS, BLOCKS)]));
    assert!(blocks(&target) == (0..BLOCKS).collect::<Vec<_>>());
}

#[test]
fn lists_whose_form_is_wrong_copy_nothing() {
    let target = numbered();
    let naa = own_naa(&target);
    let good = list(&[cscd(&naa)], &[segment(1, 0, 8)]);
    for len in 1..good.len() {
        let error = AdditionalSense::PARAMETER_LIST_LENGTH_ERROR;
        assert_illegal(copy_list(&target, &good[..len]), error);
    }
    let with = |at: usize, byte: u8| {
        let mut list = good.clone();
        list[at] = byte;
        copy_list(&target, &list)
    };
    let field = AdditionalSense::INVALID_FIELD_IN_PARAMETER_LIST;
    assert_illegal(with(1, 0x08), field);
    assert_illegal(with(1, 0x18), field);
    assert_illegal(with(3, 31), field);
    assert_illegal(with(51, 0x17), field);
    assert_illegal(with(15, 1), AdditionalSense::INLINE_DATA_LENGTH_EXCEEDED);
    let code = AdditionalSense::UNSUPPORTED_TARGET_DESCRIPTOR_TYPE_CODE;
    assert_illegal(with(16, 0xe0), code);
    let code = AdditionalSense::UNSUPPORTED_SEGMENT_DESCRIPTOR_TYPE_CODE;
    assert_illegal(with(48, 0x03), code);
    assert!(blocks(&target) == (0..BLOCKS).collect::<Vec<_>>());
}

#[test]
fn the_limits_are_those_that_are_reported() {
    let target = numbered();
    let naa = own_naa(&target);
    let parameters = target.parameters(&results(3, 0));
    let count = |at: usize| usize::from(u16::from_be_bytes([parameters[at], parameters[at + 1]]));
    let (cscds, segments) = (count(8), count(10));
    let most = u32::from_be_bytes(parameters[12..16].try_into().unwrap()) as usize;
    let many = |cscds, segments| {
        let list = list(&vec![cscd(&naa); cscds], &vec![segment(1, 0, 8); segments]);
        copy_list(&target, &list)
    };
    assert_good(many(cscds, segments));
    assert_illegal(
        many(cscds + 1, 1),
        AdditionalSense::TOO_MANY_TARGET_DESCRIPTORS,
    );
    assert_illegal(
        many(1, segments + 1),
        AdditionalSense::TOO_MANY_SEGMENT_DESCRIPTORS,
    );
    assert_illegal(
        many(cscds + 1, most / 28),
        AdditionalSense::PARAMETER_LIST_LENGTH_ERROR,
    );
}

#[test]
fn ends_that_cannot_be_reached_abort_the_copy() {
    let target = numbered();
    let naa = own_naa(&target);
    let aborted = |response, code| assert_sense(response, SenseKey::CopyAborted, code);
    let missing = Segment {
        destination: 1,
        ..segment(1, 0, 8)
    };
    aborted(
        copy(&target, &[missing]),
        AdditionalSense::UNREACHABLE_COPY_TARGET,
    );
    // Another unit's designator, and one that is no NAA designator.
    let mut others = naa.clone();
    others[15] ^= 1;
    let not_reachable = AdditionalSense::COPY_TARGET_DEVICE_NOT_REACHABLE;
    for cscds in [cscd(&others), cscd(&naa[..8])] {
        let list = list(&[cscds], &[segment(1, 0, 8)]);
        aborted(copy_list(&target, &list), not_reachable);
    }
    let wrong_type = AdditionalSense::INCORRECT_COPY_TARGET_DEVICE_TYPE;
    let mut tape = cscd(&naa);
    tape[1] = 1;
    aborted(
        copy_list(&target, &list(&[tape], &[segment(1, 0, 8)])),
        wrong_type,
    );
    let mut large_blocks = cscd(&naa);
    large_blocks[30] = 0x10;
    aborted(
        copy_list(&target, &list(&[large_blocks], &[segment(1, 0, 8)])),
        wrong_type,
    );
    assert!(blocks(&target) == (0..BLOCKS).collect::<Vec<_>>());
}

#[test]
fn a_segment_that_does_not_fit_ends_the_copy_there() {
    let target = numbered();
    for (from, to) in [(BLOCKS, 0), (0, BLOCKS), (u64::MAX, 0), (0, u64::MAX)] {
        let response = copy(&target, &[segment(1, 3, 8), segment(1, from, to)]);
        assert_sense(
            response,
            SenseKey::CopyAborted,
            AdditionalSense::NO_ADDITIONAL_SENSE_INFORMATION,
        );
    }
    assert_eq!(blocks(&target)[8], 3);
}

#[test]
fn status_and_failures_are_told_afterwards() {
    let target = numbered();
    let invalid = AdditionalSense::INVALID_FIELD_IN_CDB;
    assert_illegal(target.data_in(&results(0, 7), 64).0, invalid);
    assert_good(copy(&target, &[segment(2, 0, 8), segment(1, 0, 8)]));
    let status = target.parameters(&results(0, 7));
    assert_eq!(status, [0, 0, 0, 8, 0x81, 0, 2, 0, 0, 0, 6, 0]);
    assert_illegal(target.data_in(&results(0, 6), 64).0, invalid);
    assert_illegal(target.data_in(&results(4, 7), 64).0, invalid);

    target.disk().fail(Kind::Write, ErrorKind::NoSpace);
    assert_sense(
        copy(&target, &[segment(2, 0, 8)]),
        SenseKey::CopyAborted,
        AdditionalSense::THIRD_PARTY_DEVICE_FAILURE,
    );
    let status = target.parameters(&results(0, 7));
    assert_eq!(status, [0, 0, 0, 8, 0x82, 0, 0, 0, 0, 0, 0, 0]);
    let details = target.parameters(&results(4, 7));
    assert_eq!(details[56], 0x02);
    assert_eq!(details[58..60], [0, 18]);
    assert_eq!((details[62], details[72], details[73]), (0x0a, 0x0d, 0x01));
    assert_eq!(details.len(), 78);
    assert_eq!(details[..4], [0, 0, 0, 74]);
}

#[test]
fn a_reset_forgets_what_became_of_copies() {
    let target = numbered();
    assert_good(copy(&target, &[segment(1, 0, 8)]));
    assert!(!target.parameters(&results(0, 7)).is_empty());
    target.unit.reset();
    let invalid = AdditionalSense::INVALID_FIELD_IN_CDB;
    assert_illegal(target.data_in(&results(0, 7), 64).0, invalid);
}

#[test]
fn a_list_without_an_identifier_leaves_no_results() {
    let target = numbered();
    let mut list = list(&[cscd(&own_naa(&target))], &[segment(1, 0, 8)]);
    list[0] = 0;
    list[1] = 0x18;
    assert_good(copy_list(&target, &list));
    let invalid = AdditionalSense::INVALID_FIELD_IN_CDB;
    assert_illegal(target.data_in(&results(0, 0), 64).0, invalid);
}

#[test]
fn a_read_only_unit_is_no_destination() {
    let mut capabilities = everything(1 << 20);
    capabilities.read_only = true;
    let target = Target::with(capabilities, false);
    assert_sense(
        copy(&target, &[segment(1, 0, 8)]),
        SenseKey::CopyAborted,
        AdditionalSense::THIRD_PARTY_DEVICE_FAILURE,
    );
}

#[test]
fn the_third_party_copy_page_names_what_there_is() {
    let target = Target::new();
    let page = target.parameters(&[0x12, 1, 0x8f, 0, 255, 0]);
    let parameters = target.parameters(&results(3, 0));
    let mut at = 4;
    let mut types = Vec::new();
    while at < page.len() {
        let code = u16::from_be_bytes([page[at], page[at + 1]]);
        let len = usize::from(u16::from_be_bytes([page[at + 2], page[at + 3]]));
        assert_eq!(len % 4, 0);
        let body = &page[at + 4..at + 4 + len];
        match code {
            0x0001 => assert_eq!(body[..9], [8, 0x83, 1, 0, 0x84, 3, 0, 3, 4]),
            0x0004 => assert_eq!(body[4..12], parameters[8..16]),
            0x0008 => assert_eq!(body[..3], [2, 0x02, 0xe4]),
            0x000c => assert_eq!(body[..4], [0, 2, 0xff, 0xff]),
            0x8001 => {
                assert_eq!(len, 32);
                assert_eq!(body[8..12], parameters[16..20]);
            }
            other => panic!("descriptor {other:x}"),
        }
        types.push(code);
        at += 4 + len;
    }
    assert_eq!(types, [0x0001, 0x0004, 0x0008, 0x000c, 0x8001]);
    assert_eq!(at, page.len());
    assert!(target.parameters(&[0x12, 1, 0, 0, 255, 0])[4..].contains(&0x8f));
}
