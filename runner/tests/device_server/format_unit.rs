//! FORMAT UNIT.

use std::cell::RefCell;
use std::io;
use std::num::NonZeroU32;
use std::pin::pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};

use tcmu::scsi::{AdditionalSense, SenseKey, Status};
use tcmu_handler::{ErrorKind, testing};
use tcmu_runner::device_server::{Geometry, Identity, Journal, LogicalUnit, Request, Response};

use crate::disk::{Call, Disk, Kind, everything};
use crate::target::{BLOCK, BLOCKS, Target, assert_good, assert_illegal, assert_sense, cdb};

/// FMTDATA.
const FMTDATA: u8 = 0x10;
const LONGLIST: u8 = 0x20;
const FOV: u8 = 0x80;
const IP: u8 = 0x08;
const IMMED: u8 = 0x02;

fn format(flags: u8) -> [u8; 6] {
    [0x04, flags, 0, 0, 0, 0]
}

/// A unit whose blocks are all 0x77.
fn used() -> Target {
    let target = Target::new();
    target.disk().image.borrow_mut().fill(0x77);
    target
}

fn image_is(target: &Target, expected: impl Fn(usize) -> u8) -> bool {
    let image = target.disk().image.borrow();
    image
        .iter()
        .enumerate()
        .all(|(at, &byte)| byte == expected(at))
}

fn not_ready(response: Response) -> u16 {
    assert_sense(
        response,
        SenseKey::NotReady,
        AdditionalSense::FORMAT_IN_PROGRESS,
    );
    response.sense.and_then(|sense| sense.progress).unwrap()
}

#[test]
fn every_block_reads_as_zeroes_and_stays_so() {
    let target = used();
    assert_good(target.no_data(&format(0)));
    assert!(image_is(&target, |_| 0));
    target.disk().cut_power();
    assert!(image_is(&target, |_| 0), "it was not durable");
    assert_good(target.no_data(&[0; 6]));
}

#[test]
fn a_backstore_that_zeroes_nothing_is_written_to() {
    let mut capabilities = everything(BLOCKS * BLOCK as u64);
    capabilities.write_zeroes = false;
    capabilities.unmap = None;
    let target = Target::with(capabilities, true);
    target.disk().image.borrow_mut().fill(0x77);
    assert_good(target.no_data(&format(0)));
    assert!(image_is(&target, |_| 0));
    assert!(
        target
            .calls()
            .iter()
            .all(|call| matches!(call, Call::Write(..) | Call::Flush))
    );
}

#[test]
fn a_pattern_is_repeated_in_each_block() {
    let target = used();
    let list = [0, FOV | IP, 0, 0, 0, 1, 0, 3, b'a', b'b', b'c'];
    assert_good(target.data_out(&format(FMTDATA), &list));
    assert!(image_is(&target, |at| b"abc"[at % BLOCK % 3]));
}

#[test]
fn a_secure_default_pattern_is_really_written() {
    let target = used();
    let list = [0, FOV | IP, 0, 0, 0x20, 0, 0, 0];
    assert_good(target.data_out(&format(FMTDATA), &list));
    assert!(image_is(&target, |_| 0));
    let written: u64 = target
        .calls()
        .iter()
        .map(|call| match call {
            Call::Write(extent, _) => extent.len,
            _ => 0,
        })
        .sum();
    assert_eq!(written, BLOCKS * BLOCK as u64);
}

#[test]
fn lists_that_say_what_there_is_not_are_refused() {
    let target = used();
    let refused = AdditionalSense::INVALID_FIELD_IN_PARAMETER_LIST;
    let short: &[&[u8]] = &[
        // PROTECTION FIELD USAGE
        &[1, 0, 0, 0],
        // Options without FOV
        &[0, 0x20, 0, 0],
        &[0, IP, 0, 0, 0, 0, 0, 0],
        // Obsolete and vendor's bits
        &[0, FOV | 0x04, 0, 0],
        &[0, FOV | 0x01, 0, 0],
        // A defect list
        &[0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0, 0],
        // Patterns: a type that there is not, a length that does not fit
        &[0, FOV | IP, 0, 0, 0, 2, 0, 1, 0],
        &[0, FOV | IP, 0, 0, 0, 1, 0, 0],
        &[0, FOV | IP, 0, 0, 0, 1, 2, 1],
        &[0, FOV | IP, 0, 0, 0, 0, 0, 1, 0],
        &[0, FOV | IP, 0, 0, 0x40, 0, 0, 0],
    ];
    for list in short {
        assert_illegal(target.data_out(&format(FMTDATA), list), refused);
    }
    let long: &[&[u8]] = &[
        // P_I_INFORMATION and PROTECTION INTERVAL EXPONENT
        &[0, 0, 0, 0x10, 0, 0, 0, 0],
        &[0, 0, 0, 0x01, 0, 0, 0, 0],
        &[0, 0, 0, 0, 0, 1, 0, 0],
    ];
    for list in long {
        assert_illegal(target.data_out(&format(FMTDATA | LONGLIST), list), refused);
    }
    let too_short = AdditionalSense::PARAMETER_LIST_LENGTH_ERROR;
    for (flags, list) in [
        (FMTDATA, &[0, 0, 0][..]),
        (FMTDATA | LONGLIST, &[0, 0, 0, 0, 0, 0, 0]),
        (FMTDATA, &[0, FOV | IP, 0, 0, 0, 1, 0]),
        (FMTDATA, &[0, FOV | IP, 0, 0, 0, 1, 0, 2, 9]),
    ] {
        assert_illegal(target.data_out(&format(flags), list), too_short);
    }
    assert_eq!(target.calls(), []);
    assert_good(target.no_data(&[0; 6]));
}

#[test]
fn cdbs_that_say_what_there_is_not_are_refused() {
    let target = used();
    // FMTPINFO, and a list's description without a list.
    for flags in [0x40, 0x80, 0xd0, 0x08, 0x20, 0x05] {
        let refused = target.no_data(&format(flags));
        assert_illegal(refused, AdditionalSense::INVALID_FIELD_IN_CDB);
    }
    assert_eq!(target.calls(), []);
}

#[test]
fn options_on_defects_and_long_lists_are_accepted() {
    let target = used();
    let all = FOV | 0x40 | 0x20 | 0x10;
    assert_good(target.data_out(&format(FMTDATA | 0x08), &[0, all, 0, 0]));
    target.disk().image.borrow_mut().fill(0x77);
    let list = [0, FOV | IP, 0, 0, 0, 0, 0, 0, 0, 1, 0, 1, 5];
    assert_good(target.data_out(&format(FMTDATA | LONGLIST), &list));
    assert!(image_is(&target, |_| 5));
}

/// A unit of 16 MiB that is being formatted with a pattern, and is not ready.
fn formatting() -> Target {
    let target = Target::with(everything(16 << 20), true);
    let list = [0, FOV | IP | IMMED, 0, 0, 0, 1, 0, 1, 9];
    assert_good(target.data_out(&format(FMTDATA), &list));
    target
}

#[test]
fn while_it_runs_commands_hear_how_far_it_is() {
    let target = formatting();
    let mut last = not_ready(target.no_data(&[0; 6]));
    let mut seen = 0;
    while target.step_background() {
        let response = target.data_in(&cdb::ten(0x28, 0, 0, 1), 512).0;
        if response.status == Status::Good {
            break;
        }
        let progress = not_ready(response);
        assert!(progress >= last);
        seen += usize::from(progress > last);
        last = progress;
    }
    assert!(seen >= 14, "progress was seen to change {seen} times only");
    assert!(image_is(&target, |_| 9));
    assert_good(target.no_data(&[0; 6]));
}

#[test]
fn what_was_under_way_before_ends_first() {
    let target = Target::new();
    target.disk().slow_down_writes();
    let buffer = testing::scattered(&[0x77; BLOCK], 300);
    let write = cdb::ten(0x2a, 0, 5, 1);
    let request = Request {
        cdb: &write,
        data: buffer.view(),
    };
    let mut writing = pin!(target.unit.execute(&target.io, request));
    let mut context = Context::from_waker(Waker::noop());
    assert!(writing.as_mut().poll(&mut context).is_pending());
    let list = [0, FOV | IP | IMMED, 0, 0, 0, 1, 0, 1, 9];
    assert_good(target.data_out(&format(FMTDATA), &list));
    for _ in 0..5 {
        target.step_background();
    }
    assert_eq!(target.calls().len(), 1, "the format did not wait");
    assert!(writing.as_mut().poll(&mut context).is_ready());
    target.finish_background();
    assert!(image_is(&target, |_| 9));
}

#[test]
fn while_it_runs_the_unit_still_says_what_it_is() {
    let target = formatting();
    for _ in 0..4 {
        target.step_background();
    }
    assert!(!target.parameters(&[0x12, 0, 0, 0, 96, 0]).is_empty());
    let sense = target.parameters(&[0x03, 0, 0, 0, 252, 0]);
    assert_eq!((sense[2] & 0x0f, sense[12], sense[13]), (2, 4, 4));
    assert_eq!(sense[15] & 0x80, 0x80, "no progress");
    assert_ne!(sense[16], 0, "no progress");
    for cdb in [
        &format(0)[..],
        &cdb::ten(0x35, 0, 0, 0),
        &cdb::ten(0x25, 0, 0, 0),
        &[0x1b, 0, 0, 0, 1, 0],
    ] {
        not_ready(target.no_data(cdb));
    }
}

#[test]
fn a_write_error_is_reported_and_leaves_the_medium_corrupted() {
    let target = used();
    let list = [0, FOV | IP, 0, 0, 0, 1, 0, 1, 9];
    target.disk().fail(Kind::Write, ErrorKind::Write);
    assert_sense(
        target.data_out(&format(FMTDATA), &list),
        SenseKey::MediumError,
        AdditionalSense::FORMAT_COMMAND_FAILED,
    );
    target.disk().heal();
    for cdb in [&[0; 6][..], &cdb::ten(0x28, 0, 0, 0)] {
        assert_sense(
            target.no_data(cdb),
            SenseKey::MediumError,
            AdditionalSense::MEDIUM_FORMAT_CORRUPTED,
        );
    }
    assert_good(target.no_data(&format(0)));
    assert_good(target.no_data(&[0; 6]));
}

#[test]
fn a_flush_that_fails_is_a_failure() {
    let target = used();
    target.disk().fail(Kind::Flush, ErrorKind::Write);
    assert_sense(
        target.no_data(&format(0)),
        SenseKey::MediumError,
        AdditionalSense::FORMAT_COMMAND_FAILED,
    );
}

#[test]
fn a_unit_of_more_than_4_gi_blocks_is_formatted_to_its_end() {
    let target = Target::new();
    let mut huge = everything(0);
    huge.size = (1 << 32) * BLOCK as u64 + (1 << 20);
    target.disk().capabilities.set(huge);
    target.disk().forget_contents();
    target.unit.set_size(huge.size);
    target.no_data(&[0; 6]);
    assert_good(target.no_data(&format(0)));
    let mut at = 0;
    for call in target.calls() {
        if let Call::WriteZeroes(extent, _) = call {
            assert_eq!(extent.offset, at);
            at = extent.end();
        }
    }
    assert_eq!(at, huge.size);
}

#[test]
fn write_protection_holds() {
    let mut capabilities = everything(1 << 20);
    capabilities.read_only = true;
    let target = Target::with(capabilities, false);
    assert_sense(
        target.no_data(&format(0)),
        SenseKey::DataProtect,
        AdditionalSense::WRITE_PROTECTED,
    );
}

/// A journal in memory, which can fail.
#[derive(Debug, Default)]
pub(crate) struct Notes {
    pub(crate) text: Mutex<Option<String>>,
    pub(crate) failing: Mutex<bool>,
}

impl Journal for Notes {
    fn load(&self) -> io::Result<Option<String>> {
        Ok(self.text.lock().unwrap().clone())
    }

    fn store(&self, text: Option<&str>) -> io::Result<()> {
        if *self.failing.lock().unwrap() {
            return Err(io::Error::other("as told"));
        }
        *self.text.lock().unwrap() = text.map(str::to_owned);
        Ok(())
    }
}

/// A unit on a disk of `size` bytes with this journal.
pub(crate) fn journaled(size: u64, notes: &Arc<Notes>) -> Target {
    let geometry = Geometry {
        size,
        block_size: NonZeroU32::new(BLOCK as u32).unwrap(),
        max_transfer_blocks: 0,
    };
    let disk = Disk::new(everything(size));
    let mut unit = LogicalUnit::new(disk, Identity::default(), geometry, true);
    let text = notes.load().unwrap();
    unit.keep_journal(notes.clone(), text.as_deref());
    Target::serving(unit)
}

#[test]
fn an_interrupted_format_goes_on_with_the_next_process() {
    let notes = Arc::new(Notes::default());
    let target = journaled(8 << 20, &notes);
    let list = [0, FOV | IP | IMMED, 0, 0, 0, 1, 0, 1, 9];
    assert_good(target.data_out(&format(FMTDATA), &list));
    target.step_background();
    target.unit.stop_background();
    target.finish_background();
    assert!(!image_is(&target, |_| 9));
    assert!(notes.load().unwrap().is_some());

    let next = journaled(8 << 20, &notes);
    not_ready(next.no_data(&[0; 6]));
    next.finish_background();
    assert!(image_is(&next, |_| 9));
    assert_good(next.no_data(&[0; 6]));
    assert_eq!(notes.load().unwrap(), None);
}

#[test]
fn a_command_that_waits_for_an_interrupted_format_hears_that_it_goes_on() {
    let notes = Arc::new(Notes::default());
    let target = journaled(8 << 20, &notes);
    let buffer = testing::buffer(0);
    let cdb = format(0);
    let request = Request {
        cdb: &cdb,
        data: buffer.view(),
    };
    let response = RefCell::new(None);
    let command = async {
        response.replace(Some(target.unit.execute(&target.io, request).await));
    };
    let stop = async {
        target.unit.stop_background();
        target.unit.background(&target.io).await;
    };
    testing::block_on(both(command, stop));
    not_ready(response.take().unwrap());
}

/// Runs two futures to their ends, the first one first.
async fn both(first: impl Future<Output = ()>, second: impl Future<Output = ()>) {
    let (mut first, mut second) = (pin!(first), pin!(second));
    let (mut first_done, mut second_done) = (false, false);
    std::future::poll_fn(|context| {
        first_done = first_done || first.as_mut().poll(context).is_ready();
        second_done = second_done || second.as_mut().poll(context).is_ready();
        if first_done && second_done {
            Poll::Ready(())
        } else {
            Poll::Pending
        }
    })
    .await;
}

#[test]
fn nothing_is_formatted_that_could_not_be_noted() {
    let notes = Arc::new(Notes::default());
    let target = journaled(1 << 20, &notes);
    *notes.failing.lock().unwrap() = true;
    assert_sense(
        target.no_data(&format(0)),
        SenseKey::HardwareError,
        AdditionalSense::INTERNAL_TARGET_FAILURE,
    );
    assert_eq!(target.calls(), []);
    assert_good(target.no_data(&[0; 6]));
}

#[test]
fn a_journal_that_is_not_understood_is_passed_over() {
    for text in ["", "nonsense", "method = \"format\"\npasses = 0"] {
        let notes = Arc::new(Notes::default());
        *notes.text.lock().unwrap() = Some(text.to_owned());
        let target = journaled(1 << 20, &notes);
        assert_good(target.no_data(&[0; 6]));
        assert!(!target.unit.has_background());
    }
}
