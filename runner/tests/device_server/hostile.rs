//! Whatever an initiator sends, it gets a status, and nothing else breaks.
//!
//! The disk itself checks that no request reaches it that it should not see.

use std::sync::LazyLock;

use proptest::prelude::*;
use tcmu::scsi::Status;
use tcmu::scsi::sense::SENSE_BUFFER_LEN;
use tcmu_handler::{Capabilities, testing};

use crate::disk::everything;
use crate::opcodes::{supported, usage};
use crate::target::{LEFTOVER, Target, assert_good};

fn any_capabilities() -> impl Strategy<Value = Capabilities> {
    any::<[bool; 5]>().prop_map(|[read_only, cache, unmap, zeroes, native]| {
        let mut capabilities = everything(1 << 20);
        capabilities.read_only = read_only;
        capabilities.volatile_cache = cache;
        capabilities.unmap = capabilities.unmap.filter(|_| unmap);
        capabilities.write_zeroes = zeroes;
        if !native {
            capabilities.fua = tcmu_handler::Fua::Emulate;
        }
        capabilities
    })
}

/// A supported command with random fields, most of which are small.
fn plausible_cdb() -> impl Strategy<Value = Vec<u8>> {
    static TEMPLATES: LazyLock<Vec<(Vec<u8>, bool)>> = LazyLock::new(|| {
        let target = Target::new();
        supported(&target)
            .into_iter()
            .map(|(opcode, action, _)| (usage(&target, opcode, action), action.is_some()))
            .collect()
    });
    let byte = prop_oneof![4 => Just(0), 2 => 0..32u8, 1 => any::<u8>()];
    (
        prop::sample::select(TEMPLATES.as_slice()),
        prop::collection::vec(byte, 32),
    )
        .prop_map(|((usage, has_action), random)| {
            let mut cdb: Vec<u8> = usage
                .iter()
                .zip(random)
                .map(|(usage, random)| usage & random)
                .collect();
            cdb[0] = usage[0];
            if cdb[0] == 0x7f {
                cdb[7..10].copy_from_slice(&usage[7..10]);
            } else if has_action {
                cdb[1] = usage[1];
            }
            cdb
        })
}

fn any_cdb() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        4 => plausible_cdb(),
        1 => prop::collection::vec(any::<u8>(), 0..40),
        1 => (any::<u8>(), 1..40usize).prop_map(|(opcode, len)| {
            let mut cdb = vec![0; len];
            cdb[0] = opcode;
            cdb
        }),
    ]
}

fn any_data() -> impl Strategy<Value = Vec<u8>> {
    let byte = prop_oneof![3 => Just(0u8), 1 => 0..32u8, 1 => any::<u8>()];
    let len = prop_oneof![Just(0usize), Just(512), Just(24), 0..70usize, 0..6000usize];
    (prop::collection::vec(byte, 48), len)
        .prop_map(|(bytes, len)| bytes.into_iter().cycle().take(len).collect())
}

proptest! {
    #[test]
    fn every_command_gets_a_status(
        capabilities in any_capabilities(),
        write_cache: bool,
        commands in prop::collection::vec((any_cdb(), any_data(), 1..600usize), 1..8),
    ) {
        let target = Target::with(capabilities, write_cache);
        for (cdb, data, piece) in commands {
            let buffer = testing::scattered(&data, piece);
            let response = target.run(&cdb, &buffer);
            target.finish_background();
            match response.sense {
                Some(sense) => {
                    let mut bytes = [LEFTOVER; SENSE_BUFFER_LEN];
                    for descriptor in [false, true] {
                        let len = sense.write_to(&mut bytes, descriptor);
                        prop_assert!((8..=SENSE_BUFFER_LEN).contains(&len));
                    }
                    prop_assert_eq!(response.read_len, None);
                }
                None => prop_assert_eq!(response.status, Status::Good),
            }
            if let Some(len) = response.read_len {
                prop_assert!((len as usize) < data.len());
                let after = testing::contents(&buffer);
                prop_assert!(after[len as usize..].iter().all(|&byte| byte == 0));
            }
        }
        // Conditions that commands brought about are told once; then the unit is ready.
        assert_good(target.no_data(&[0; 6]));
    }

    #[test]
    fn nothing_of_others_is_ever_returned(
        capabilities in any_capabilities(),
        cdb in any_cdb(),
        len in 0..6000usize,
        piece in 1..600usize,
    ) {
        let target = Target::with(capabilities, true);
        let buffer = testing::scattered(&vec![LEFTOVER; len], piece);
        let response = target.run(&cdb, &buffer);
        let is_write = match cdb.first() {
            Some(0x0a | 0x2a | 0x8a | 0xaa) => true,
            Some(0x7f) => cdb.get(9) == Some(&0x0b),
            _ => false,
        };
        if response.status == Status::Good && !is_write {
            // The disk holds zeroes, and no parameter data have this byte.
            prop_assert!(!testing::contents(&buffer).contains(&LEFTOVER));
        }
    }
}
