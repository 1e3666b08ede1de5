//! Commands that are executed again because the process died that executed them first.

use std::cell::RefCell;

use tcmu::scsi::{SenseKey, Status};
use tcmu_handler::{Capabilities, ErrorKind, testing};
use tcmu_runner::device_server::{Progress, Request, Response};

use crate::disk::{Kind, everything};
use crate::target::{BLOCK, BLOCKS, Target, assert_good, cdb};

/// A command's phases: what it finds, and what it notes.
#[derive(Default)]
struct Notes {
    found: u64,
    noted: RefCell<Vec<u64>>,
}

impl Progress for Notes {
    fn phase(&self) -> u64 {
        self.found
    }

    fn note(&self, phase: u64) {
        self.noted.borrow_mut().push(phase);
    }
}

/// Executes a command that finds a phase; returns also what it noted, and its buffer afterwards.
fn execute(target: &Target, cdb: &[u8], data: &[u8], found: u64) -> (Response, Vec<u64>, Vec<u8>) {
    let notes = Notes {
        found,
        ..Notes::default()
    };
    let buffer = testing::scattered(data, 300);
    let request = Request {
        cdb,
        data: buffer.view(),
    };
    let execution = target.unit.execute_noting(&target.io, request, &notes);
    let response = testing::block_on(execution);
    (
        response,
        notes.noted.into_inner(),
        testing::contents(&buffer),
    )
}

fn native() -> Capabilities {
    let mut capabilities = everything(BLOCKS * BLOCK as u64);
    capabilities.compare_and_write = 100 * BLOCK as u32;
    capabilities
}

#[test]
fn compare_and_write_does_not_miscompare_with_its_own_data() {
    for target in [Target::new(), Target::with(native(), true)] {
        let (old, new) = (vec![0x11; 4 * BLOCK], vec![0x22; 4 * BLOCK]);
        let data = [old.clone(), new.clone()].concat();
        let swap = cdb::sixteen(0x89, 0, 8, 4);
        let write =
            |content: &[u8]| assert_good(target.data_out(&cdb::ten(0x2a, 0, 8, 4), content));
        let image = || target.disk().image.borrow()[8 * BLOCK..12 * BLOCK].to_vec();

        write(&old);
        let (response, noted, _) = execute(&target, &swap, &data, 0);
        assert_good(response);
        let phase = noted[0];
        assert_ne!(phase, 0);
        // Killed after the blocks were written, and before the first of them was.
        for content in [&new, &old] {
            write(content);
            let (response, _, _) = execute(&target, &swap, &data, phase);
            assert_good(response);
            assert_eq!(image(), new);
        }
        // One that had not come so far compares.
        let (response, noted, _) = execute(&target, &swap, &data, 0);
        assert_eq!(response.sense.unwrap().key, SenseKey::Miscompare);
        assert!(noted.iter().all(|phase| *phase >> 32 == 0));
    }
}

#[test]
fn a_backstores_own_swap_that_never_took_place_still_miscompares() {
    let target = Target::with(native(), true);
    let swap = cdb::sixteen(0x89, 0, 8, 1);
    let data = [[0x11; BLOCK], [0x22; BLOCK]].concat();
    let (first, noted, _) = execute(&target, &swap, &data, 0);
    let (again, _, _) = execute(&target, &swap, &data, noted[0]);
    for response in [first, again] {
        assert_eq!(response.sense.unwrap().key, SenseKey::Miscompare);
    }
}

#[test]
fn a_command_whose_data_are_gone_ends_as_it_had_ended() {
    let commands: [(&[u8], Vec<u8>); 5] = [
        // WRITE SAME (10)
        (&cdb::ten(0x41, 0, 4, 16), vec![0x33; BLOCK]),
        // UNMAP of block 2
        (
            &cdb::ten(0x42, 0, 0, 24),
            vec![
                0, 22, 0, 16, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 1, 0, 0, 0, 0,
            ],
        ),
        // ORWRITE (16)
        (&cdb::sixteen(0x8b, 0, 30, 1), vec![0x0f; BLOCK]),
        // WRITE AND VERIFY (10)
        (&cdb::ten(0x2e, 0, 40, 1), vec![0x44; BLOCK]),
        // COMPARE AND WRITE
        (
            &cdb::sixteen(0x89, 0, 60, 1),
            [[0; BLOCK], [0x55; BLOCK]].concat(),
        ),
    ];
    for (cdb, data) in commands {
        let target = Target::new();
        let (response, noted, left) = execute(&target, cdb, &data, 0);
        assert_good(response);
        let after = target.disk().image.borrow().clone();
        let (again, _, _) = execute(&target, cdb, &left, *noted.last().unwrap());
        assert_good(again);
        assert!(*target.disk().image.borrow() == after, "{cdb:x?}");
    }
}

#[test]
fn a_write_that_was_refused_for_now_is_not_made_of_what_is_left_of_its_data() {
    let target = Target::new();
    target.disk().fail(Kind::Write, ErrorKind::Busy);
    let write = cdb::ten(0x2a, 0, 0, 1);
    let (response, noted, left) = execute(&target, &write, &[0x66; BLOCK], 0);
    assert_eq!(response.status, Status::Busy);
    let (again, _, _) = execute(&target, &write, &left, *noted.last().unwrap());
    assert_eq!(again.status, Status::Busy);
}
