//! Task management: a reset loses nothing, and waits only for what is in flight.

use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use tcmu_guest_tests::daemon::Daemon;
use tcmu_guest_tests::lun::{self, Disk, MIB};
use tcmu_guest_tests::sg::{GOOD, Sg};
use tcmu_guest_tests::{TestResult, guest_test, sh, skip};

use super::faults::Freezer;

const BLOCK: usize = 512;
/// The sense key UNIT ATTENTION.
const UNIT_ATTENTION: u8 = 6;

/// ORWRITE(16) of zeroes, and its data: it changes nothing, and what concerns its blocks waits for it.
fn or_write(lba: u64, blocks: u32) -> ([u8; 16], Vec<u8>) {
    let mut cdb = [0; 16];
    cdb[0] = 0x8b;
    cdb[2..10].copy_from_slice(&lba.to_be_bytes());
    cdb[10..14].copy_from_slice(&blocks.to_be_bytes());
    (cdb, vec![0; blocks as usize * BLOCK])
}

/// READ(10) or WRITE(10) of 4 KiB.
fn read_write(opcode: u8, lba: u8) -> [u8; 10] {
    [opcode, 0, 0, 0, 0, lba, 0, 0, 8, 0]
}

fn await_in_flight(disk: &Disk, count: u64) -> TestResult {
    while disk.in_flight()? < count {
        thread::sleep(Duration::from_millis(2));
    }
    Ok(())
}

guest_test!(resets_under_load_lose_nothing);
fn resets_under_load_lose_nothing() -> TestResult {
    const SIZE: u64 = 8 * MIB;
    /// What one ORWRITE concerns, in blocks.
    const LEN: u32 = 256;
    let daemon = Daemon::start()?;
    let disk = Disk::of_image("reset", SIZE)?;
    let notified = lun::folder(disk.name())?.join("attrib/tmr_notification");
    ensure!(std::fs::read_to_string(notified)?.trim() == "1");
    let file = format!("--filename={}", disk.path());
    let mut load = Command::new("fio")
        .args(["--name=load", &file, "--direct=1", "--ioengine=libaio"])
        .args(["--iodepth=16", "--rw=randwrite", "--bs=4k", "--size=8M"])
        .args(["--io_size=48M", "--verify=crc32c", "--do_verify=1"])
        .args(["--verify_fatal=1", "--verify_state_save=0"])
        .stdin(Stdio::null())
        .spawn()
        .context("cannot run fio")?;
    // Writes have others to wait for.
    let stop = Arc::new(AtomicBool::new(false));
    let (stopped, mut sg) = (Arc::clone(&stop), Sg::open(&disk)?);
    let in_their_way = thread::spawn(move || -> TestResult {
        let places = SIZE / BLOCK as u64 - u64::from(LEN);
        for number in 0u64.. {
            if stopped.load(Ordering::Relaxed) {
                break;
            }
            let (cdb, data) = or_write(number * 7919 % places, LEN);
            let ended = sg.attempt(&cdb, &data, 0)?;
            ensure!(
                ended.status == GOOD || ended.sense_key() == UNIT_ATTENTION,
                "{ended:?}"
            );
        }
        Ok(())
    });
    for _ in 0..6 {
        thread::sleep(Duration::from_millis(100));
        sh::run(&["sg_reset", "--device", disk.path()])?;
    }
    let succeeded = load.wait()?.success();
    stop.store(true, Ordering::Relaxed);
    in_their_way.join().ok().context("a thread panicked")??;
    ensure!(succeeded, "fio failed");
    ensure!(
        daemon.log().contains("task management"),
        "the daemon heard of no reset"
    );
    disk.write(0, 3)?;
    ensure!(disk.holds(0, 3)?);
    disk.delete()?;
    daemon.stop()
}

guest_test!(what_waits_for_another_command_survives_a_reset);
fn what_waits_for_another_command_survives_a_reset() -> TestResult {
    let daemon = Daemon::start()?;
    let mut freezer = Freezer::new()?;
    let path = freezer.image("waiting")?;
    let disk = Disk::create("waiting", "file", &path, &[])?;
    disk.write(0, 1)?;
    disk.write(4096, 2)?;
    freezer.freeze()?;
    let mut commands = Vec::new();
    // The first one hangs in the file system, and the others wait for it.
    let (cdb, data) = or_write(0, 16);
    for (cdb, data, len_in) in [
        (cdb.to_vec(), data, 0),
        (read_write(0x2a, 0).to_vec(), vec![7; 4096], 0),
        (read_write(0x28, 8).to_vec(), Vec::new(), 4096),
    ] {
        let mut sg = Sg::open(&disk)?;
        let command = thread::spawn(move || sg.execute(&cdb, &data, len_in));
        commands.push(command);
        await_in_flight(&disk, commands.len() as u64)?;
    }
    let mut reset = Command::new("sg_reset")
        .args(["--device", disk.path()])
        .stdin(Stdio::null())
        .spawn()
        .context("cannot run sg_reset")?;
    daemon.await_log(0, "kind=LunReset commands=3 in_flight=3")?;
    ensure!(
        !commands.iter().any(thread::JoinHandle::is_finished),
        "nothing hangs"
    );
    freezer.thaw()?;
    ensure!(reset.wait()?.success(), "the reset failed");
    // tcm_loop says of each that it has succeeded: then it has to have.
    let mut read = Vec::new();
    for command in commands {
        read = command.join().ok().context("a thread panicked")??;
    }
    ensure!(
        read.len() == 4096 && read.iter().all(|byte| *byte == 2),
        "the read returned something else: {:02x?}",
        &read[..16]
    );
    ensure!(disk.holds(0, 7)?, "the write is lost");
    ensure!(disk.holds(4096, 2)?);
    disk.delete()?;
    daemon.stop()
}

guest_test!(a_reset_waits_for_a_stuck_backstore_and_no_longer);
fn a_reset_waits_for_a_stuck_backstore_and_no_longer() -> TestResult {
    if sh::run_any(&["dmsetup", "targets"]).is_ok_and(|output| !output.status.success()) {
        skip!("this kernel has no device mapper");
    }
    let daemon = Daemon::start()?;
    lun::image("below", 16 * MIB)?;
    let loopdev = sh::run(&["losetup", "--find", "--show", "/run/below.img"])?;
    let table = format!("0 {} linear {} 0", 16 * MIB / 512, loopdev.trim());
    sh::run(&[
        "dmsetup",
        "create",
        "--noudevsync",
        "--noudevrules",
        "stuck",
        "--table",
        &table,
    ])?;
    let disk = Disk::create("stuck", "file", "/dev/dm-0", &[])?;
    let other = Disk::of_image("other", 16 * MIB)?;
    disk.write(0, 1)?;

    sh::run(&["dmsetup", "suspend", "--noflush", "--nolockfs", "stuck"])?;
    let target = format!("if={}", disk.path());
    let mut reader = Command::new("dd")
        .args([&target, "of=/dev/null", "bs=4k", "count=1", "iflag=direct"])
        .stdin(Stdio::null())
        .spawn()
        .context("cannot run dd")?;
    thread::sleep(Duration::from_millis(500));
    ensure!(reader.try_wait()?.is_none(), "dd ended on a suspended disk");
    let mut reset = Command::new("sg_reset")
        .args(["--device", disk.path()])
        .stdin(Stdio::null())
        .spawn()
        .context("cannot run sg_reset")?;
    thread::sleep(Duration::from_millis(500));
    other.write(0, 2)?;
    ensure!(other.holds(0, 2)?, "the other LUN was disturbed");
    sh::run(&[
        "dmsetup",
        "resume",
        "--noudevsync",
        "--noudevrules",
        "stuck",
    ])?;
    ensure!(reset.wait()?.success(), "the reset failed");
    ensure!(reader.wait()?.success(), "the read failed");
    ensure!(disk.holds(0, 1)?);
    disk.delete()?;
    other.delete()?;
    sh::run(&[
        "dmsetup",
        "remove",
        "--noudevsync",
        "--noudevrules",
        "stuck",
    ])?;
    sh::run(&["losetup", "--detach", loopdev.trim()])?;
    daemon.stop()
}
