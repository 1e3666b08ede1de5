//! READ CAPACITY (10) and (16).

use tcmu::scsi::AdditionalSense;
use tcmu_handler::{Capabilities, Unmap};

use crate::disk::everything;
use crate::target::{Target, assert_illegal};

const READ_CAPACITY_10: [u8; 10] = [0x25, 0, 0, 0, 0, 0, 0, 0, 0, 0];

fn read_capacity_16(allocation_length: u8) -> [u8; 16] {
    let mut cdb = [0; 16];
    cdb[0] = 0x9e;
    cdb[1] = 0x10;
    cdb[13] = allocation_length;
    cdb
}

#[test]
fn a_disk_says_its_size() {
    let target = Target::new();
    assert_eq!(
        target.parameters(&READ_CAPACITY_10),
        [0, 0, 0x07, 0xff, 0, 0, 2, 0]
    );
    let data = target.parameters(&read_capacity_16(32));
    assert_eq!(data.len(), 32);
    assert_eq!(data[..12], [0, 0, 0, 0, 0, 0, 0x07, 0xff, 0, 0, 2, 0]);
    // No protection; 8 blocks in a physical one; LBPME and LBPRZ; aligned at 0.
    assert_eq!(data[12..16], [0, 3, 0xc0, 0]);
    assert_eq!(data[16..], [0; 16]);
}

#[test]
fn a_size_that_does_not_fit_says_so() {
    // A geometry alone: nothing is read.
    let mut capabilities = Capabilities::new(0);
    capabilities.size = 1 << 20;
    let target = Target::with(capabilities, false);
    let mut huge = capabilities;
    huge.size = (1 << 32) * 512 + 512;
    target.disk().capabilities.set(huge);
    target.unit.set_size(huge.size);
    target.no_data(&[0; 6]);
    assert_eq!(
        target.parameters(&READ_CAPACITY_10)[..4],
        [0xff, 0xff, 0xff, 0xff]
    );
    assert_eq!(
        target.parameters(&read_capacity_16(32))[..8],
        [0, 0, 0, 1, 0, 0, 0, 0]
    );
}

#[test]
fn provisioning_is_claimed_only_where_it_is_true() {
    let claims = |unmap| {
        let mut capabilities = everything(1 << 20);
        capabilities.unmap = unmap;
        Target::with(capabilities, true).parameters(&read_capacity_16(32))[14]
    };
    let unmap = |reads_zeroes| {
        Some(Unmap {
            granularity: 4096,
            reads_zeroes,
        })
    };
    assert_eq!(claims(None), 0);
    assert_eq!(claims(unmap(false)), 0x80);
    assert_eq!(claims(unmap(true)), 0xc0);
}

#[test]
fn the_allocation_length_bounds_the_data() {
    let target = Target::new();
    for len in [0, 1, 8, 12, 31] {
        let full = target.parameters(&read_capacity_16(32));
        let (response, data) = target.data_in(&read_capacity_16(len), 64);
        assert_eq!(response.read_len, Some(len.into()));
        assert_eq!(data[..len.into()], full[..len.into()]);
        assert!(data[len.into()..].iter().all(|&byte| byte == 0));
    }
}

#[test]
fn an_address_needs_pmi() {
    let target = Target::new();
    let mut cdb = READ_CAPACITY_10;
    cdb[5] = 1;
    let refused = target.data_in(&cdb, 8).0;
    assert_illegal(refused, AdditionalSense::INVALID_FIELD_IN_CDB);
    cdb[8] = 1;
    assert_eq!(target.parameters(&cdb).len(), 8);
    let mut cdb = read_capacity_16(32);
    cdb[9] = 1;
    let refused = target.data_in(&cdb, 32).0;
    assert_illegal(refused, AdditionalSense::INVALID_FIELD_IN_CDB);
}
