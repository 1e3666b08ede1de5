//! The examples for those who build on the crates, as they are.

use std::fs::{self, File};
use std::os::unix::fs::FileExt as _;

use anyhow::ensure;
use tcmu_guest_tests::bus::{Bus, NAME, await_name};
use tcmu_guest_tests::daemon::Daemon;
use tcmu_guest_tests::lun::{Disk, MIB};
use tcmu_guest_tests::{TestResult, guest_test, sh};

guest_test!(a_runner_with_a_handler_of_ones_own);
fn a_runner_with_a_handler_of_ones_own() -> TestResult {
    let daemon = Daemon::start_with("examples/custom_handler", &[], &[])?;
    // Layers lie over it as over any other.
    for (name, handler, config) in [
        ("plain", "numbers", "any"),
        ("slow", "delay", "us=1/numbers/any"),
    ] {
        let disk = Disk::create(name, handler, config, &["--size", "16M"])?;
        let mut block = [0; 4096];
        File::open(disk.path())?.read_exact_at(&mut block, MIB)?;
        for (number, bytes) in block.chunks(8).enumerate() {
            let place = MIB + 8 * number as u64;
            ensure!(bytes == place.to_le_bytes(), "{name}: {bytes:?} at {place}");
        }
        let read_only = sh::run(&["blockdev", "--getro", disk.path()])?;
        ensure!(read_only.trim() == "1", "{name} can be written to");
        disk.delete()?;
    }
    daemon.stop()
}

guest_test!(a_ring_without_a_runner);
fn a_ring_without_a_runner() -> TestResult {
    let server = Daemon::start_other("examples/ram_disk", &[], "serving")?;
    let disk = Disk::create("first", "ramdisk", "any", &["--size", "16M"])?;
    let other = Disk::create("second", "ramdisk", "any", &["--size", "8M"])?;
    ensure!(disk.size()? == 16 * MIB && other.size()? == 8 * MIB);
    disk.write(MIB, 1)?;
    other.write(MIB, 2)?;
    disk.write(15 * MIB, 3)?;
    ensure!(disk.holds(MIB, 1)? && disk.holds(15 * MIB, 3)? && other.holds(MIB, 2)?);
    ensure!(disk.holds(2 * MIB, 0)?);
    // A command that it does not know is refused, and the disk goes on.
    let unknown = ["sg_vpd", "--page=0xb0", disk.path()];
    ensure!(!sh::run_any(&unknown)?.status.success());
    disk.delete()?;
    ensure!(other.holds(MIB, 2)?, "the other disk was disturbed");
    other.delete()?;
    server.kill()
}

guest_test!(a_handler_in_a_process_of_its_own);
fn a_handler_in_a_process_of_its_own() -> TestResult {
    let _bus = Bus::start()?;
    let daemon = Daemon::start_on_bus()?;
    await_name(NAME, true)?;
    let server = Daemon::start_other("examples/ram_disk", &["--on-bus"], "serving")?;
    let handlers = fs::read_to_string("/run/tcmu-runner/handlers")?;
    ensure!(handlers.contains("ramdisk\n"), "{handlers}");
    let (its, ours) = (
        Disk::create("its", "ramdisk", "any", &["--size", "16M"])?,
        Disk::of_image("ours", 16 * MIB)?,
    );
    its.write(MIB, 1)?;
    ours.write(MIB, 2)?;
    ensure!(its.holds(MIB, 1)? && ours.holds(MIB, 2)?);
    its.delete()?;
    server.kill()?;
    ensure!(ours.holds(MIB, 2)?);
    ours.delete()?;
    daemon.stop()
}
