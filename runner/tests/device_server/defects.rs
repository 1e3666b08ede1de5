//! READ DEFECT DATA; and READ LONG, WRITE LONG and REASSIGN BLOCKS, which there are not.

use tcmu::scsi::AdditionalSense;
use tcmu_handler::testing;

use crate::target::{Target, assert_illegal};

#[test]
fn the_lists_are_empty() {
    let target = Target::new();
    for lists in 0..0x20 {
        let ten = target.parameters(&[0x37, 0, lists, 0, 0, 0, 0, 1, 0, 0]);
        assert_eq!(ten, [0, lists, 0, 0]);
        let twelve = target.parameters(&[0xb7, lists, 0, 0, 0, 9, 0, 0, 1, 0, 0, 0]);
        assert_eq!(twelve, [0, lists, 0, 0, 0, 0, 0, 0]);
    }
}

#[test]
fn the_allocation_length_bounds_the_data() {
    let target = Target::new();
    for len in 0..10 {
        let (response, data) = target.data_in(&[0x37, 0, 0x18, 0, 0, 0, 0, 0, len, 0], 16);
        assert_eq!(response.read_len, Some(u32::from(len.min(4))));
        assert!(
            data[usize::from(len.min(4))..]
                .iter()
                .all(|&byte| byte == 0)
        );
        let (response, data) = target.data_in(&[0xb7, 0x18, 0, 0, 0, 0, 0, 0, 0, len, 0, 0], 16);
        assert_eq!(response.read_len, Some(u32::from(len.min(8))));
        assert!(
            data[usize::from(len.min(8))..]
                .iter()
                .all(|&byte| byte == 0)
        );
    }
}

#[test]
fn blocks_have_no_long_form() {
    let target = Target::new();
    for opcode in [0x07, 0x3e, 0x3f] {
        let cdb = [opcode, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        let refused = target.run(&cdb, &testing::buffer(520));
        assert_illegal(refused, AdditionalSense::INVALID_COMMAND_OPERATION_CODE);
    }
    // WRITE LONG (16) is SERVICE ACTION OUT (16), READ LONG (16) a service action that is not there.
    let write_long = [0x9f, 0x11, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let refused = target.run(&write_long, &testing::buffer(520));
    assert_illegal(refused, AdditionalSense::INVALID_COMMAND_OPERATION_CODE);
    let read_long = [0x9e, 0x11, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let refused = target.run(&read_long, &testing::buffer(520));
    assert_illegal(refused, AdditionalSense::INVALID_FIELD_IN_CDB);
}
