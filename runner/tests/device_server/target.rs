//! Sends commands to a logical unit.

use std::cell::RefCell;
use std::future::{Future, poll_fn};
use std::num::NonZeroU32;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;

use tcmu::scsi::{AdditionalSense, SenseKey, Status};
use tcmu_handler::{Capabilities, Io, OwnedBuffer, testing};
use tcmu_runner::device_server::{Geometry, Identity, LogicalUnit, Request, Response, TargetCore};

use crate::disk::{Call, Disk, everything};

/// What buffers hold before a command: somebody else's data.
pub(crate) const LEFTOVER: u8 = 0xee;

/// The usual size of the disk: 1 MiB, 2048 blocks.
pub(crate) const BLOCKS: u64 = 2048;
pub(crate) const BLOCK: usize = 512;

/// A logical unit on a [`Disk`].
pub(crate) struct Target {
    pub(crate) unit: Rc<LogicalUnit<Disk>>,
    pub(crate) io: Io,
    /// What the unit does beside commands, as far as it has come.
    background: RefCell<Option<Pin<Box<dyn Future<Output = ()>>>>>,
}

impl Target {
    /// A disk that does everything, with its write cache on.
    pub(crate) fn new() -> Self {
        Self::with(everything(BLOCKS * BLOCK as u64), true)
    }

    pub(crate) fn with(capabilities: Capabilities, write_cache: bool) -> Self {
        let identity = Identity {
            serial: "6f2d6a7e-1b1c-4d2e-9b1a-0123456789ab".to_owned(),
            name: "disk1".to_owned(),
            ..Identity::default()
        };
        let geometry = Geometry {
            size: capabilities.size,
            block_size: NonZeroU32::new(BLOCK as u32).unwrap(),
            max_transfer_blocks: 1024,
        };
        let disk = Disk::new(capabilities);
        Self::serving(LogicalUnit::new(disk, identity, geometry, write_cache))
    }

    pub(crate) fn serving(unit: LogicalUnit<Disk>) -> Self {
        Self {
            unit: Rc::new(unit),
            io: testing::io(),
            background: RefCell::default(),
        }
    }

    /// The same on a target core.
    pub(crate) fn on(mut self, core: Arc<impl TargetCore + 'static>) -> Self {
        let unit = Rc::into_inner(self.unit).expect("nothing runs yet");
        self.unit = Rc::new(unit.with_target_core(core));
        self
    }

    /// Goes a step further with what the unit does beside commands; says whether there was anything.
    pub(crate) fn step_background(&self) -> bool {
        let mut background = self.background.borrow_mut();
        if background.is_none() && self.unit.has_background() {
            let (unit, io) = (Rc::clone(&self.unit), self.io.clone());
            *background = Some(Box::pin(async move { unit.background(&io).await }));
        }
        let Some(running) = background.as_mut() else {
            return false;
        };
        let step = testing::block_on(poll_fn(|context| {
            Poll::Ready(running.as_mut().poll(context))
        }));
        if step.is_ready() {
            *background = None;
        }
        true
    }

    /// Ends what the unit does beside commands.
    pub(crate) fn finish_background(&self) {
        while self.step_background() {}
    }

    pub(crate) fn disk(&self) -> &Disk {
        self.unit.backstore()
    }

    pub(crate) fn calls(&self) -> Vec<Call> {
        self.disk().calls()
    }

    pub(crate) fn run(&self, cdb: &[u8], data: &OwnedBuffer) -> Response {
        let data = data.view();
        let mut command = pin!(self.unit.execute(&self.io, Request { cdb, data }));
        let response = testing::block_on(poll_fn(|context| {
            loop {
                if let Poll::Ready(response) = command.as_mut().poll(context) {
                    return Poll::Ready(response);
                }
                // Otherwise the command waits for another thread.
                if !self.step_background() {
                    return Poll::Pending;
                }
            }
        }));
        assert_eq!(
            response.status == Status::CheckCondition,
            response.sense.is_some(),
            "{cdb:x?}: {response:?}"
        );
        response
    }

    pub(crate) fn no_data(&self, cdb: &[u8]) -> Response {
        self.run(cdb, &testing::buffer(0))
    }

    pub(crate) fn data_out(&self, cdb: &[u8], data: &[u8]) -> Response {
        self.run(cdb, &testing::scattered(data, 300))
    }

    /// Runs a command with a data-in buffer of `len` bytes; returns the whole buffer as well.
    pub(crate) fn data_in(&self, cdb: &[u8], len: usize) -> (Response, Vec<u8>) {
        let buffer = testing::scattered(&vec![LEFTOVER; len], 300);
        let response = self.run(cdb, &buffer);
        (response, testing::contents(&buffer))
    }

    /// Runs a command that has to succeed, and returns the data that it supplied.
    pub(crate) fn parameters(&self, cdb: &[u8]) -> Vec<u8> {
        const LEN: usize = 4096;
        let (response, mut data) = self.data_in(cdb, LEN);
        assert_eq!(response.status, Status::Good, "{cdb:x?}: {response:?}");
        let len = response.read_len.map_or(LEN, |len| len as usize);
        assert!(data[len..].iter().all(|&byte| byte == 0));
        data.truncate(len);
        data
    }
}

/// Asserts that a command ended with GOOD.
#[track_caller]
pub(crate) fn assert_good(response: Response) {
    assert_eq!(response.status, Status::Good, "{response:?}");
}

/// Asserts what CHECK CONDITION says.
#[track_caller]
pub(crate) fn assert_sense(response: Response, key: SenseKey, code: AdditionalSense) {
    let sense = response.sense.expect("there is no CHECK CONDITION");
    assert_eq!(
        (sense.key, sense.code),
        (key, code),
        "{}",
        sense.code.text()
    );
}

/// Asserts ILLEGAL REQUEST.
#[track_caller]
pub(crate) fn assert_illegal(response: Response, code: AdditionalSense) {
    assert_sense(response, SenseKey::IllegalRequest, code);
}

/// CDBs of commands on blocks.
pub(crate) mod cdb {
    pub(crate) fn ten(opcode: u8, flags: u8, lba: u32, blocks: u16) -> [u8; 10] {
        let mut cdb = [0; 10];
        cdb[0] = opcode;
        cdb[1] = flags;
        cdb[2..6].copy_from_slice(&lba.to_be_bytes());
        cdb[7..9].copy_from_slice(&blocks.to_be_bytes());
        cdb
    }

    pub(crate) fn sixteen(opcode: u8, flags: u8, lba: u64, blocks: u32) -> [u8; 16] {
        let mut cdb = [0; 16];
        cdb[0] = opcode;
        cdb[1] = flags;
        cdb[2..10].copy_from_slice(&lba.to_be_bytes());
        cdb[10..14].copy_from_slice(&blocks.to_be_bytes());
        cdb
    }

    pub(crate) fn twelve(opcode: u8, flags: u8, lba: u32, blocks: u32) -> [u8; 12] {
        let mut cdb = [0; 12];
        cdb[0] = opcode;
        cdb[1] = flags;
        cdb[2..6].copy_from_slice(&lba.to_be_bytes());
        cdb[6..10].copy_from_slice(&blocks.to_be_bytes());
        cdb
    }

    pub(crate) fn thirty_two(action: u8, flags: u8, lba: u64, blocks: u32) -> [u8; 32] {
        let mut cdb = [0; 32];
        cdb[0] = 0x7f;
        cdb[7] = 0x18;
        cdb[9] = action;
        cdb[10] = flags;
        cdb[12..20].copy_from_slice(&lba.to_be_bytes());
        cdb[28..].copy_from_slice(&blocks.to_be_bytes());
        cdb
    }

    /// A read or write in each layout that can express it.
    pub(crate) fn every_layout(write: bool, flags: u8, lba: u64, blocks: u32) -> Vec<Vec<u8>> {
        let opcode = |read, written| if write { written } else { read };
        let mut cdbs = vec![sixteen(opcode(0x88, 0x8a), flags, lba, blocks).to_vec()];
        let long = thirty_two(opcode(0x09, 0x0b), flags, lba, blocks);
        cdbs.push(long.to_vec());
        let Ok(lba) = u32::try_from(lba) else {
            return cdbs;
        };
        let twelve = twelve(opcode(0xa8, 0xaa), flags, lba, blocks);
        cdbs.push(twelve.to_vec());
        if let Ok(blocks) = u16::try_from(blocks) {
            cdbs.push(ten(opcode(0x28, 0x2a), flags, lba, blocks).to_vec());
        }
        if lba < 1 << 21 && (1..=256).contains(&blocks) && flags == 0 {
            let [_, high, middle, low] = lba.to_be_bytes();
            cdbs.push(vec![opcode(0x08, 0x0a), high, middle, low, blocks as u8, 0]);
        }
        cdbs
    }
}
