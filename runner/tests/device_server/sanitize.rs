//! SANITIZE.

use std::sync::Arc;

use tcmu::scsi::{AdditionalSense, SenseKey};
use tcmu_handler::ErrorKind;
use tcmu_runner::device_server::{Journal, Response};

use crate::disk::{Call, Kind, everything};
use crate::format_unit::{Notes, journaled};
use crate::target::{BLOCK, BLOCKS, Target, assert_good, assert_illegal, assert_sense, cdb};

const OVERWRITE: u8 = 0x01;
const BLOCK_ERASE: u8 = 0x02;
const CRYPTOGRAPHIC_ERASE: u8 = 0x03;
const EXIT_FAILURE_MODE: u8 = 0x1f;
const IMMED: u8 = 0x80;
const AUSE: u8 = 0x20;

fn sanitize(flags: u8, len: usize) -> [u8; 10] {
    let mut cdb = [0x48, flags, 0, 0, 0, 0, 0, 0, 0, 0];
    cdb[7..9].copy_from_slice(&(len as u16).to_be_bytes());
    cdb
}

fn overwrite_list(passes: u8, pattern: &[u8]) -> Vec<u8> {
    let mut list = vec![passes, 0];
    list.extend((pattern.len() as u16).to_be_bytes());
    list.extend(pattern);
    list
}

fn overwrite(target: &Target, flags: u8, passes: u8, pattern: &[u8]) -> Response {
    let list = overwrite_list(passes, pattern);
    target.data_out(&sanitize(OVERWRITE | flags, list.len()), &list)
}

fn image_is(target: &Target, expected: impl Fn(usize) -> u8) -> bool {
    let image = target.disk().image.borrow();
    image
        .iter()
        .enumerate()
        .all(|(at, &byte)| byte == expected(at))
}

fn failed(response: Response) {
    assert_sense(
        response,
        SenseKey::MediumError,
        AdditionalSense::SANITIZE_COMMAND_FAILED,
    );
}

#[test]
fn overwriting_writes_every_block_in_every_pass_and_flushes_each() {
    let target = Target::new();
    assert_good(overwrite(&target, 0, 3, &[1, 2, 3]));
    assert!(image_is(&target, |at| [1, 2, 3][at % BLOCK % 3]));
    target.disk().cut_power();
    assert!(image_is(&target, |at| [1, 2, 3][at % BLOCK % 3]));
    let mut written = 0;
    let mut passes = 0;
    for call in target.calls() {
        match call {
            Call::Write(extent, _) => written += extent.len,
            Call::Flush => {
                passes += 1;
                assert_eq!(written, passes * BLOCKS * BLOCK as u64);
            }
            other => panic!("{other:?} does not overwrite"),
        }
    }
    assert_eq!(passes, 3);
}

#[test]
fn zeroes_are_written_too() {
    let target = Target::new();
    target.disk().image.borrow_mut().fill(0x77);
    assert_good(overwrite(&target, 0, 1, &[0; 4]));
    assert!(image_is(&target, |_| 0));
    assert!(
        target
            .calls()
            .iter()
            .all(|call| matches!(call, Call::Write(..) | Call::Flush))
    );
}

#[test]
fn inverting_ends_with_the_pattern() {
    for (passes, first) in [(1, 0x0f), (2, 0xf0), (3, 0x0f)] {
        let notes = Arc::new(Notes::default());
        let target = journaled(2 << 20, &notes);
        assert_good(overwrite(&target, IMMED, 0x80 | passes, &[0x0f]));
        target.step_background();
        assert_eq!(target.disk().image.borrow()[0], first);
        target.finish_background();
        assert!(image_is(&target, |_| 0x0f));
    }
}

#[test]
fn block_erase_gives_everything_back() {
    let target = Target::new();
    target.disk().image.borrow_mut().fill(0x77);
    assert_good(target.no_data(&sanitize(BLOCK_ERASE, 0)));
    assert!(image_is(&target, |_| 0));
    for call in target.calls() {
        if let Call::WriteZeroes(_, flags) = call {
            assert!(flags.may_unmap);
        } else {
            assert_eq!(call, Call::Flush);
        }
    }
}

#[test]
fn block_erase_says_that_reads_go_on() {
    let page = |target: &Target| target.parameters(&[0x12, 1, 0xb1, 0, 64, 0]);
    assert_eq!(page(&Target::new())[7], 0x40);
    let mut capabilities = everything(1 << 20);
    capabilities.unmap = None;
    assert_eq!(page(&Target::with(capabilities, true))[7], 0);
}

#[test]
fn block_erase_is_there_only_where_zeroes_are_promised() {
    for change in [0, 1, 2] {
        let mut capabilities = everything(1 << 20);
        match change {
            0 => capabilities.unmap = None,
            1 => capabilities.write_zeroes = false,
            _ => {
                if let Some(unmap) = &mut capabilities.unmap {
                    unmap.reads_zeroes = false;
                }
            }
        }
        let target = Target::with(capabilities, true);
        let refused = target.no_data(&sanitize(BLOCK_ERASE, 0));
        assert_illegal(refused, AdditionalSense::INVALID_FIELD_IN_CDB);
        assert_eq!(target.calls(), []);
    }
}

#[test]
fn what_there_is_not_is_refused() {
    let target = Target::new();
    let invalid = AdditionalSense::INVALID_FIELD_IN_CDB;
    for action in (0..0x20).filter(|a| ![OVERWRITE, BLOCK_ERASE, EXIT_FAILURE_MODE].contains(a)) {
        assert_illegal(target.no_data(&sanitize(action, 0)), invalid);
    }
    assert_illegal(target.no_data(&sanitize(CRYPTOGRAPHIC_ERASE, 0)), invalid);
    // ZNR
    assert_illegal(target.no_data(&sanitize(0x40 | BLOCK_ERASE, 0)), invalid);
    for action in [BLOCK_ERASE, EXIT_FAILURE_MODE] {
        assert_illegal(target.data_out(&sanitize(action, 8), &[0; 8]), invalid);
    }
    let longest = overwrite_list(1, &[1; BLOCK]);
    for len in (0..5).chain([BLOCK + 5]) {
        let mut list = longest.clone();
        list.resize(len, 0);
        let refused = target.data_out(&sanitize(OVERWRITE, len), &list);
        assert_illegal(refused, invalid);
    }
    let invalid = AdditionalSense::INVALID_FIELD_IN_PARAMETER_LIST;
    assert_illegal(overwrite(&target, 0, 0, &[1]), invalid);
    assert_illegal(overwrite(&target, 0, 0x21, &[1]), invalid);
    for len in [[0, 0], [0, 2], [2, 1]] {
        let list = [1, 0, len[0], len[1], 9];
        let refused = target.data_out(&sanitize(OVERWRITE, 5), &list);
        assert_illegal(refused, invalid);
    }
    assert_eq!(target.calls(), []);
}

#[test]
fn while_it_runs_the_unit_is_not_ready() {
    let target = Target::with(everything(8 << 20), true);
    assert_good(overwrite(&target, IMMED, 2, &[7]));
    let mut last = 0;
    while target.step_background() {
        if !target.unit.has_background() {
            let response = target.no_data(&[0; 6]);
            let Some(sense) = response.sense else { break };
            assert_eq!(sense.key, SenseKey::NotReady);
            assert_eq!(sense.code, AdditionalSense::SANITIZE_IN_PROGRESS);
            assert!(sense.progress.unwrap() >= last);
            last = sense.progress.unwrap();
        }
    }
    assert!(last > 0xc000, "the second pass was not seen: {last:x}");
    assert_good(target.no_data(&[0; 6]));
}

#[test]
fn a_restricted_failure_ends_only_with_success() {
    let target = Target::new();
    target.disk().fail(Kind::Write, ErrorKind::Write);
    failed(overwrite(&target, 0, 1, &[1]));
    target.disk().heal();
    failed(target.no_data(&[0; 6]));
    failed(target.no_data(&cdb::ten(0x28, 0, 0, 0)));
    failed(target.no_data(&[0x04, 0, 0, 0, 0, 0]));
    let invalid = AdditionalSense::INVALID_FIELD_IN_CDB;
    assert_illegal(target.no_data(&sanitize(EXIT_FAILURE_MODE, 0)), invalid);
    assert_illegal(overwrite(&target, AUSE, 1, &[1]), invalid);
    failed(target.no_data(&[0; 6]));
    assert_good(overwrite(&target, 0, 1, &[1]));
    assert_good(target.no_data(&[0; 6]));
}

#[test]
fn an_unrestricted_failure_ends_when_told() {
    let target = Target::new();
    target.disk().fail(Kind::WriteZeroes, ErrorKind::Write);
    failed(target.no_data(&sanitize(BLOCK_ERASE | AUSE, 0)));
    target.disk().heal();
    failed(target.no_data(&[0; 6]));
    assert_good(target.no_data(&sanitize(EXIT_FAILURE_MODE, 0)));
    assert_good(target.no_data(&[0; 6]));
    // There is nothing to exit from.
    assert_good(target.no_data(&sanitize(EXIT_FAILURE_MODE, 0)));
}

#[test]
fn a_failure_is_still_seen_by_the_next_process() {
    let notes = Arc::new(Notes::default());
    let target = journaled(1 << 20, &notes);
    target.disk().fail(Kind::Write, ErrorKind::Write);
    failed(overwrite(&target, AUSE, 1, &[1]));
    let next = journaled(1 << 20, &notes);
    assert!(!next.unit.has_background());
    failed(next.no_data(&[0; 6]));
    assert_good(next.no_data(&sanitize(EXIT_FAILURE_MODE, 0)));
    assert_eq!(notes.load().unwrap(), None);
}
