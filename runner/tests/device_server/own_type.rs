//! A device that is no disk: a processor (SPC-2, 9) that gives back what it was sent last.

use std::cell::RefCell;
use std::num::NonZeroU32;

use tcmu::scsi::{AdditionalSense, SenseKey, Status};
use tcmu_handler::{Backstore, Buffer, Capabilities, CdbAnswer, Io, Result, WriteFlags, testing};
use tcmu_runner::device_server::{Geometry, Identity, LogicalUnit, Request, Response};

use crate::target::{LEFTOVER, assert_illegal, assert_sense};

const RECEIVE: u8 = 0x08;
const SEND: u8 = 0x0a;
const PROCESSOR: u8 = 0x03;

#[derive(Default)]
struct Echo(RefCell<Vec<u8>>);

impl Backstore for Echo {
    fn capabilities(&self) -> Capabilities {
        let mut capabilities = Capabilities::new(1 << 20);
        capabilities.device_type = Some(PROCESSOR);
        capabilities
    }

    async fn handle_cdb(&self, _io: &Io, cdb: &[u8], data: Buffer<'_>) -> Option<CdbAnswer> {
        let len = usize::from(*cdb.get(4)?);
        match *cdb.first()? {
            SEND if len > 100 => Some(CdbAnswer::Busy),
            SEND => {
                let mut message = vec![0; len.min(data.len())];
                data.copy_to(0, &mut message);
                self.0.replace(message);
                let supplied = data.len();
                Some(CdbAnswer::Good { supplied })
            }
            RECEIVE if self.0.borrow().is_empty() => Some(CdbAnswer::CheckCondition {
                key: SenseKey::BlankCheck as u8,
                asc: 0x00,
                ascq: 0x00,
            }),
            RECEIVE => {
                let message = self.0.borrow();
                let supplied = message.len().min(len);
                data.copy_from(0, &message[..supplied]);
                Some(CdbAnswer::Good { supplied })
            }
            // A sense key that there is not.
            0xc0 => Some(CdbAnswer::CheckCondition {
                key: 0x1c,
                asc: 0,
                ascq: 0,
            }),
            _ => None,
        }
    }

    async fn read(&self, _: &Io, _: Buffer<'_>, _: u64) -> Result<()> {
        unreachable!("a processor has no blocks")
    }

    async fn write(&self, _: &Io, _: Buffer<'_>, _: u64, _: WriteFlags) -> Result<()> {
        unreachable!("a processor has no blocks")
    }
}

struct Processor(LogicalUnit<Echo>);

impl Processor {
    fn new() -> Self {
        let geometry = Geometry {
            size: 1 << 20,
            block_size: NonZeroU32::new(512).unwrap(),
            max_transfer_blocks: 0,
        };
        let identity = Identity {
            serial: "1".to_owned(),
            ..Identity::default()
        };
        Self(LogicalUnit::new(Echo::default(), identity, geometry, false))
    }

    fn run(&self, cdb: &[u8], data: &[u8]) -> (Response, Vec<u8>) {
        let buffer = testing::scattered(data, 30);
        let data = buffer.view();
        let io = testing::io();
        let response = testing::block_on(self.0.execute(&io, Request { cdb, data }));
        (response, testing::contents(&buffer))
    }

    fn receive(&self, cdb: &[u8], len: usize) -> Vec<u8> {
        let (response, mut data) = self.run(cdb, &vec![LEFTOVER; len]);
        assert_eq!(response.status, Status::Good, "{cdb:x?}: {response:?}");
        let supplied = response.read_len.map_or(len, |len| len as usize);
        assert!(data[supplied..].iter().all(|&byte| byte == 0));
        data.truncate(supplied);
        data
    }
}

#[test]
fn the_backstore_answers_the_commands_of_its_type() {
    let processor = Processor::new();
    let (blank, _) = processor.run(&[RECEIVE, 0, 0, 0, 64, 0], &[LEFTOVER; 64]);
    assert_sense(
        blank,
        SenseKey::BlankCheck,
        AdditionalSense::NO_ADDITIONAL_SENSE_INFORMATION,
    );
    let (sent, _) = processor.run(&[SEND, 0, 0, 0, 5, 0], b"hello");
    assert_eq!(sent.status, Status::Good);
    assert_eq!(processor.receive(&[RECEIVE, 0, 0, 0, 64, 0], 64), b"hello");
    let (busy, _) = processor.run(&[SEND, 0, 0, 0, 200, 0], &[0; 200]);
    assert_eq!((busy.status, busy.sense), (Status::Busy, None));
    let (wrong, _) = processor.run(&[0xc0, 0, 0, 0, 0, 0, 0, 0, 0, 0], &[]);
    assert_sense(
        wrong,
        SenseKey::HardwareError,
        AdditionalSense::INTERNAL_TARGET_FAILURE,
    );
}

#[test]
fn the_runner_answers_what_all_types_have_in_common() {
    let processor = Processor::new();
    let inquiry = processor.receive(&[0x12, 0, 0, 0, 96, 0], 96);
    assert_eq!(inquiry[0], PROCESSOR);
    assert_eq!(inquiry[58..64], [0x00, 0xa0, 0x04, 0x60, 0, 0]);
    let pages = processor.receive(&[0x12, 1, 0, 0, 96, 0], 96);
    assert_eq!(pages, [3, 0, 0, 5, 0x00, 0x80, 0x83, 0x86, 0x87]);
    for &page in &pages[4..] {
        let data = processor.receive(&[0x12, 1, page, 0, 255, 0], 255);
        assert_eq!(data[..2], [PROCESSOR, page]);
    }
    assert_eq!(processor.receive(&[0x00, 0, 0, 0, 0, 0], 0), []);
    assert_eq!(processor.receive(&[0x03, 0, 0, 0, 18, 0], 18).len(), 18);
}

#[test]
fn commands_of_disks_are_refused() {
    let processor = Processor::new();
    for cdb in [
        &[0x28, 0, 0, 0, 0, 0, 0, 0, 1, 0][..],
        &[0x2a, 0, 0, 0, 0, 0, 0, 0, 1, 0],
        &[0x25, 0, 0, 0, 0, 0, 0, 0, 0, 0],
        &[0x1a, 0, 0x3f, 0, 255, 0],
        &[0x1b, 0, 0, 0, 0, 0],
    ] {
        let (response, _) = processor.run(cdb, &[0; 512]);
        assert_illegal(response, AdditionalSense::INVALID_COMMAND_OPERATION_CODE);
    }
    let mut report = [0; 12];
    (report[0], report[1], report[8]) = (0xa3, 0x0c, 4);
    let reported = processor.receive(&report, 1024);
    let opcodes = reported[4..]
        .chunks_exact(8)
        .map(|descriptor| descriptor[0]);
    assert!(opcodes.clone().any(|opcode| opcode == 0x12));
    assert!(
        opcodes
            .clone()
            .all(|opcode| opcode != 0x28 && opcode != 0x42)
    );
}
