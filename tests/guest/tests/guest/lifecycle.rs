//! The daemon starts, stops, dies and comes back; LUNs stay.

use std::fs::{self, File};
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use tcmu_guest_tests::daemon::Daemon;
use tcmu_guest_tests::lun::{Disk, MIB, image, names, tcmuctl_fails};
use tcmu_guest_tests::{TestResult, guest_test, sh};

guest_test!(stops_on_sigterm);
fn stops_on_sigterm() -> TestResult {
    // Without any LUN, and with one.
    Daemon::start()?.stop()?;
    let daemon = Daemon::start()?;
    let disk = Disk::of_image("stay", 16 * MIB)?;
    disk.write(0, 1)?;
    daemon.stop()?;
    let daemon = Daemon::start()?;
    ensure!(disk.holds(0, 1)?);
    disk.delete()?;
    daemon.stop()
}

guest_test!(takes_over_the_luns_of_its_predecessor);
fn takes_over_the_luns_of_its_predecessor() -> TestResult {
    let daemon = Daemon::start()?;
    let disks = (0..4)
        .map(|n| Disk::of_image(&format!("heir{n}"), 16 * MIB))
        .collect::<anyhow::Result<Vec<_>>>()?;
    for (disk, value) in disks.iter().zip(1..) {
        disk.write(MIB, value)?;
    }
    daemon.stop()?;

    let daemon = Daemon::start()?;
    for (disk, value) in disks.iter().zip(1..) {
        ensure!(disk.holds(MIB, value)?, "{} lost its data", disk.name());
        disk.write(2 * MIB, value)?;
        ensure!(disk.holds(2 * MIB, value)?);
    }
    for disk in disks {
        disk.delete()?;
    }
    daemon.stop()
}

guest_test!(comes_back_after_a_kill);
fn comes_back_after_a_kill() -> TestResult {
    let daemon = Daemon::start()?;
    let disk = Disk::of_image("killed", 16 * MIB)?;
    disk.write(0, 0x42)?;
    daemon.kill()?;
    let daemon = Daemon::start()?;
    ensure!(disk.holds(0, 0x42)?);
    disk.write(MIB, 0x43)?;
    ensure!(disk.holds(MIB, 0x43)?);
    disk.delete()?;
    daemon.stop()
}

guest_test!(commands_wait_for_a_restart);
fn commands_wait_for_a_restart() -> TestResult {
    let daemon = Daemon::start()?;
    let disk = Disk::of_image("wait", 16 * MIB)?;
    daemon.stop()?;
    let mut writer = Command::new("dd")
        .args(["if=/dev/zero", "bs=1M", "count=4", "oflag=direct"])
        .arg(format!("of={}", disk.path()))
        .stdin(Stdio::null())
        .spawn()
        .context("cannot run dd")?;
    thread::sleep(Duration::from_secs(1));
    ensure!(
        writer.try_wait()?.is_none(),
        "dd ended although nobody served it"
    );
    let daemon = Daemon::start()?;
    ensure!(writer.wait()?.success(), "dd failed");
    disk.delete()?;
    daemon.stop()
}

guest_test!(a_second_daemon_is_refused);
fn a_second_daemon_is_refused() -> TestResult {
    let daemon = Daemon::start()?;
    let disk = Disk::of_image("first", 16 * MIB)?;
    let (status, log) = Daemon::start_expecting_end()?;
    ensure!(
        status.code() == Some(1),
        "the second daemon ended with {status}"
    );
    let pid = daemon.pid().to_string();
    ensure!(
        log.contains("running") && log.contains(&pid),
        "no reason is given: {log}"
    );
    disk.write(0, 7)?;
    ensure!(disk.holds(0, 7)?, "the first daemon was disturbed");
    disk.delete()?;
    daemon.stop()
}

guest_test!(creation_without_a_daemon_is_refused);
fn creation_without_a_daemon_is_refused() -> TestResult {
    let image = image("alone", 16 * MIB)?;
    let create = [
        "create",
        "alone",
        "--handler",
        "file",
        "--config",
        &image,
        "--loopback",
    ];
    let message = tcmuctl_fails(&create)?;
    ensure!(message.contains("tcmu-runner"), "no advice: {message}");
    ensure!(names()?.is_empty(), "something was left");
    Ok(())
}

guest_test!(a_pid_file_of_a_dead_process_is_nobodys);
fn a_pid_file_of_a_dead_process_is_nobodys() -> TestResult {
    const FILE: &str = "/run/tcmu-runner/tcmu-runner.pid";
    Daemon::start()?.kill()?;
    // The number has gone to somebody else since.
    fs::write(FILE, "1\n")?;
    let daemon = Daemon::start()?;
    ensure!(fs::read_to_string(FILE)?.trim() == daemon.pid().to_string());
    daemon.stop()
}

guest_test!(a_full_run_is_no_reason_to_stop);
fn a_full_run_is_no_reason_to_stop() -> TestResult {
    const FOLDER: &str = "/run/tcmu-runner";
    fs::create_dir_all(FOLDER)?;
    sh::run(&["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", FOLDER])?;
    fs::create_dir(format!("{FOLDER}/in-flight"))?;
    File::create(format!("{FOLDER}/tcmu-runner.pid"))?;
    let full = fs::write(format!("{FOLDER}/filler"), vec![0; 1 << 20]);
    ensure!(full.is_err(), "it is not full");
    let result = on_full_run();
    sh::run(&["umount", FOLDER])?;
    result
}

fn on_full_run() -> TestResult {
    let daemon = Daemon::start()?;
    let disk = Disk::of_image("crowded", 16 * MIB)?;
    disk.write(0, 1)?;
    daemon.await_log(0, "no in-flight table can be kept")?;
    daemon.kill()?;
    let daemon = Daemon::start()?;
    ensure!(disk.holds(0, 1)?);
    disk.write(MIB, 2)?;
    ensure!(disk.holds(MIB, 2)?);
    disk.delete()?;
    daemon.stop()
}
