//! What goes wrong in a backstore stays a command's matter, and every command gets its answer.

use std::cell::Cell;

use tcmu::scsi::Status;
use tcmu_handler::{Backstore, Buffer, Capabilities, Error, ErrorKind, Io, Result, WriteFlags};

use crate::lun::{BLOCK, Lun, SIZE, pattern};

const GOOD: u8 = Status::Good.code();
const CHECK_CONDITION: u8 = Status::CheckCondition.code();

/// Fails, panics or waits, by the block that is asked for.
struct Moody {
    reads: Cell<u32>,
}

const FAILS: u64 = 8;
const PANICS: u64 = 16;
const ON_A_THREAD: u64 = 24;
const PANICS_ON_A_THREAD: u64 = 32;

impl Backstore for Moody {
    fn capabilities(&self) -> Capabilities {
        Capabilities::new(SIZE)
    }

    async fn read(&self, io: &Io, buffer: Buffer<'_>, offset: u64) -> Result<()> {
        self.reads.set(self.reads.get() + 1);
        match offset / BLOCK as u64 {
            FAILS => return Err(Error::new(ErrorKind::Read, "the test wants it so")),
            PANICS => panic!("the test wants it so"),
            ON_A_THREAD => {
                let byte = io.blocking(|| 7u8).await.unwrap();
                buffer.fill(byte);
            }
            PANICS_ON_A_THREAD => {
                let result = io.blocking(|| panic!("the test wants it so")).await;
                result.map_err(|error| Error::os("on a thread", error))?;
            }
            _ => buffer.fill(1),
        }
        Ok(())
    }

    async fn write(&self, _: &Io, _: Buffer<'_>, _: u64, _: WriteFlags) -> Result<()> {
        Err(Error::new(ErrorKind::NoSpace, "the test wants it so"))
    }
}

pub(crate) fn sense_key(sense: &[u8]) -> u8 {
    if sense[0] & 0x7f >= 0x72 {
        sense[1] & 0xf
    } else {
        sense[2] & 0xf
    }
}

#[test]
fn errors_and_panics_are_answered_with_sense_and_nothing_else_suffers() {
    let mut lun = Lun::new(Moody {
        reads: Cell::new(0),
    });
    let (read, write) = (
        |lun: &mut Lun, block: u64| lun.read(block as u32, 1),
        |lun: &mut Lun| lun.write(0, &pattern(0, BLOCK)),
    );
    let tags = [
        (read(&mut lun, 0), GOOD, 0),
        (read(&mut lun, FAILS), CHECK_CONDITION, 0x3),
        (read(&mut lun, PANICS), CHECK_CONDITION, 0x4),
        (read(&mut lun, ON_A_THREAD), GOOD, 0),
        (read(&mut lun, PANICS_ON_A_THREAD), CHECK_CONDITION, 0x4),
        (write(&mut lun), CHECK_CONDITION, 0x7),
        (read(&mut lun, 1), GOOD, 0),
    ];
    for (number, (tag, status, key)) in tags.into_iter().enumerate() {
        let finished = lun.wait(tag);
        assert_eq!(finished.status, status, "command {number}");
        if status == CHECK_CONDITION {
            assert_eq!(sense_key(&finished.sense), key, "command {number}");
        }
    }
    assert_eq!(lun.kernel.in_flight(), 0);
    assert_eq!(lun.kernel.broken(), None);
}

#[test]
fn a_damaged_ring_stops_its_lun_and_no_other() {
    let (kernel, device) = tcmu::mock::MockKernel::new(tcmu::mock::Config::default()).unwrap();
    let mut lun = Lun::new(Moody {
        reads: Cell::new(0),
    });
    let memory = std::sync::Arc::clone(device.memory());
    let identity = tcmu_runner::device_server::Identity::default();
    let geometry = tcmu_runner::device_server::Geometry {
        size: SIZE,
        block_size: std::num::NonZeroU32::new(BLOCK as u32).unwrap(),
        max_transfer_blocks: 0,
    };
    let damaged = Moody {
        reads: Cell::new(0),
    };
    lun.reactor
        .attach(
            Box::new(device),
            std::sync::Arc::clone(&memory),
            damaged,
            identity,
            geometry,
            true,
        )
        .unwrap();
    let mut kernel = kernel;
    kernel.submit(&[0; 6], tcmu::mock::Data::None).unwrap();
    // The first entry's length and opcode, right behind the mailbox.
    memory.store_u32(128, 0xffff_fff8).unwrap();
    for block in 0..8 {
        let tag = lun.read(block, 1);
        assert_eq!(lun.wait(tag).status, GOOD);
    }
    assert!(kernel.reap().is_empty());
}
