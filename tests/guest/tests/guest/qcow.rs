//! LUNs on qcow2 images.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use tcmu_guest_tests::daemon::Daemon;
use tcmu_guest_tests::lun::{Disk, MIB, tcmuctl, tcmuctl_fails};
use tcmu_guest_tests::{TestResult, guest_test, sh};

/// The words of a fio job that writes all over a disk and reads it back.
pub(crate) fn verify(disk: &Disk) -> Vec<String> {
    let mut words: Vec<String> = [
        "fio",
        "--name=verify",
        "--direct=1",
        "--ioengine=libaio",
        "--iodepth=32",
        "--rw=randwrite",
        "--bsrange=512-128k",
        "--blockalign=512",
        "--serialize_overlap=1",
        "--size=64M",
        "--io_size=48M",
        "--verify=crc32c",
        "--do_verify=1",
        "--verify_fatal=1",
        "--verify_state_save=0",
    ]
    .map(str::to_owned)
    .to_vec();
    words.push(format!("--filename={}", disk.path()));
    words
}

guest_test!(a_qcow_image_is_made_written_enlarged_and_found_whole);
fn a_qcow_image_is_made_written_enlarged_and_found_whole() -> TestResult {
    let daemon = Daemon::start()?;
    let image = "/run/made.qcow2";
    let config = format!("{image};create=on;cluster_size=16k");
    let disk = Disk::create("made", "qcow", &config, &["--size", "64M"])?;
    sh::run(&verify(&disk))?;
    // qemu is refused while the LUN is there.
    let refused = sh::run_any(&["qemu-img", "check", image])?;
    let words = String::from_utf8_lossy(&refused.stderr).into_owned();
    ensure!(words.contains("lock"), "qemu-img check: {words}");

    tcmuctl(&["resize", disk.name(), "96M"])?;
    ensure!(disk.size()? == 96 * MIB);
    disk.write(90 * MIB, 7)?;
    ensure!(disk.holds(90 * MIB, 7)? && disk.holds(80 * MIB, 0)?);

    // What is unmapped is given back to the file system.
    let before = fs::metadata(image)?.blocks();
    sh::run(&["blkdiscard", disk.path()])?;
    sh::run(&["blockdev", "--flushbufs", disk.path()])?;
    ensure!(disk.holds(90 * MIB, 0)?);
    disk.delete()?;
    let after = fs::metadata(image)?.blocks();
    ensure!(
        after < before / 4,
        "{after} of {before} blocks are left after everything was discarded"
    );
    sh::run(&["qemu-img", "check", "-f", "qcow2", image])?;
    daemon.stop()
}

guest_test!(an_overlay_leaves_its_backing_file_alone);
fn an_overlay_leaves_its_backing_file_alone() -> TestResult {
    let daemon = Daemon::start()?;
    let base: Vec<u8> = (0..64 << 20).map(|at: u32| (at >> 12) as u8).collect();
    fs::write("/run/base.img", &base)?;
    let config = "/run/over.qcow2;create=on;backing=base.img;backing_format=raw";
    let disk = Disk::create("over", "qcow", config, &["--size", "64M"])?;
    ensure!(disk.holds(5 * 4096, 5)?);
    disk.write(5 * 4096, 0x77)?;
    ensure!(disk.holds(4 * 4096, 4)? && disk.holds(5 * 4096, 0x77)? && disk.holds(6 * 4096, 6)?);
    sh::run(&verify(&disk))?;
    disk.delete()?;
    ensure!(
        fs::read("/run/base.img")? == base,
        "the backing file changed"
    );
    sh::run(&["qemu-img", "check", "-f", "qcow2", "/run/over.qcow2"])?;
    daemon.stop()
}

guest_test!(a_killed_daemon_loses_no_write_to_a_qcow_image);
fn a_killed_daemon_loses_no_write_to_a_qcow_image() -> TestResult {
    let mut daemon = Daemon::start()?;
    let config = "/run/killed.qcow2;create=on;cluster_size=4k";
    let disk = Disk::create("killed", "qcow", config, &["--size", "64M"])?;
    for round in 0..5u8 {
        // Acknowledged, not flushed: in the image all the same.
        disk.write(u64::from(round) * MIB, round + 1)?;
        let mut load = Command::new("dd")
            .args(["if=/dev/zero", "bs=4k", "count=2048", "oflag=direct"])
            .arg(format!("of={}", disk.path()))
            .arg("seek=4096")
            .stderr(Stdio::null())
            .spawn()
            .context("cannot run dd")?;
        thread::sleep(Duration::from_millis(100));
        daemon.kill()?;
        daemon = Daemon::start()?;
        // What was in flight may have failed; the LUN serves on.
        load.wait()?;
        for earlier in 0..=round {
            ensure!(
                disk.holds(u64::from(earlier) * MIB, earlier + 1)?,
                "round {round}: write {earlier} is lost"
            );
        }
    }
    disk.delete()?;
    // Leaks (exit code 3) are what a kill may leave.
    let check = sh::run_any(&["qemu-img", "check", "-f", "qcow2", "/run/killed.qcow2"])?;
    ensure!(
        matches!(check.status.code(), Some(0 | 3)),
        "qemu-img check: {}",
        String::from_utf8_lossy(&check.stdout)
    );
    daemon.stop()
}

guest_test!(a_qcow_image_that_cannot_be_served_is_refused_with_words);
fn a_qcow_image_that_cannot_be_served_is_refused_with_words() -> TestResult {
    let daemon = Daemon::start()?;
    fs::write("/run/raw.img", vec![1; 1 << 20])?;
    for config in [
        "/run/raw.img",
        "/run/nothing.qcow2",
        "/run/raw.img;fast=yes",
    ] {
        tcmuctl_fails(&[
            "create",
            "no",
            "--handler",
            "qcow",
            "--config",
            config,
            "--size",
            "1M",
            "--loopback",
        ])?;
    }
    let log = daemon.log();
    for words in [
        "not a qcow2 image",
        "nothing.qcow2",
        "unknown option \"fast\"",
    ] {
        ensure!(log.contains(words), "\"{words}\" is not in the log: {log}");
    }
    daemon.stop()
}
