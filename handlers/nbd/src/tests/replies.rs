//! Where the bytes of replies go, however they come.

use std::cell::Cell;

use tcmu_handler::ErrorKind;
use tcmu_handler::testing::{buffer, contents, scattered};

use crate::protocol::chunk;
use crate::receiver::{INBOX, Progress, Receiver};
use crate::reply::Malformed;
use crate::reply::tests::{chunk_bytes, error_payload, simple_bytes};
use crate::request::{Command, Request};
use crate::slots::{Answer, Slots};
use crate::testing;

fn request(command: Command, offset: u64, len: u32) -> Request {
    Request {
        command,
        flags: 0,
        offset,
        len,
    }
}

/// What has been asked, and where the replies are followed.
struct Stream {
    slots: Slots,
    receiver: Receiver,
    changes: Cell<u64>,
}

impl Stream {
    fn new(structured: bool) -> Self {
        let mut slots = Slots::default();
        slots.agree(structured, Some(1));
        Self {
            slots,
            receiver: Receiver::new(buffer(INBOX)),
            changes: Cell::new(0),
        }
    }

    fn ask(&mut self, request: Request) -> u64 {
        let memory = scattered(&vec![0xee; request.len as usize], 700);
        let slot = self.slots.insert(request, Some(memory.view())).unwrap();
        self.slots.sending(slot);
        self.slots.sent(slot);
        self.slots.cookie(slot)
    }

    /// What came in pieces of this length; returns how many bytes went through the inbox.
    fn take(&mut self, mut sent: &[u8], piece: usize) -> Result<usize, Malformed> {
        let mut through_inbox = 0;
        while self.receiver.advance(&mut self.slots, &self.changes)? == Progress::More {
            if sent.is_empty() {
                break;
            }
            self.receiver.prepare(&self.slots);
            let (parts, _) = self.receiver.parts(&self.slots);
            let is_data = self.receiver.target().is_some();
            let mut received = 0;
            for (number, part) in parts.iter().enumerate() {
                let now = (piece - received).min(sent.len());
                let stored = part.copy_from(0, &sent[..now]);
                if !is_data || number == 1 {
                    through_inbox += stored;
                }
                sent = &sent[stored..];
                received += stored;
            }
            self.receiver.received(received);
        }
        assert!(sent.is_empty(), "{} bytes are left", sent.len());
        Ok(through_inbox)
    }

    fn data(&self, cookie: u64) -> Vec<u8> {
        let view = self.slots.buffer(cookie as u32).unwrap();
        contents(&view.to_owned())
    }

    fn outcome(&mut self, cookie: u64) -> Result<Answer, ErrorKind> {
        let outcome = self
            .slots
            .take(cookie as u32)
            .expect("the request has not ended");
        outcome.map_err(|error| error.kind())
    }
}

fn data_chunk(flags: u16, cookie: u64, offset: u64, data: &[u8]) -> Vec<u8> {
    let payload = [offset.to_be_bytes().as_slice(), data].concat();
    chunk_bytes(flags, chunk::OFFSET_DATA, cookie, &payload)
}

fn hole_chunk(flags: u16, cookie: u64, offset: u64, len: u32) -> Vec<u8> {
    let payload = [offset.to_be_bytes().as_slice(), &len.to_be_bytes()].concat();
    chunk_bytes(flags, chunk::OFFSET_HOLE, cookie, &payload)
}

fn pattern(len: usize, seed: u8) -> Vec<u8> {
    (0..len)
        .map(|at| (at as u8).wrapping_mul(7) ^ seed)
        .collect()
}

/// In pieces from single bytes to everything at once.
const PIECES: [usize; 9] = [1, 2, 3, 19, 20, 29, 500, 4099, usize::MAX >> 1];

#[test]
fn structured_replies_of_all_kinds_in_pieces_of_all_sizes() {
    for piece in PIECES {
        let mut stream = Stream::new(true);
        let write = stream.ask(request(Command::Write, 0, 512));
        let whole = stream.ask(request(Command::Read, 4096, 1500));
        let parts = stream.ask(request(Command::Read, 1 << 40, 3000));
        let status = stream.ask(request(Command::BlockStatus, 512, 8192));
        let broken = stream.ask(request(Command::Read, 0, 2000));
        let bytes = [pattern(1500, 1), pattern(1000, 2), pattern(2000, 3)];
        let sent = [
            data_chunk(0, parts, (1 << 40) + 2000, &bytes[1]),
            data_chunk(1, whole, 4096, &bytes[0]),
            simple_bytes(0, write),
            hole_chunk(0, parts, (1 << 40) + 1000, 1000),
            data_chunk(0, broken, 0, &bytes[2]),
            chunk_bytes(
                1,
                chunk::BLOCK_STATUS,
                status,
                &[1u32, 4096, 3].map(u32::to_be_bytes).concat(),
            ),
            chunk_bytes(
                1,
                chunk::ERROR + 1,
                broken,
                &error_payload(5, &[b'x'; 4096]),
            ),
            data_chunk(0, parts, 1 << 40, &bytes[1]),
            chunk_bytes(1, chunk::NONE, parts, &[]),
        ];
        let through_inbox = stream.take(&sent.concat(), piece).unwrap();
        let no_data = sent.concat().len() - 1500 - 2 * 1000 - 2000;
        assert_eq!(through_inbox, no_data, "data were copied ({piece})");
        assert_eq!(stream.data(whole), bytes[0], "{piece}");
        let holed = [bytes[1].clone(), vec![0; 1000], bytes[1].clone()].concat();
        assert_eq!(stream.data(parts), holed, "{piece}");
        let extent = Answer::Extent {
            len: 4096,
            flags: 3,
        };
        assert_eq!(stream.outcome(status), Ok(extent));
        assert_eq!(stream.outcome(broken), Err(ErrorKind::Read));
        for cookie in [write, whole, parts] {
            assert_eq!(stream.outcome(cookie), Ok(Answer::Done));
        }
        assert_eq!(stream.changes.get(), 1);
        assert_eq!(stream.slots.waiting(), 0);
    }
}

#[test]
fn simple_replies_in_pieces_of_all_sizes() {
    for piece in PIECES {
        let mut stream = Stream::new(false);
        let large = stream.ask(request(Command::Read, 0, 200_000));
        let write = stream.ask(request(Command::Write, 0, 512));
        let small = stream.ask(request(Command::Read, 0, 512));
        let refused = stream.ask(request(Command::Read, 0, 512));
        let bytes = [pattern(200_000, 1), pattern(512, 2)];
        let sent = [
            simple_bytes(0, small),
            bytes[1].clone(),
            simple_bytes(0, large),
            bytes[0].clone(),
            simple_bytes(28, write),
            simple_bytes(5, refused),
        ];
        let through_inbox = stream.take(&sent.concat(), piece).unwrap();
        assert_eq!(through_inbox, 4 * 16, "data were copied ({piece})");
        assert_eq!(stream.data(large), bytes[0], "{piece}");
        assert_eq!(stream.data(small), bytes[1], "{piece}");
        assert_eq!(stream.outcome(large), Ok(Answer::Done));
        assert_eq!(stream.outcome(small), Ok(Answer::Done));
        assert_eq!(stream.outcome(write), Err(ErrorKind::NoSpace));
        assert_eq!(stream.outcome(refused), Err(ErrorKind::Read));
    }
}

#[test]
fn data_of_a_read_that_was_asked_for_late_are_found_in_the_inbox() {
    for piece in PIECES {
        let mut stream = Stream::new(true);
        let write = stream.ask(request(Command::Write, 0, 512));
        stream.receiver.prepare(&stream.slots);
        // The whole inbox is given to the kernel; then comes a read.
        let room = stream.receiver.parts(&stream.slots).0[0].to_owned();
        let early = stream.ask(request(Command::Read, 0, 1000));
        let bytes = pattern(1000, 9);
        let sent = [simple_bytes(0, write), data_chunk(1, early, 0, &bytes)].concat();
        let first = piece.min(sent.len());
        assert_eq!(room.view().copy_from(0, &sent[..first]), first);
        stream.receiver.received(first);
        stream.take(&sent[first..], piece).unwrap();
        assert_eq!(stream.data(early), bytes, "{piece}");
        assert_eq!(stream.outcome(early), Ok(Answer::Done));
    }
}

#[test]
fn replies_that_break_the_rules_end_the_connection() {
    let mut stream = Stream::new(true);
    let read = stream.ask(request(Command::Read, 4096, 1024));
    let write = stream.ask(request(Command::Write, 0, 512));
    let status = stream.ask(request(Command::BlockStatus, 0, 512));
    let extent = |context: u32, len: u32| [context, len, 0].map(u32::to_be_bytes).concat();
    let data = pattern(1024, 0);
    let bad = [
        // Nobody asked.
        simple_bytes(0, 99),
        simple_bytes(0, write | 1 << 32),
        simple_bytes(0, u64::MAX),
        // Not the reply to such a request.
        simple_bytes(0, read),
        simple_bytes(0, status),
        data_chunk(1, write, 0, &data),
        hole_chunk(1, status, 0, 512),
        chunk_bytes(1, chunk::BLOCK_STATUS, read, &extent(1, 512)),
        // Outside of the request.
        data_chunk(1, read, 4095, &data),
        data_chunk(1, read, 4097, &data),
        data_chunk(1, read, u64::MAX, &data),
        hole_chunk(1, read, 4096, 1025),
        hole_chunk(1, read, 4096, u32::MAX),
        hole_chunk(1, read, 0, 512),
        // Not all, or more than all.
        data_chunk(1, read, 4096, &data[..1023]),
        hole_chunk(1, read, 4096, 0),
        chunk_bytes(1, chunk::NONE, read, &[]),
        chunk_bytes(1, chunk::NONE, status, &[]),
        [
            data_chunk(0, read, 4096, &data),
            data_chunk(1, read, 5119, &[0]),
        ]
        .concat(),
        [
            hole_chunk(0, read, 4096, 512),
            hole_chunk(1, read, 4600, 520),
        ]
        .concat(),
        chunk_bytes(1, chunk::BLOCK_STATUS, status, &extent(2, 512)),
        chunk_bytes(1, chunk::BLOCK_STATUS, status, &extent(1, 0)),
        chunk_bytes(1, chunk::BLOCK_STATUS, status, &extent(1, 513)),
        [
            chunk_bytes(0, chunk::BLOCK_STATUS, status, &extent(1, 512)),
            chunk_bytes(1, chunk::BLOCK_STATUS, status, &extent(1, 512)),
        ]
        .concat(),
        // Without end.
        chunk_bytes(0, chunk::ERROR + 1, read, &error_payload(5, b"")).repeat(5000),
    ];
    for (number, bytes) in bad.iter().enumerate() {
        for slot in stream.slots.in_order() {
            stream.slots.again(slot);
            stream.slots.sent(slot);
        }
        stream.receiver.restart();
        assert!(stream.take(bytes, 100).is_err(), "case {number} was taken");
        assert_eq!(stream.slots.waiting(), 3, "case {number}");
    }
}

#[test]
fn a_reply_that_comes_early_ends_its_request_when_that_has_been_sent() {
    let mut stream = Stream::new(false);
    let insert = |stream: &mut Stream| {
        let flush = request(Command::Flush, 0, 0);
        let slot = stream.slots.insert(flush, None).unwrap();
        (slot, simple_bytes(0, stream.slots.cookie(slot)))
    };
    let (early, reply) = insert(&mut stream);
    stream.slots.sending(early);
    stream.take(&reply, 100).unwrap();
    assert_eq!(stream.slots.waiting(), 1);
    assert!(stream.slots.take(early).is_none());
    stream.slots.sent(early);
    assert_eq!(stream.outcome(u64::from(early)), Ok(Answer::Done));
    // But only once, and not if nothing has been sent at all.
    let (twice, reply) = insert(&mut stream);
    stream.slots.sending(twice);
    assert!(stream.take(&reply.repeat(2), 100).is_err());
    let mut stream = Stream::new(false);
    let (_, reply) = insert(&mut stream);
    assert!(stream.take(&reply, 100).is_err());
}

#[test]
fn random_bytes_find_nothing() {
    let mut state = 1u64;
    for _ in 0..2000 {
        let bytes: Vec<u8> = (0..200)
            .map(|_| {
                state = state
                    .wrapping_mul(6_364_136_223_846_793_005)
                    .wrapping_add(1);
                (state >> 33) as u8
            })
            .collect();
        testing::replies(&bytes);
        testing::handshake(&bytes);
    }
}
