//! Layers over a handler, set up by configuration, as an initiator sees them.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};

use anyhow::{Context as _, ensure};
use rustix::fs::OFlags;
use rustix::io::Errno;
use tcmu_guest_tests::bus::{Bus, NAME, await_name};
use tcmu_guest_tests::daemon::Daemon;
use tcmu_guest_tests::lun::{Disk, MIB, image, tcmuctl_fails};
use tcmu_guest_tests::{TestResult, guest_test, sh};

/// Writes a block past the page cache, without a flush.
fn write_unflushed(disk: &Disk, offset: u64, value: u8) -> std::io::Result<()> {
    /// For direct I/O, memory has to be aligned.
    #[repr(align(4096))]
    struct Block([u8; 4096]);
    let direct = OFlags::DIRECT.bits() as i32;
    let mut options = File::options();
    let disk = options.write(true).custom_flags(direct).open(disk.path())?;
    disk.write_all_at(&Block([value; 4096]).0, offset)
}

guest_test!(faults_reach_the_initiator_and_end);
fn faults_reach_the_initiator_and_end() -> TestResult {
    let daemon = Daemon::start()?;
    let path = image("faulty", 16 * MIB)?;
    let config = format!("op=write/from=8M/times=1/error=ENOSPC/delay/ms=1/file/{path}");
    let disk = Disk::create("faulty", "fault", &config, &["--size", "16M"])?;
    write_unflushed(&disk, MIB, 1)?;
    let error = write_unflushed(&disk, 8 * MIB, 2).err();
    let error = error.context("the write that was to fail succeeds")?;
    let errno = Errno::from_io_error(&error);
    ensure!(errno == Some(Errno::NOSPC), "{error}");
    write_unflushed(&disk, 8 * MIB, 3)?;
    ensure!(disk.holds(MIB, 1)? && disk.holds(8 * MIB, 3)?);
    disk.delete()?;
    // It was the file below all the time.
    let bytes = fs::read(&path)?;
    ensure!(bytes[MIB as usize] == 1 && bytes[8 * MIB as usize] == 3);
    daemon.stop()
}

guest_test!(a_volatile_cache_is_lost_with_the_daemon);
fn a_volatile_cache_is_lost_with_the_daemon() -> TestResult {
    let daemon = Daemon::start()?;
    let config = format!("file/{}", image("cached", 16 * MIB)?);
    let disk = Disk::create("cached", "volatile", &config, &["--size", "16M"])?;
    // This one flushes.
    disk.write(0, 1)?;
    write_unflushed(&disk, 0, 2)?;
    write_unflushed(&disk, MIB, 2)?;
    ensure!(disk.holds(0, 2)? && disk.holds(MIB, 2)?);
    daemon.kill()?;
    let daemon = Daemon::start()?;
    ensure!(disk.holds(0, 1)?, "what was flushed is not there");
    ensure!(disk.holds(MIB, 0)?, "what was not flushed is there");
    disk.delete()?;
    daemon.stop()
}

guest_test!(a_mirror_tells_what_has_changed);
fn a_mirror_tells_what_has_changed() -> TestResult {
    let daemon = Daemon::start()?;
    let path = image("mirrored", 16 * MIB)?;
    let disk = Disk::create(
        "mirrored",
        "verify",
        &format!("file/{path}"),
        &["--size", "16M"],
    )?;
    disk.write(MIB, 5)?;
    ensure!(disk.holds(MIB, 5)?);
    let behind = File::options().write(true).open(&path)?;
    behind.write_all_at(&[6], MIB + 100)?;
    ensure!(disk.holds(MIB, 5).is_err(), "the change was not noticed");
    let found = format!("byte={}", MIB + 100);
    ensure!(daemon.log().contains(&found), "the log does not tell");
    disk.write(MIB, 7)?;
    ensure!(disk.holds(MIB, 7)?);
    disk.delete()?;
    daemon.stop()
}

guest_test!(layers_are_checked_down_to_the_image);
fn layers_are_checked_down_to_the_image() -> TestResult {
    let daemon = Daemon::start()?;
    for (handler, config, reason) in [
        ("delay", "s=5/file//run/x.img", "unknown option"),
        ("delay", "ms=5/tape//run/x.img", "no handler"),
        ("log", "file//run/none.img", "none.img"),
    ] {
        let before = daemon.log().len();
        tcmuctl_fails(&[
            "create",
            "refused",
            "--handler",
            handler,
            "--config",
            config,
            "--size",
            "16M",
            "--loopback",
        ])?;
        let log = daemon.log();
        ensure!(log[before..].contains(reason), "{config}: {log}");
    }
    daemon.stop()
}

guest_test!(targetcli_takes_layers_for_handlers);
fn targetcli_takes_layers_for_handlers() -> TestResult {
    let _bus = Bus::start()?;
    let daemon = Daemon::start_on_bus()?;
    await_name(NAME, true)?;
    let config = format!(
        "cfgstring=ms=1/op=read+write/file/{}",
        image("slow", 16 * MIB)?
    );
    let folder = "/backstores/user:delay";
    let create = [
        "targetcli",
        folder,
        "create",
        "name=slow",
        "size=16M",
        &config,
    ];
    sh::run(&create)?;
    let listed = sh::run(&["targetcli", folder, "ls"])?;
    ensure!(
        listed.contains("slow") && listed.contains("ms=1/op=read+write"),
        "{listed}"
    );
    sh::run(&["targetcli", folder, "delete", "slow"])?;
    daemon.stop()
}
