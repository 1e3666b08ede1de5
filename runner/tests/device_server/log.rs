//! LOG SENSE.

use tcmu::scsi::AdditionalSense;

use crate::target::{Target, assert_illegal};

fn sense(page: u8, subpage: u8, pointer: u8, len: u16) -> [u8; 10] {
    let [high, low] = len.to_be_bytes();
    [0x4d, 0, 0x40 | page, subpage, 0, 0, pointer, high, low, 0]
}

#[test]
fn every_listed_page_is_there() {
    let target = Target::new();
    assert_eq!(
        target.parameters(&sense(0, 0, 0, 255)),
        [0, 0, 0, 2, 0, 0x2f]
    );
    let all = target.parameters(&sense(0, 0xff, 0, 255));
    assert_eq!(all, [0x40, 0xff, 0, 6, 0, 0, 0, 0xff, 0x2f, 0]);
    for codes in all[4..].chunks_exact(2) {
        let page = target.parameters(&sense(codes[0], codes[1], 0, 255));
        assert_eq!(page[0] & 0x3f, codes[0]);
        assert_eq!((page[0] & 0x40 != 0, page[1]), (codes[1] != 0, codes[1]));
        assert_eq!(page.len(), 4 + usize::from(page[3]));
    }
}

#[test]
fn there_is_no_exception_and_no_thermometer() {
    let target = Target::new();
    let page = target.parameters(&sense(0x2f, 0, 0, 255));
    assert_eq!(page, [0x2f, 0, 0, 7, 0, 0, 3, 3, 0, 0, 0xff]);
    let (response, data) = target.data_in(&sense(0x2f, 0, 0, 6), 16);
    assert_eq!(response.read_len, Some(6));
    assert_eq!(data[6..], [0; 10]);
}

#[test]
fn what_there_is_not_is_refused() {
    let target = Target::new();
    let mut save = sense(0x2f, 0, 0, 255);
    save[1] = 1;
    for (cdb, byte) in [
        (sense(0x0d, 0, 0, 255), 2),
        (sense(0x2f, 1, 0, 255), 3),
        (sense(0x00, 1, 0, 255), 3),
        (sense(0x2f, 0, 1, 255), 5),
        (sense(0x00, 0, 1, 255), 5),
        (save, 1),
    ] {
        let (response, _) = target.data_in(&cdb, 255);
        assert_illegal(response, AdditionalSense::INVALID_FIELD_IN_CDB);
        assert_eq!(response.sense.unwrap().field.unwrap().byte, byte);
    }
}
