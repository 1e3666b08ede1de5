//! FUA, the write cache and SYNCHRONIZE CACHE: what is durable when.

use std::future::Future;
use std::pin::pin;
use std::task::{Context, Waker};

use tcmu::scsi::{AdditionalSense, SenseKey};
use tcmu_handler::{Capabilities, ErrorKind, Extent, Fua, WriteFlags, testing};
use tcmu_runner::device_server::Request;

use crate::disk::{Call, Kind, everything};
use crate::target::{BLOCK, BLOCKS, Target, assert_good, assert_illegal, assert_sense, cdb};

const FUA: u8 = 0x08;
const DATA: [u8; BLOCK] = [0x5a; BLOCK];
const FIRST: Extent = Extent {
    offset: 0,
    len: BLOCK as u64,
};

fn volatile(fua: Fua) -> Capabilities {
    let mut capabilities = everything(BLOCKS * BLOCK as u64);
    capabilities.fua = fua;
    capabilities
}

fn write(fua: bool) -> Call {
    Call::Write(FIRST, WriteFlags { fua })
}

#[test]
fn fua_is_native_where_the_backstore_has_it() {
    let target = Target::with(volatile(Fua::Native), true);
    assert_good(target.data_out(&cdb::ten(0x2a, FUA, 0, 1), &DATA));
    assert_eq!(target.calls(), [write(true)]);
    assert_good(target.data_out(&cdb::ten(0x2a, 0, 0, 1), &DATA));
    assert_eq!(target.calls(), [write(false)]);
}

#[test]
fn fua_is_a_flush_where_the_backstore_has_none() {
    let target = Target::with(volatile(Fua::Emulate), true);
    assert_good(target.data_out(&cdb::ten(0x2a, FUA, 0, 1), &DATA));
    assert_eq!(target.calls(), [write(false), Call::Flush]);
    target.disk().cut_power();
    assert_eq!(target.disk().image.borrow()[..BLOCK], DATA);
}

#[test]
fn fua_costs_nothing_without_a_volatile_cache() {
    for fua in [Fua::Emulate, Fua::Native] {
        let mut capabilities = volatile(fua);
        capabilities.volatile_cache = false;
        let target = Target::with(capabilities, true);
        assert_good(target.data_out(&cdb::ten(0x2a, FUA, 0, 1), &DATA));
        assert_good(target.data_in(&cdb::ten(0x28, FUA, 0, 1), BLOCK).0);
        assert_good(target.no_data(&cdb::ten(0x35, 0, 0, 0)));
        assert_eq!(target.calls(), [write(false), Call::Read(FIRST)]);
    }
}

#[test]
fn a_read_with_fua_comes_from_the_medium() {
    let target = Target::with(volatile(Fua::Native), true);
    assert_good(target.data_in(&cdb::ten(0x28, FUA, 0, 1), BLOCK).0);
    assert_eq!(target.calls(), [Call::Flush, Call::Read(FIRST)]);
}

#[test]
fn without_write_cache_every_write_is_durable() {
    for fua in [Fua::Emulate, Fua::Native] {
        let target = Target::with(volatile(fua), false);
        let blocks = |first, last| {
            // Whatever is not durable by now is gone.
            target.disk().cut_power();
            target.disk().image.borrow()[first * BLOCK..last * BLOCK].to_vec()
        };
        assert_good(target.data_out(&cdb::ten(0x2a, 0, 0, 1), &DATA));
        assert_eq!(blocks(0, 1), DATA);
        assert_good(target.data_out(&cdb::ten(0x41, 0, 8, 8), &DATA));
        assert_eq!(blocks(8, 16), DATA.repeat(8));
        assert_good(target.data_out(&cdb::ten(0x41, 0, 12, 4), &[0; BLOCK]));
        assert_eq!(blocks(12, 16), [0; 4 * BLOCK]);
    }
}

#[test]
fn without_write_cache_unmapped_blocks_stay_unmapped() {
    let target = Target::with(volatile(Fua::Native), false);
    assert_good(target.data_out(&cdb::ten(0x41, 0, 0, 8), &DATA));
    let mut list = [0; 24];
    list[1] = 22;
    list[3] = 16;
    list[19] = 8;
    assert_good(target.data_out(&cdb::ten(0x42, 0, 0, 24), &list));
    target.disk().cut_power();
    assert!(target.disk().image.borrow().iter().all(|&byte| byte == 0));
}

#[test]
fn synchronize_cache_flushes() {
    let target = Target::with(volatile(Fua::Native), true);
    let immed = 0x02;
    for cdb in [
        cdb::ten(0x35, 0, 0, 0).to_vec(),
        cdb::ten(0x35, immed, 7, 1).to_vec(),
        cdb::sixteen(0x91, 0, 0, 0).to_vec(),
        cdb::sixteen(0x91, immed, BLOCKS - 1, 1).to_vec(),
    ] {
        assert_good(target.data_out(&cdb::ten(0x2a, 0, 0, 1), &[cdb[0]; BLOCK]));
        assert_good(target.no_data(&cdb));
        assert_eq!(target.calls(), [write(false), Call::Flush]);
        target.disk().cut_power();
        assert_eq!(target.disk().image.borrow()[..BLOCK], [cdb[0]; BLOCK]);
    }
    let beyond = target.no_data(&cdb::sixteen(0x91, 0, BLOCKS, 1));
    assert_illegal(beyond, AdditionalSense::LOGICAL_BLOCK_ADDRESS_OUT_OF_RANGE);
}

#[test]
fn stopping_the_unit_flushes_and_leaves_it_ready() {
    let target = Target::with(volatile(Fua::Native), true);
    let (stop, stop_no_flush, start) = (0, 4, 1);
    assert_good(target.no_data(&[0x1b, 0, 0, 0, stop, 0]));
    assert_eq!(target.calls(), [Call::Flush]);
    assert_good(target.no_data(&[0x1b, 0, 0, 0, stop_no_flush, 0]));
    assert_good(target.no_data(&[0x1b, 1, 0, 0, start, 0]));
    assert_good(target.no_data(&[0x00, 0, 0, 0, 0, 0]));
    assert_eq!(target.calls(), []);
    let eject = target.no_data(&[0x1b, 0, 0, 0, 0x02, 0]);
    assert_illegal(eject, AdditionalSense::INVALID_FIELD_IN_CDB);
    let standby = target.no_data(&[0x1b, 0, 0, 0, 0x30, 0]);
    assert_illegal(standby, AdditionalSense::INVALID_FIELD_IN_CDB);
}

#[test]
fn turning_the_cache_off_makes_earlier_writes_durable() {
    let target = Target::with(volatile(Fua::Native), true);
    assert_good(target.data_out(&cdb::ten(0x2a, 0, 0, 1), &DATA));
    testing::block_on(target.unit.set_write_cache(&target.io, false)).unwrap();
    assert!(!target.unit.write_cache());
    target.disk().cut_power();
    assert_eq!(target.disk().image.borrow()[..BLOCK], DATA);
}

#[test]
fn a_write_that_ends_after_the_cache_was_turned_off_is_durable() {
    for fua in [Fua::Emulate, Fua::Native] {
        let target = Target::with(volatile(fua), true);
        target.disk().slow_down_writes();
        let data = testing::scattered(&DATA, 100);
        let request = Request {
            cdb: &cdb::ten(0x2a, 0, 0, 1),
            data: data.view(),
        };
        let mut write_under_way = pin!(target.unit.execute(&target.io, request));
        let mut context = Context::from_waker(Waker::noop());
        assert!(write_under_way.as_mut().poll(&mut context).is_pending());
        testing::block_on(target.unit.set_write_cache(&target.io, false)).unwrap();
        target.calls();
        assert_good(testing::block_on(write_under_way));
        assert_eq!(target.calls(), [Call::Flush]);
    }
}

#[test]
fn the_cache_stays_on_if_it_cannot_be_flushed() {
    let target = Target::with(volatile(Fua::Native), true);
    target.disk().fail(Kind::Flush, ErrorKind::Write);
    testing::block_on(target.unit.set_write_cache(&target.io, false)).unwrap_err();
    assert!(target.unit.write_cache());
    assert_good(target.no_data(&[0; 6]));
}

#[test]
fn a_flush_that_fails_fails_the_command() {
    let target = Target::with(volatile(Fua::Emulate), true);
    target.disk().fail(Kind::Flush, ErrorKind::Write);
    for response in [
        target.no_data(&cdb::ten(0x35, 0, 0, 0)),
        target.data_out(&cdb::ten(0x2a, FUA, 0, 1), &DATA),
        target.data_in(&cdb::ten(0x28, FUA, 0, 1), BLOCK).0,
        target.no_data(&[0x1b, 0, 0, 0, 0, 0]),
    ] {
        assert_sense(
            response,
            SenseKey::MediumError,
            AdditionalSense::WRITE_ERROR,
        );
    }
}
