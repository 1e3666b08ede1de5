//! EXTENDED COPY between disks, and who may not have it.

use std::fs;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use tcmu_guest_tests::daemon::Daemon;
use tcmu_guest_tests::lun::{Disk, MIB};
use tcmu_guest_tests::sh;
use tcmu_guest_tests::{TestResult, guest_test};

/// sg3_utils: "copy aborted".
const SG_COPY_ABORTED: i32 = 10;

/// What the daemon logs.
const REFUSED: &str = "a copy was refused";

const TARGET: &str = "/sys/kernel/config/target";

/// A second LUN of a loopback target that `tcmuctl` made for another disk, as targetcli makes them.
pub(super) struct SecondLun {
    folder: PathBuf,
    path: PathBuf,
}

impl SecondLun {
    /// Offers the backstore of `disk` through the target of `first` as well.
    pub(super) fn add(first: &Disk, disk: &Disk) -> anyhow::Result<Self> {
        let group = group_of(first)?;
        let folder = group.join("lun/lun_1");
        fs::create_dir(&folder)?;
        std::os::unix::fs::symlink(backstore(disk)?, folder.join("second"))?;
        let address = fs::read_to_string(group.join("address"))?;
        let device = format!("/sys/class/scsi_device/{}:1/device/block", address.trim());
        let deadline = Instant::now() + Duration::from_secs(10);
        loop {
            let name = fs::read_dir(&device)
                .ok()
                .and_then(|mut entries| entries.next()?.ok());
            if let Some(name) = name {
                let path = Path::new("/dev").join(name.file_name());
                if fs::File::open(&path).is_ok() {
                    return Ok(Self { folder, path });
                }
            }
            ensure!(Instant::now() < deadline, "the second LUN has no disk");
            thread::sleep(Duration::from_millis(10));
        }
    }

    fn path(&self) -> &str {
        self.path.to_str().unwrap_or_default()
    }

    pub(super) fn remove(self) -> anyhow::Result<()> {
        fs::remove_file(self.folder.join("second"))?;
        fs::remove_dir(self.folder)?;
        Ok(())
    }
}

/// The folder of a disk's backstore.
fn backstore(disk: &Disk) -> anyhow::Result<PathBuf> {
    for hba in fs::read_dir(Path::new(TARGET).join("core"))?.flatten() {
        let folder = hba.path().join(disk.name());
        if folder.is_dir() {
            return Ok(folder);
        }
    }
    anyhow::bail!("{} has no backstore", disk.name())
}

/// The target portal group that offers a disk.
fn group_of(disk: &Disk) -> anyhow::Result<PathBuf> {
    let goal = backstore(disk)?.canonicalize()?;
    for target in fs::read_dir(Path::new(TARGET).join("loopback"))?.flatten() {
        let group = target.path().join("tpgt_1");
        let Ok(entries) = fs::read_dir(group.join("lun/lun_0")) else {
            continue;
        };
        for entry in entries.flatten() {
            if entry.path().canonicalize().is_ok_and(|path| path == goal) {
                return Ok(group);
            }
        }
    }
    anyhow::bail!("{} is not offered", disk.name())
}

/// Fills a file with what is the same at no two places.
pub(super) fn fill(path: &str, len: u64) -> anyhow::Result<()> {
    let bytes: Vec<u8> = (0..len / 8)
        .flat_map(|n| (n * 0x9e37_79b9).to_le_bytes())
        .collect();
    fs::write(path, bytes).context(path.to_owned())
}

/// The SCSI generic device of a disk: sg_xcopy finds it by links of udev's, which is not here.
fn generic(disk: &str) -> anyhow::Result<String> {
    let name = disk.trim_start_matches("/dev/");
    let mut entries = fs::read_dir(format!("/sys/class/block/{name}/device/scsi_generic"))?;
    let entry = entries.next().context("no SCSI generic device")??;
    Ok(format!("/dev/{}", entry.file_name().to_string_lossy()))
}

fn xcopy(from: &str, to: &str, options: &[&str]) -> anyhow::Result<(Option<i32>, String)> {
    let (from, to) = (
        format!("if={}", generic(from)?),
        format!("of={}", generic(to)?),
    );
    let command = [
        &["sg_xcopy", &from, &to, "bs=512", "verbose=1"][..],
        options,
    ]
    .concat();
    let output = sh::run_any(&command)?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    Ok((output.status.code(), said))
}

guest_test!(disks_of_one_target_are_copied);
fn disks_of_one_target_are_copied() -> TestResult {
    let daemon = Daemon::start()?;
    let first = Disk::of_image("first", 16 * MIB)?;
    let second = Disk::of_image("second", 16 * MIB)?;
    let lun = SecondLun::add(&first, &second)?;
    fill("/run/first.img", 16 * MIB)?;
    sh::run(&["blockdev", "--flushbufs", first.path()])?;

    // Pushed: the source gets the command. "second" has a target of its own besides, but whoever
    // sees "first" sees both.
    let (copied, said) = xcopy(first.path(), lun.path(), &["--on_src"])?;
    ensure!(copied == Some(0), "the copy failed: {said}");
    sh::run(&["cmp", "/run/first.img", "/run/second.img"])?;
    sh::run(&["blockdev", "--flushbufs", lun.path()])?;
    sh::run(&["cmp", first.path(), lun.path()])?;

    sh::run(&["sg_copy_results", "--params", first.path()])?;
    let page = sh::run(&["sg_vpd", "--page=0x8f", first.path()])?;
    ensure!(page.contains("Supported CSCD IDs"), "not the page: {page}");

    lun.remove()?;
    second.delete()?;
    first.delete()?;
    daemon.stop()
}

guest_test!(a_copy_may_start_and_end_anywhere);
fn a_copy_may_start_and_end_anywhere() -> TestResult {
    let daemon = Daemon::start()?;
    // A file and memory: the data go through the daemon.
    let first = Disk::of_image("first", 8 * MIB)?;
    let second = Disk::create("second", "ram", "copy", &["--size", "8M"])?;
    let lun = SecondLun::add(&first, &second)?;
    fill("/run/first.img", 8 * MIB)?;
    let (copied, said) = xcopy(
        first.path(),
        lun.path(),
        &["skip=100", "seek=3000", "count=5000", "--on_src"],
    )?;
    ensure!(copied == Some(0), "the copy failed: {said}");
    let image = fs::read("/run/first.img")?;
    sh::run(&["blockdev", "--flushbufs", lun.path()])?;
    let copy = fs::read(lun.path())?;
    ensure!(copy[3000 * 512..8000 * 512] == image[100 * 512..5100 * 512]);
    ensure!(copy[..3000 * 512].iter().all(|&byte| byte == 0));
    ensure!(copy[8000 * 512..].iter().all(|&byte| byte == 0));
    lun.remove()?;
    second.delete()?;
    first.delete()?;
    daemon.stop()
}

guest_test!(disks_of_other_targets_are_out_of_reach);
fn disks_of_other_targets_are_out_of_reach() -> TestResult {
    let daemon = Daemon::start()?;
    let first = Disk::of_image("first", 8 * MIB)?;
    let second = Disk::of_image("second", 8 * MIB)?;
    fill("/run/first.img", 8 * MIB)?;
    let refused = |from: &str, to: &str, manager: &str| -> TestResult {
        let before = daemon.log().matches(REFUSED).count();
        let (code, said) = xcopy(from, to, &[manager])?;
        ensure!(
            code == Some(SG_COPY_ABORTED),
            "a disk of another target was reached: {said}"
        );
        ensure!(
            daemon.log().matches(REFUSED).count() > before,
            "refused for another reason: {said}"
        );
        Ok(())
    };
    refused(first.path(), second.path(), "--on_src")?;
    refused(first.path(), second.path(), "--on_dst")?;
    let image = fs::read("/run/second.img")?;
    ensure!(image.iter().all(|&byte| byte == 0), "something was written");

    // Whoever sees "second" through its own target does not see "first".
    let lun = SecondLun::add(&first, &second)?;
    refused(first.path(), lun.path(), "--on_dst")?;
    lun.remove()?;
    second.delete()?;
    first.delete()?;
    daemon.stop()
}
