//! What a hostile server can send, for fuzz targets.
#![allow(
    clippy::missing_panics_doc,
    reason = "a panic is what a fuzz target looks for"
)]

use std::cell::Cell;
use std::io::{self, Read, Write};
use std::sync::Arc;

use tcmu_handler::testing::{HeapMemory, buffer};
use tcmu_handler::{Memory, OwnedBuffer, Segment};

use crate::handshake::{greet, negotiate};
use crate::receiver::{INBOX, Progress, Receiver};
use crate::request::{Command, Request};
use crate::slots::Slots;

/// How far apart the requests' buffers are in memory, in bytes. There is a gap behind each.
const STRIDE: usize = 16 << 10;
/// What is in the gaps.
const GAP: u8 = 0xa5;

/// Takes bytes as a server's part of the handshake.
pub fn handshake(bytes: &[u8]) {
    struct Server<'a>(&'a [u8]);
    impl Read for Server<'_> {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            self.0.read(buffer)
        }
    }
    impl Write for Server<'_> {
        fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
            Ok(buffer.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let mut server = Server(bytes);
    let session = greet(&mut server).and_then(|()| negotiate(&mut server, "export"));
    if let Ok(session) = session {
        let export = session.export;
        assert!(export.block_size.is_power_of_two() && export.block_size >= 512);
        assert!(export.max_payload >= export.block_size);
        assert_eq!(export.max_payload % export.block_size, 0);
        assert!(export.preferred.is_power_of_two() && export.preferred >= export.block_size);
        assert_eq!(export.has_status, session.context.is_some());
    }
}

/// Takes bytes as replies to some requests. The first byte tells how many there are (in the lower
/// three bits), and whether structured replies were agreed on (bit 3) with the metadata context 1
/// (bit 4); two more bytes each tell their types and lengths, in units of 512 bytes; then one tells in
/// pieces of which length the server sends. The cookies are 0 and so on; the first request is at byte
/// 0, and each other 16 KiB behind the one before.
pub fn replies(bytes: &[u8]) {
    let mut bytes = bytes.iter().copied();
    let mut next = || bytes.next().unwrap_or(0);
    let mode = next();
    let count = 1 + usize::from(mode % 8);
    let memory = Arc::new(HeapMemory::new(count * STRIDE));
    memory.fill(0, count * STRIDE, GAP);
    let mut slots = Slots::default();
    slots.agree(mode & 8 != 0, (mode & 16 != 0).then_some(1));
    let mut requests = Vec::new();
    for number in 0..count {
        let command = match next() % 8 {
            0 | 1 => Command::Read,
            2 => Command::Write,
            3 => Command::Flush,
            4 => Command::Trim,
            5 => Command::Cache,
            6 => Command::WriteZeroes,
            _ => Command::BlockStatus,
        };
        let request = Request {
            command,
            flags: 0,
            offset: (number * STRIDE) as u64,
            len: 512 * (1 + u32::from(next() % 30)),
        };
        let segments = [0, 256].map(|half| Segment {
            offset: number * STRIDE + half,
            len: match half {
                0 => 256,
                _ => request.len as usize - 256,
            },
        });
        let owned = Arc::clone(&memory) as Arc<dyn Memory>;
        let owned = OwnedBuffer::new(owned, segments.to_vec());
        let slot = owned
            .ok()
            .and_then(|b| slots.insert(request, Some(b.view())).ok());
        let slot = slot.unwrap_or_else(|| unreachable!("the segments lie in the memory"));
        assert_eq!(slots.cookie(slot), number as u64);
        slots.sending(slot);
        requests.push(request);
    }
    let piece = usize::from(next()) * 8 + 1;
    let sent: Vec<u8> = bytes.collect();
    follow(&mut slots, count as u32, &sent, piece);
    (0..count as u32).for_each(|slot| slots.sent(slot));
    for (number, request) in requests.iter().enumerate() {
        let filled = match request.command {
            Command::Read => request.len as usize,
            _ => 0,
        };
        let mut gap = vec![0; STRIDE - filled];
        memory.load(number * STRIDE + filled, &mut gap);
        assert!(gap.iter().all(|byte| *byte == GAP), "{request:?}");
    }
}

/// Receives what was sent, in pieces.
fn follow(slots: &mut Slots, count: u32, mut sent: &[u8], piece: usize) {
    let changes = Cell::new(0);
    let mut receiver = Receiver::new(buffer(INBOX));
    while let Ok(Progress::More) = receiver.advance(slots, &changes) {
        if slots.waiting() == 0 || sent.is_empty() {
            break;
        }
        receiver.prepare(slots);
        let (parts, _) = receiver.parts(slots);
        let mut received = 0;
        for part in parts {
            let now = (piece - received).min(sent.len());
            let stored = part.copy_from(0, &sent[..now]);
            sent = &sent[stored..];
            received += stored;
        }
        assert!(received > 0, "there was no room for what has come");
        receiver.received(received);
    }
    assert!(changes.get() <= u64::from(count));
}
