//! FORMAT UNIT and SANITIZE, by the tools that administrators use.

use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use tcmu_guest_tests::daemon::Daemon;
use tcmu_guest_tests::lun::{Disk, MIB};
use tcmu_guest_tests::sh::{self, SG_ILLEGAL_REQUEST, SG_INVALID_OPCODE};
use tcmu_guest_tests::{TestResult, guest_test};

/// sg3_utils: "not ready".
const SG_NOT_READY: i32 = 2;

/// Whether the file behind a LUN holds this byte throughout.
fn image_holds(name: &str, byte: u8) -> anyhow::Result<bool> {
    let image = fs::read(format!("/run/{name}.img"))?;
    Ok(image.iter().all(|&b| b == byte))
}

/// Waits until the unit is ready; returns how often it said that it was not.
fn await_ready(disk: &Disk) -> anyhow::Result<u32> {
    let deadline = Instant::now() + Duration::from_secs(60);
    let mut refused = 0;
    loop {
        let output = sh::run_any(&["sg_turs", disk.path()])?;
        match output.status.code() {
            Some(0) => return Ok(refused),
            Some(SG_NOT_READY) => refused += 1,
            other => anyhow::bail!("TEST UNIT READY ended with {other:?}"),
        }
        ensure!(Instant::now() < deadline, "the unit does not become ready");
        thread::sleep(Duration::from_millis(20));
    }
}

guest_test!(formatting_zeroes_the_disk);
fn formatting_zeroes_the_disk() -> TestResult {
    let daemon = Daemon::start()?;
    let disk = Disk::of_image("format", 32 * MIB)?;
    for offset in [0, 8 * MIB, 32 * MIB - 4096] {
        disk.write(offset, 0x77)?;
    }
    sh::run(&["sg_format", "--format", "--quick", "--wait", disk.path()])?;
    ensure!(image_holds("format", 0)?, "something was left");
    ensure!(disk.holds(8 * MIB, 0)?);
    // Another block length, protection information.
    for option in ["--size=4096", "--fmtpinfo=2"] {
        let code = sh::run_any(&[
            "sg_format",
            "--format",
            "--quick",
            "--wait",
            option,
            disk.path(),
        ])?
        .status
        .code();
        ensure!(
            code == Some(SG_ILLEGAL_REQUEST),
            "sg_format {option} ended with {code:?}"
        );
    }
    disk.write(0, 0x11)?;
    ensure!(disk.holds(0, 0x11)?, "the disk does not work any more");
    disk.delete()?;
    daemon.stop()
}

guest_test!(sanitizing_overwrites_and_erases);
fn sanitizing_overwrites_and_erases() -> TestResult {
    let daemon = Daemon::start()?;
    let disk = Disk::of_image("sanitize", 16 * MIB)?;
    disk.write(4 * MIB, 0x77)?;
    let sanitize = |options: &[&str], code| {
        let fixed = ["sg_sanitize", "--quick", "--wait"];
        sh::run_code(&[&fixed, options, &[disk.path()]].concat(), code)
    };
    fs::write("/run/pattern", [0xa5])?;
    sanitize(&["--overwrite", "--pattern=/run/pattern", "--count=3"], 0)?;
    ensure!(image_holds("sanitize", 0xa5)?, "it was not overwritten");
    sanitize(&["--block"], 0)?;
    ensure!(image_holds("sanitize", 0)?, "it was not erased");
    sanitize(&["--crypto"], SG_ILLEGAL_REQUEST)?;
    sanitize(&["--fail"], 0)?;
    disk.delete()?;
    daemon.stop()
}

guest_test!(sanitizing_goes_on_after_a_restart);
fn sanitizing_goes_on_after_a_restart() -> TestResult {
    const NAME: &str = "restart";
    let daemon = Daemon::start()?;
    let disk = Disk::of_image(NAME, 256 * MIB)?;
    fs::write("/run/pattern", [0x3c])?;
    let overwrite = [
        "sg_sanitize",
        "--quick",
        "--early",
        "--overwrite",
        "--pattern=/run/pattern",
        "--count=31",
        disk.path(),
    ];
    sh::run(&overwrite)?;
    sh::run_code(&["sg_turs", disk.path()], SG_NOT_READY)?;
    let sense = sh::run_code(&["sg_requests", disk.path()], 0)?;
    ensure!(
        sense.contains("sanitize in progress") && sense.contains("Progress indication"),
        "REQUEST SENSE does not tell of it: {sense}"
    );
    // Shut down: it ends soon, and goes on.
    daemon.stop()?;
    ensure!(
        !image_holds(NAME, 0x3c)? || kept_in_journal(NAME)?,
        "it had ended already"
    );
    let daemon = Daemon::start()?;
    ensure!(
        await_ready(&disk)? > 0,
        "it did not go on: {}",
        daemon.log()
    );
    ensure!(image_holds(NAME, 0x3c)?, "it was not overwritten");

    // Killed: likewise.
    fs::write("/run/pattern", [0xc3])?;
    sh::run(&overwrite)?;
    daemon.kill()?;
    ensure!(kept_in_journal(NAME)?, "the journal is empty");
    let daemon = Daemon::start()?;
    await_ready(&disk)?;
    ensure!(image_holds(NAME, 0xc3)?, "it was not overwritten");
    ensure!(!kept_in_journal(NAME)?, "the journal was not cleared");
    disk.delete()?;
    daemon.stop()
}

/// Whether a LUN's journal says that something is to be done.
fn kept_in_journal(name: &str) -> anyhow::Result<bool> {
    let ending = format!(".{name}");
    let entries = fs::read_dir("/var/lib/tcmu-runner/journal").context("the journals")?;
    Ok(entries
        .flatten()
        .any(|entry| entry.file_name().to_string_lossy().ends_with(&ending)))
}

guest_test!(a_disk_is_deleted_while_it_is_sanitized);
fn a_disk_is_deleted_while_it_is_sanitized() -> TestResult {
    let daemon = Daemon::start()?;
    let disk = Disk::of_image("gone", 64 * MIB)?;
    sh::run(&[
        "sg_sanitize",
        "--quick",
        "--early",
        "--overwrite",
        "--zero",
        "--count=31",
        disk.path(),
    ])?;
    disk.delete()?;
    daemon.stop()
}

guest_test!(what_gives_nothing_back_is_not_erased);
fn what_gives_nothing_back_is_not_erased() -> TestResult {
    let daemon = Daemon::start()?;
    let disk = Disk::create("null", "null", "null", &["--size", "16M"])?;
    let code = sh::run_any(&["sg_sanitize", "--quick", "--wait", "--block", disk.path()])?
        .status
        .code();
    ensure!(
        [Some(SG_ILLEGAL_REQUEST), Some(SG_INVALID_OPCODE)].contains(&code),
        "BLOCK ERASE ended with {code:?}"
    );
    disk.delete()?;
    daemon.stop()
}
