//! SCSI commands to a logical unit.

use std::future::{Future, poll_fn};
use std::num::NonZeroU32;
use std::pin::pin;
use std::task::Poll;

use tcmu::scsi::Status;
use tcmu_handler::{Handler, Io, OpenRequest, testing};
use tcmu_handler_ram::{Ram, RamHandler};
use tcmu_runner::device_server::{Geometry, Identity, LogicalUnit, Request, Response};

use crate::input::Input;

const SIZE: u64 = 64 << 10;
const BLOCK_SIZE: u32 = 512;
/// What memory holds before a command: somebody else's data, a byte that no parameter data have.
const LEFTOVER: u8 = 0xee;

struct Target {
    unit: LogicalUnit<Ram>,
    io: Io,
}

impl Target {
    /// A unit on memory that has told its power on.
    fn new(read_only: bool) -> Self {
        let config = if read_only { "x;readonly=on" } else { "x" };
        let request = OpenRequest {
            config: config.parse().expect("a valid configuration"),
            size: SIZE,
            block_size: BLOCK_SIZE,
        };
        let ram = RamHandler.open(&request).expect("memory opens");
        let geometry = Geometry {
            size: SIZE,
            block_size: NonZeroU32::new(BLOCK_SIZE).expect("it is not 0"),
            max_transfer_blocks: 64,
        };
        let target = Self {
            unit: LogicalUnit::new(ram, Identity::default(), geometry, true),
            io: testing::io(),
        };
        target.send(&[0; 6], &[], 512);
        target
    }

    /// Sends a command with data in segments of `piece` bytes; returns the response and the data as
    /// they are then.
    fn send(&self, cdb: &[u8], data: &[u8], piece: usize) -> (Response, Vec<u8>) {
        let buffer = testing::scattered(data, piece);
        let request = Request {
            cdb,
            data: buffer.view(),
        };
        let response = testing::block_on(self.run(request));
        let after = testing::contents(&buffer);
        match response.status {
            Status::CheckCondition => assert!(response.sense.is_some(), "{cdb:02x?}"),
            _ => assert!(response.sense.is_none(), "{cdb:02x?}: {response:?}"),
        }
        if let Some(len) = response.read_len {
            let rest = after.get(len as usize..).expect("within the buffer");
            assert!(rest.iter().all(|byte| *byte == 0), "{cdb:02x?}: a leak");
        }
        (response, after)
    }
}

impl Target {
    /// Runs a command and all that it leaves to the background.
    async fn run(&self, request: Request<'_>) -> Response {
        let mut command = pin!(self.unit.execute(&self.io, request));
        let response = poll_fn(|context| {
            loop {
                if let Poll::Ready(response) = command.as_mut().poll(context) {
                    return Poll::Ready(response);
                }
                if !self.unit.has_background() {
                    return Poll::Pending;
                }
                // Memory never waits, so this comes to its end.
                testing::block_on(self.unit.background(&self.io));
            }
        })
        .await;
        self.unit.background(&self.io).await;
        response
    }
}

/// Any commands with any data, one after the other.
pub fn cdb(data: &[u8]) {
    let mut input = Input(data);
    let read_only = input.u8() & 1 != 0;
    let target = Target::new(read_only);
    while !input.is_empty() {
        let lengths = input.u8();
        let cdb = input.bytes(usize::from(lengths & 0x3f));
        let piece = 1 + usize::from(input.u8());
        let out = usize::from(input.u16() % 8192);
        if lengths & 0x80 == 0 {
            target.send(cdb, input.bytes(out), piece);
        } else {
            let (response, after) = target.send(cdb, &vec![LEFTOVER; out], piece);
            let inside = response.read_len.map_or(after.len(), |len| len as usize);
            // A disk of zeroes stays one; to others, the leftovers may have been written.
            if read_only && response.status == Status::Good {
                assert!(!after[..inside].contains(&LEFTOVER), "{cdb:02x?}: a leak");
            }
        }
    }
    // Whatever was done: the unit answers, and says who it is.
    let (response, _) = target.send(&[0x12, 0, 0, 0, 36, 0], &[LEFTOVER; 36], 36);
    assert_eq!(response.status, Status::Good);
}

/// UNMAP with these bytes as its parameter list.
pub fn unmap(data: &[u8]) {
    let target = Target::new(false);
    let len = u16::try_from(data.len()).unwrap_or(u16::MAX).to_be_bytes();
    target.send(&[0x42, 0, 0, 0, 0, 0, 0, len[0], len[1], 0], data, 100);
}

/// EXTENDED COPY (LID1) with these bytes as its parameter list.
pub fn xcopy(data: &[u8]) {
    let target = Target::new(false);
    let len = u32::try_from(data.len()).unwrap_or(u32::MAX).to_be_bytes();
    let mut cdb = [0; 16];
    cdb[0] = 0x83;
    cdb[10..14].copy_from_slice(&len);
    target.send(&cdb, data, 100);
}

/// MODE SELECT (6) and (10) with these bytes as their parameter list; then the pages still read.
pub fn mode_select(data: &[u8]) {
    let mut input = Input(data);
    let flags = input.u8();
    let list = input.0;
    let target = Target::new(flags & 0x80 != 0);
    if flags & 1 == 0 {
        let len = u8::try_from(list.len()).unwrap_or(u8::MAX);
        target.send(&[0x15, flags & 0x11, 0, 0, len, 0], list, 100);
    } else {
        let len = u16::try_from(list.len()).unwrap_or(u16::MAX).to_be_bytes();
        target.send(
            &[0x55, flags & 0x11, 0, 0, 0, 0, 0, len[0], len[1], 0],
            list,
            100,
        );
    }
    target.send(&[0; 6], &[], 1);
    let (response, _) = target.send(&[0x1a, 0, 0x3f, 0, 0xff, 0], &[LEFTOVER; 255], 255);
    assert_eq!(response.status, Status::Good);
}
