//! SCSI commands that are none of the usual ones get an answer, and at once.

use anyhow::ensure;
use tcmu_guest_tests::daemon::Daemon;
use tcmu_guest_tests::lun::Disk;
use tcmu_guest_tests::sh::{self, SG_INVALID_OPCODE};
use tcmu_guest_tests::{TestResult, guest_test};

/// sg_raw: the command had no answer in time.
const SG_TIMEOUT: i32 = 33;
/// sg_raw: the transport failed it.
const SG_TRANSPORT_ERROR: i32 = 35;

guest_test!(vendor_opcodes_are_refused);
fn vendor_opcodes_are_refused() -> TestResult {
    let daemon = Daemon::start()?;
    let disk = Disk::create("vendor", "ram", "vendor", &["--size", "16M"])?;
    for opcode in ["c0", "c1", "e0", "ff"] {
        let cdb = [opcode, "0", "0", "0", "0", "0", "0", "0", "0", "0"];
        let command = [&["sg_raw", "--timeout=10", disk.path()][..], &cdb].concat();
        sh::run_code(&command, SG_INVALID_OPCODE)?;
    }
    disk.delete()?;
    daemon.stop()
}

guest_test!(every_opcode_is_answered);
fn every_opcode_is_answered() -> TestResult {
    let daemon = Daemon::start()?;
    let disk = Disk::create("opcodes", "ram", "opcodes", &["--size", "16M"])?;
    for opcode in 0..=0xff_u8 {
        let cdb = format!("{opcode:02x} 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00");
        let cdb: Vec<&str> = cdb.split(' ').collect();
        let command = [&["sg_raw", "--timeout=10", disk.path()][..], &cdb].concat();
        let output = sh::run_any(&command)?;
        let code = output.status.code();
        ensure!(code.is_some(), "sg_raw was killed on opcode {opcode:#04x}");
        ensure!(
            ![Some(SG_TIMEOUT), Some(SG_TRANSPORT_ERROR)].contains(&code),
            "opcode {opcode:#04x} got no status"
        );
    }
    // START STOP UNIT was among them.
    sh::run(&["sg_start", "--start", disk.path()])?;
    disk.write(0, 0x5a)?;
    ensure!(disk.holds(0, 0x5a)?, "the LUN does not work any more");
    disk.delete()?;
    daemon.stop()
}

guest_test!(supported_opcodes_are_reported);
fn supported_opcodes_are_reported() -> TestResult {
    let daemon = Daemon::start()?;
    let disk = Disk::create("report", "ram", "report", &["--size", "16M"])?;
    let list = sh::run(&["sg_opcodes", disk.path()])?;
    for command in ["Read(16)", "Write(10)", "Unmap", "Synchronize cache(10)"] {
        ensure!(list.contains(command), "{command} is not reported");
    }
    disk.delete()?;
    daemon.stop()
}
