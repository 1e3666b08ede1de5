//! INQUIRY, its vital product data pages, and REQUEST SENSE.

use tcmu::scsi::AdditionalSense;
use tcmu_handler::Capabilities;
use tcmu_runner::device_server::Identity;

use crate::disk::everything;
use crate::target::{Target, assert_illegal};

fn standard(allocation_length: u8) -> [u8; 6] {
    [0x12, 0, 0, 0, allocation_length, 0]
}

fn page(code: u8) -> [u8; 6] {
    [0x12, 1, code, 0x04, 0, 0]
}

#[test]
fn standard_data_name_the_disk() {
    let target = Target::new();
    let data = target.parameters(&standard(255));
    assert_eq!(data.len(), 96);
    assert_eq!(data[..8], [0, 0, 6, 2, 91, 8, 0, 2]);
    assert_eq!(&data[8..36], b"LIO-ORG TCMU device     0002");
    target.unit.set_identity(Identity {
        vendor: Some("ACME".to_owned()),
        product: Some("A product name that is too long".to_owned()),
        revision: Some("7".to_owned()),
        ..Identity::default()
    });
    target.no_data(&[0; 6]);
    let data = target.parameters(&standard(255));
    assert_eq!(&data[8..36], b"ACME    A product name t7   ");
}

#[test]
fn every_allocation_length_is_kept_to_and_leaks_nothing() {
    let target = Target::new();
    let full = target.parameters(&standard(255));
    for len in 0..=110u8 {
        let (response, data) = target.data_in(&standard(len), 128);
        let supplied = usize::from(len).min(full.len());
        assert_eq!(response.read_len, Some(supplied as u32));
        assert_eq!(data[..supplied], full[..supplied]);
        assert!(data[supplied..].iter().all(|&byte| byte == 0));
    }
    // A buffer shorter than what the CDB allows.
    let (response, data) = target.data_in(&standard(255), 36);
    assert_eq!(response.read_len, None);
    assert_eq!(data, full[..36]);
}

#[test]
fn what_there_is_not_is_refused() {
    let target = Target::new();
    for cdb in [
        [0x12, 0, 0x80, 0, 96, 0],
        [0x12, 2, 0, 0, 96, 0],
        [0x12, 1, 0xc0, 0, 96, 0],
        [0x12, 1, 0xb6, 0, 96, 0],
        [0x12, 0, 0, 0, 96, 4],
    ] {
        let (response, _) = target.data_in(&cdb, 96);
        assert_illegal(response, AdditionalSense::INVALID_FIELD_IN_CDB);
    }
}

#[test]
fn every_listed_page_is_there_and_says_its_length() {
    let target = Target::new();
    let pages = target.parameters(&page(0));
    assert_eq!(
        pages,
        [
            0, 0, 0, 9, 0x00, 0x80, 0x83, 0x86, 0x87, 0x8f, 0xb0, 0xb1, 0xb2
        ]
    );
    for &code in &pages[4..] {
        let data = target.parameters(&page(code));
        assert_eq!(data[..2], [0, code]);
        let length = usize::from(u16::from_be_bytes([data[2], data[3]]));
        assert_eq!(data.len(), length + 4);
    }
}

#[test]
fn identification_follows_from_the_serial_number() {
    let target = Target::new();
    let serial = "6f2d6a7e-1b1c-4d2e-9b1a-0123456789ab";
    assert_eq!(&target.parameters(&page(0x80))[4..], serial.as_bytes());
    let data = target.parameters(&page(0x83));
    let naa = [
        1, 3, 0, 16, 0x60, 0x01, 0x40, 0x56, 0xf2, 0xd6, 0xa7, 0xe1, 0xb1, 0xc4, 0xd2, 0xe9, 0xb1,
        0xa0, 0x12, 0x34,
    ];
    assert_eq!(data[4..24], naa);
    let text = format!("LIO-ORG TCMU device:{serial}");
    assert_eq!(data[24..28], [2, 1, 0, text.len() as u8]);
    assert_eq!(&data[28..], text.as_bytes());
}

#[test]
fn identification_without_serial_number() {
    let target = Target::new();
    target.unit.set_identity(Identity {
        name: "disk1".to_owned(),
        ..Identity::default()
    });
    assert_eq!(target.parameters(&page(0x80)), *b"\0\x80\0\x04    ");
    let text = b"LIO-ORG TCMU device:disk1";
    let data = target.parameters(&page(0x83));
    assert_eq!(data[4..8], [2, 1, 0, text.len() as u8]);
    assert_eq!(data[8..], *text);
}

#[test]
fn the_longest_names_fit() {
    let target = Target::new();
    target.unit.set_identity(Identity {
        serial: "é1".repeat(1000),
        product: Some("p".repeat(1000)),
        ..Identity::default()
    });
    assert_eq!(target.parameters(&page(0x80)).len(), 4 + 230);
    let data = target.parameters(&page(0x83));
    assert_eq!(data[4 + 20 + 3], 255);
    assert_eq!(data.len(), 4 + 20 + 4 + 255);
}

#[test]
fn block_limits_are_those_of_the_backstore() {
    let data = Target::new().parameters(&page(0xb0));
    assert_eq!(data[4..6], [1, 255]);
    assert_eq!(data[6..8], [0, 8]);
    assert_eq!(data[8..12], 1024u32.to_be_bytes());
    assert_eq!(data[12..16], 128u32.to_be_bytes());
    assert_eq!(data[20..24], (1u32 << 20).to_be_bytes());
    assert_eq!(data[24..28], 256u32.to_be_bytes());
    assert_eq!(data[28..32], 8u32.to_be_bytes());
    assert_eq!(data[32..36], [0x80, 0, 0, 0]);
    assert_eq!(data[36..44], (512u64 << 10).to_be_bytes());
    let atomic = [64u32, 4, 2, 0, 0].map(u32::to_be_bytes).concat();
    assert_eq!(data[44..], atomic);

    let plain = Target::with(Capabilities::new(1 << 20), false).parameters(&page(0xb0));
    assert_eq!(plain[6..8], [0, 1]);
    assert_eq!(plain[12..36], [0; 24]);
    assert_eq!(plain[44..], [0; 20]);
}

#[test]
fn provisioning_is_claimed_only_where_it_is_true() {
    let claims = |change: fn(&mut Capabilities)| {
        let mut capabilities = everything(1 << 20);
        change(&mut capabilities);
        let data = Target::with(capabilities, true).parameters(&page(0xb2));
        (data[5], data[6])
    };
    assert_eq!(claims(|_| {}), (0xe4, 2));
    assert_eq!(claims(|capabilities| capabilities.unmap = None), (0, 0));
    // WRITE SAME has to write zeroes then, and cannot unmap.
    assert_eq!(
        claims(|capabilities| capabilities.write_zeroes = false),
        (0x84, 2)
    );
}

#[test]
fn the_cache_is_claimed_only_where_it_is_volatile() {
    assert_eq!(Target::new().parameters(&page(0x86))[4..7], [0, 1, 1]);
    let plain = Target::with(Capabilities::new(1 << 20), true);
    assert_eq!(plain.parameters(&page(0x86))[4..7], [0, 1, 0]);
}

#[test]
fn mode_pages_are_shared_by_all_initiators() {
    let data = Target::new().parameters(&page(0x87));
    assert_eq!(data, [0, 0x87, 0, 4, 0x3f, 0xff, 0, 0]);
}

#[test]
fn request_sense_without_anything_to_say() {
    let target = Target::new();
    let fixed = target.parameters(&[0x03, 0, 0, 0, 252, 0]);
    assert_eq!(fixed.len(), 18);
    assert_eq!((fixed[0], fixed[2], fixed[7]), (0x70, 0, 10));
    let descriptor = target.parameters(&[0x03, 1, 0, 0, 252, 0]);
    assert_eq!(descriptor, [0x72, 0, 0, 0, 0, 0, 0, 0]);
    let (response, data) = target.data_in(&[0x03, 0, 0, 0, 4, 0], 20);
    assert_eq!(response.read_len, Some(4));
    assert_eq!(data[4..], [0; 16]);
}
