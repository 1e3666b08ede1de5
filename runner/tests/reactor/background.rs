//! What runs beside commands.

use tcmu::mock::Data;
use tcmu::scsi::Status;
use tcmu_handler::{Backstore, Buffer, Capabilities, Io, Result, WriteFlags};

use crate::lun::{BLOCK, Lun, SIZE, image};

const GOOD: u8 = Status::Good.code();
const CHECK_CONDITION: u8 = Status::CheckCondition.code();

/// FORMAT UNIT with IMMED and a pattern of one byte.
fn format(lun: &mut Lun, byte: u8) -> u8 {
    let list = [0, 0x8a, 0, 0, 0, 1, 0, 1, byte];
    let tag = lun.submit(&[0x04, 0x10, 0, 0, 0, 0], Data::Out(&list));
    lun.wait(tag).status
}

#[test]
fn a_format_goes_on_while_commands_are_answered() {
    let folder = tempfile::tempdir().unwrap();
    let mut lun = Lun::new(image(folder.path()));
    assert_eq!(format(&mut lun, 0x5a), GOOD);
    let mut refused = 0;
    loop {
        let tag = lun.submit(&[0; 6], Data::None);
        let finished = lun.wait(tag);
        if finished.status == GOOD {
            break;
        }
        assert_eq!(finished.status, CHECK_CONDITION);
        assert_eq!(finished.sense[2] & 0xf, 2);
        assert_eq!(finished.sense[12..14], [4, 4]);
        refused += 1;
    }
    assert!(refused > 0, "the format was not seen to be under way");
    let image = std::fs::read(folder.path().join("image")).unwrap();
    assert!(image.iter().all(|&byte| byte == 0x5a));
}

#[test]
fn a_format_without_immed_ends_with_its_command() {
    let folder = tempfile::tempdir().unwrap();
    let mut lun = Lun::new(image(folder.path()));
    let tag = lun.write(0, &[7; 8 * BLOCK]);
    assert_eq!(lun.wait(tag).status, GOOD);
    let tag = lun.submit(&[0x04, 0, 0, 0, 0, 0], Data::None);
    assert_eq!(lun.wait(tag).status, GOOD);
    let image = std::fs::read(folder.path().join("image")).unwrap();
    assert!(image.iter().all(|&byte| byte == 0));
}

/// Panics when it is written to.
struct Panics;

impl Backstore for Panics {
    fn capabilities(&self) -> Capabilities {
        Capabilities::new(SIZE)
    }

    async fn read(&self, _: &Io, buffer: Buffer<'_>, _: u64) -> Result<()> {
        buffer.fill(0);
        Ok(())
    }

    async fn write(&self, _: &Io, _: Buffer<'_>, _: u64, _: WriteFlags) -> Result<()> {
        panic!("the test wants it so");
    }
}

#[test]
fn a_backstore_that_panics_fails_the_format() {
    let mut lun = Lun::new(Panics);
    let tag = lun.submit(&[0x04, 0, 0, 0, 0, 0], Data::None);
    let finished = lun.wait(tag);
    assert_eq!(finished.status, CHECK_CONDITION);
    assert_eq!(finished.sense[2] & 0xf, 3);
    assert_eq!(finished.sense[12..14], [0x31, 0x01]);
    let tag = lun.submit(&[0; 6], Data::None);
    assert_eq!(lun.wait(tag).sense[12..14], [0x31, 0x00]);
}
