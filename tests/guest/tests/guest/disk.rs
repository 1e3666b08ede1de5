//! A LUN as a disk of the machine: what its users rely on.

use std::fs;
use std::path::Path;

use anyhow::ensure;
use tcmu_guest_tests::daemon::Daemon;
use tcmu_guest_tests::lun::{self, Disk, MIB, tcmuctl, tcmuctl_fails};
use tcmu_guest_tests::sh::SG_UNIT_ATTENTION;
use tcmu_guest_tests::{TestResult, guest_test, sh};

guest_test!(keeps_a_file_system_across_reattachment);
fn keeps_a_file_system_across_reattachment() -> TestResult {
    let daemon = Daemon::start()?;
    let image = lun::image("fs", 128 * MIB)?;
    let sums = "cd /mnt && find . -type f -exec sha256sum {} + | sort";

    let disk = Disk::create("fs", "file", &image, &[])?;
    sh::run(&["mkfs.ext4", "-q", "-F", disk.path()])?;
    sh::run(&["mount", disk.path(), "/mnt"])?;
    sh::run(&[
        "dd",
        "if=/dev/urandom",
        "of=/mnt/random",
        "bs=1M",
        "count=16",
    ])?;
    sh::run(&["cp", "-a", "/etc", "/mnt/"])?;
    let before = sh::run(&["sh", "-c", sums])?;
    ensure!(
        before.lines().count() > 10,
        "too few files to mean something"
    );
    sh::run(&["umount", "/mnt"])?;
    disk.delete()?;

    let disk = Disk::create("fs", "file", &image, &[])?;
    sh::run(&["fsck.ext4", "-f", "-n", disk.path()])?;
    sh::run(&["mount", "-o", "ro", disk.path(), "/mnt"])?;
    let after = sh::run(&["sh", "-c", sums])?;
    sh::run(&["umount", "/mnt"])?;
    ensure!(before == after, "the files changed");
    disk.delete()?;
    daemon.stop()
}

guest_test!(what_is_written_is_in_the_image);
fn what_is_written_is_in_the_image() -> TestResult {
    let daemon = Daemon::start()?;
    let disk = Disk::of_image("bytes", 8 * MIB)?;
    disk.write(5 * MIB, 0xa5)?;
    let image = fs::read("/run/bytes.img")?;
    let (at, end) = (5 << 20, (5 << 20) + 4096);
    ensure!(
        image[at..end].iter().all(|&b| b == 0xa5),
        "the write is not in the image"
    );
    ensure!(
        image[..at].iter().chain(&image[end..]).all(|&b| b == 0),
        "it went elsewhere too"
    );
    ensure!(disk.holds(5 * MIB, 0xa5)?);
    ensure!(disk.holds(0, 0)?);
    disk.delete()?;
    daemon.stop()
}

guest_test!(random_io_verifies);
fn random_io_verifies() -> TestResult {
    let daemon = Daemon::start()?;
    let disk = Disk::of_image("fio", 64 * MIB)?;
    let file = format!("--filename={}", disk.path());
    for (engine, sizes) in [("libaio", "512-64k"), ("io_uring", "4k-1m")] {
        sh::run(&[
            "fio",
            "--name=verify",
            &file,
            "--direct=1",
            &format!("--ioengine={engine}"),
            "--iodepth=16",
            "--rw=randwrite",
            &format!("--bsrange={sizes}"),
            "--blockalign=512",
            // Sizes differ, so places overlap. A disk may execute commands that it has at the same
            // time in any order, and ours does: fio must not send them together.
            "--serialize_overlap=1",
            "--size=64M",
            "--io_size=32M",
            "--verify=crc32c",
            "--do_verify=1",
            "--verify_fatal=1",
            "--verify_state_save=0",
        ])?;
    }
    disk.delete()?;
    daemon.stop()
}

guest_test!(says_what_it_is);
fn says_what_it_is() -> TestResult {
    let daemon = Daemon::start()?;
    let disk = Disk::create(
        "who",
        "file",
        &lun::image("who", 96 * MIB)?,
        &["--serial", "TEST0123", "--block-size", "4096"],
    )?;
    let inquiry = sh::run(&["sg_inq", disk.path()])?;
    ensure!(inquiry.contains("Peripheral device type: disk"), "no disk");
    ensure!(
        inquiry.contains("Unit serial number: TEST0123"),
        "not the serial"
    );
    let capacity = sh::run(&["sg_readcap", "--long", disk.path()])?;
    ensure!(
        capacity.contains("Logical block length=4096 bytes"),
        "not the block size"
    );
    ensure!(
        capacity.contains("Number of logical blocks=24576"),
        "not the number of blocks"
    );
    ensure!(disk.size()? == 96 * MIB);
    sh::run(&["sg_turs", disk.path()])?;
    for page in ["0x0", "0x80", "0x83", "0xb0", "0xb1", "0xb2"] {
        sh::run(&["sg_vpd", "--page", page, disk.path()])?;
    }
    disk.delete()?;
    daemon.stop()
}

guest_test!(grows_while_in_use);
fn grows_while_in_use() -> TestResult {
    let daemon = Daemon::start()?;
    let disk = Disk::of_image("grow", 16 * MIB)?;
    disk.write(0, 0x11)?;
    ensure!(
        disk.write(40 * MIB, 0x22).is_err(),
        "a write past the end succeeded"
    );
    tcmuctl(&["resize", disk.name(), "64M"])?;
    ensure!(disk.size()? == 64 * MIB, "the disk has not grown");
    ensure!(
        fs::metadata("/run/grow.img")?.len() == 64 * MIB,
        "the image has not grown"
    );
    disk.write(40 * MIB, 0x22)?;
    ensure!(disk.holds(0, 0x11)? && disk.holds(40 * MIB, 0x22)?);
    disk.delete()?;
    daemon.stop()
}

guest_test!(shrinks_only_when_told_to);
fn shrinks_only_when_told_to() -> TestResult {
    let daemon = Daemon::start()?;
    let disk = Disk::of_image("shrink", 32 * MIB)?;
    let message = tcmuctl_fails(&["resize", disk.name(), "16M"])?;
    ensure!(message.contains("--shrink"), "no advice: {message}");
    ensure!(disk.size()? == 32 * MIB);
    tcmuctl(&["resize", disk.name(), "16M", "--shrink"])?;
    ensure!(disk.size()? == 16 * MIB);
    disk.delete()?;
    daemon.stop()
}

guest_test!(a_new_size_is_announced);
fn a_new_size_is_announced() -> TestResult {
    let daemon = Daemon::start()?;
    let disk = Disk::of_image("announced", 32 * MIB)?;
    let size = lun::folder(disk.name())?.join("attrib/dev_size");
    for bytes in [48 * MIB, 16 * MIB] {
        // As another machine's administrator does it: this disk does not look by itself.
        fs::write(&size, bytes.to_string())?;
        let said = sh::run_code(&["sg_turs", "-v", disk.path()], SG_UNIT_ATTENTION)?;
        ensure!(
            said.to_lowercase().contains("capacity data has changed"),
            "{said}"
        );
        sh::run(&["sg_turs", disk.path()])?;
        let capacity = sh::run(&["sg_readcap", "--long", disk.path()])?;
        ensure!(capacity.contains(&format!("{bytes} bytes")), "{capacity}");
    }
    disk.delete()?;
    daemon.stop()
}

guest_test!(discarded_blocks_read_as_zeroes);
fn discarded_blocks_read_as_zeroes() -> TestResult {
    let daemon = Daemon::start()?;
    let disk = Disk::of_image("discard", 16 * MIB)?;
    for offset in [0, MIB, 2 * MIB] {
        disk.write(offset, 0x77)?;
    }
    sh::run(&[
        "blkdiscard",
        "--offset",
        "1048576",
        "--length",
        "1048576",
        disk.path(),
    ])?;
    ensure!(
        disk.holds(MIB, 0)?,
        "the discarded block still has its data"
    );
    ensure!(
        disk.holds(0, 0x77)? && disk.holds(2 * MIB, 0x77)?,
        "its neighbours were hit"
    );
    disk.delete()?;
    daemon.stop()
}

guest_test!(deletion_leaves_nothing);
fn deletion_leaves_nothing() -> TestResult {
    let daemon = Daemon::start()?;
    let disk = Disk::of_image("gone", 16 * MIB)?;
    ensure!(lun::names()? == ["gone"]);
    disk.delete()?;
    ensure!(lun::names()?.is_empty());
    let left = lun::leftovers()?;
    ensure!(left.is_empty(), "left in configfs: {left:?}");
    for entry in fs::read_dir(format!("/proc/{}/fd", daemon.pid()))?.flatten() {
        let file = fs::read_link(entry.path()).unwrap_or_default();
        ensure!(
            file != Path::new("/run/gone.img"),
            "the daemon still has the image open"
        );
        ensure!(
            !file.starts_with("/dev/uio0"),
            "the daemon still has the device open"
        );
    }
    daemon.stop()
}

guest_test!(is_not_deleted_while_mounted);
fn is_not_deleted_while_mounted() -> TestResult {
    let daemon = Daemon::start()?;
    let disk = Disk::of_image("busy", 32 * MIB)?;
    sh::run(&["mkfs.ext4", "-q", "-F", disk.path()])?;
    sh::run(&["mount", disk.path(), "/mnt"])?;
    let message = tcmuctl_fails(&["delete", disk.name()])?;
    ensure!(
        message.contains("busy") && message.contains("in use"),
        "no reason: {message}"
    );
    sh::run(&["touch", "/mnt/still-works"])?;
    sh::run(&["umount", "/mnt"])?;
    disk.delete()?;
    daemon.stop()
}
