//! A LUN gets another image while it is used (ChangeMedium).

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use tcmu_guest_tests::bus::{Bus, ROOT, call};
use tcmu_guest_tests::daemon::Daemon;
use tcmu_guest_tests::lun::{Disk, MIB, folder, image, tcmuctl, write};
use tcmu_guest_tests::sh::{self, SG_UNIT_ATTENTION};
use tcmu_guest_tests::{TestResult, guest_test};

/// Asks the handler to change a LUN's medium; returns a negative errno, or 0, and why.
fn change(handler: &str, lun: &str, size: u64, config: &str) -> anyhow::Result<(i32, String)> {
    let path = format!("{ROOT}/{handler}");
    let config = format!("{handler}/{config}");
    let arguments = (lun, size, config.as_str());
    call(&path, "org.kernel.TCMUService1", "ChangeMedium", &arguments)
}

/// Changes a LUN's medium, and looks whether the kernel knows.
fn changed(handler: &str, lun: &str, size: u64, config: &str) -> TestResult {
    let (code, why) = change(handler, lun, size, config)?;
    ensure!(code == 0, "refused with {code}: {why}");
    ensure!(attribute(lun, "dev_config")? == format!("{handler}/{config}"));
    ensure!(attribute(lun, "dev_size")? == size.to_string());
    Ok(())
}

fn attribute(lun: &str, name: &str) -> anyhow::Result<String> {
    let text = fs::read_to_string(folder(lun)?.join("attrib").join(name))?;
    Ok(text.trim().to_owned())
}

/// The next command reports this unit attention.
fn has_attention(disk: &Disk, words: &str) -> TestResult {
    let said = sh::run_code(&["sg_turs", "-v", disk.path()], SG_UNIT_ATTENTION)?;
    ensure!(said.to_lowercase().contains(words), "no `{words}`: {said}");
    Ok(())
}

/// Makes an image whose first and last blocks hold one byte value.
fn marked_image(name: &str, size: u64, value: u8) -> anyhow::Result<String> {
    let path = image(name, size)?;
    write(Path::new(&path), 0, value)?;
    write(Path::new(&path), size - MIB, value)?;
    Ok(path)
}

guest_test!(the_other_image_is_there_at_once);
fn the_other_image_is_there_at_once() -> TestResult {
    let _bus = Bus::start()?;
    let daemon = Daemon::start_on_bus()?;
    let first = marked_image("first", 32 * MIB, 1)?;
    let second = marked_image("second", 64 * MIB, 2)?;
    let disk = Disk::create("medium", "file", &first, &[])?;
    disk.write(8 * MIB, 3)?;

    changed("file", "medium", 64 * MIB, &second)?;
    has_attention(&disk, "medium may have changed")?;
    has_attention(&disk, "capacity data has changed")?;
    sh::run(&["sg_turs", disk.path()])?;
    ensure!(disk.holds(0, 2)? && disk.holds(8 * MIB, 0)?);
    let capacity = sh::run(&["sg_readcap", "--long", disk.path()])?;
    ensure!(capacity.contains("67108864 bytes"), "{capacity}");
    let shown = tcmuctl(&["show", "medium", "--json"])?;
    ensure!(
        shown.contains("/dev/uio") && shown.contains(&second),
        "{shown}"
    );

    // The same size: the medium is all that has changed.
    let third = marked_image("third", 64 * MIB, 4)?;
    changed("file", "medium", 64 * MIB, &third)?;
    has_attention(&disk, "medium may have changed")?;
    sh::run(&["sg_turs", disk.path()])?;
    ensure!(disk.holds(0, 4)?);
    disk.write(MIB, 5)?;

    // Whoever comes next goes on with it, and the others are free.
    Disk::create("others", "file", &second, &[])?.delete()?;
    daemon.kill()?;
    let daemon = Daemon::start_on_bus()?;
    ensure!(disk.holds(MIB, 5)? && disk.holds(0, 4)?);
    changed("file", "medium", 32 * MIB, &first)?;
    // One for the medium, one for the size.
    for _ in 0..2 {
        sh::run_code(&["sg_turs", disk.path()], SG_UNIT_ATTENTION)?;
    }
    ensure!(disk.holds(8 * MIB, 3)?, "what was written first is lost");
    disk.delete()?;
    daemon.stop()
}

guest_test!(a_medium_that_cannot_be_opened_is_refused);
fn a_medium_that_cannot_be_opened_is_refused() -> TestResult {
    let _bus = Bus::start()?;
    let daemon = Daemon::start_on_bus()?;
    let first = marked_image("kept", 32 * MIB, 1)?;
    let taken = marked_image("taken", 32 * MIB, 2)?;
    let disk = Disk::create("kept", "file", &first, &[])?;
    let other = Disk::create("other", "file", &taken, &[])?;
    let small = image("small", MIB)?;
    let refused = |lun: &str, size: u64, config: &str, words: &str| -> TestResult {
        let (code, why) = change("file", lun, size, config)?;
        ensure!(code < 0 && why.contains(words), "{config}: {code}, {why}");
        ensure!(attribute("kept", "dev_config")? == format!("file/{first}"));
        ensure!(attribute("kept", "dev_size")? == (32 * MIB).to_string());
        disk.write(MIB, 7)?;
        ensure!(disk.holds(0, 1)? && disk.holds(MIB, 7)?, "{config}");
        Ok(())
    };
    refused("kept", 32 * MIB, "/run/none.img", "does not exist")?;
    refused("kept", 32 * MIB, "/run", "/run")?;
    refused("kept", 0, &taken, "0 bytes")?;
    refused("nosuch", 32 * MIB, &taken, "no LUN nosuch")?;
    // These are found out when the LUN has left its image.
    refused("kept", 32 * MIB, &small, "less than")?;
    refused("kept", 1000, &small, "multiple")?;
    refused("kept", 32 * MIB, &taken, "taken.img")?;
    ensure!(
        daemon.log().contains("the medium stays as it was"),
        "the log does not say so"
    );
    let (code, why) = change("ram", "kept", 32 * MIB, "x")?;
    ensure!(code < 0 && why.contains("of the handler file"), "{why}");
    sh::run(&["sg_turs", disk.path()])?;
    disk.delete()?;
    other.delete()?;
    daemon.stop()
}

/// fio that writes all over a disk, block after block at the same place, and reads it back.
fn load(disk: &Disk) -> anyhow::Result<Child> {
    Command::new("fio")
        .args([
            "--name=load",
            "--direct=1",
            "--ioengine=libaio",
            "--iodepth=8",
        ])
        .args(["--rw=randrw", "--bs=4k", "--offset=4M", "--size=8M"])
        .args(["--time_based", "--runtime=600", "--randseed=7"])
        .arg(format!("--filename={}", disk.path()))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .spawn()
        .context("cannot run fio")
}

/// Changes back and forth between two images while fio is at work on the disk.
fn under_load(handler: &str, first: &str, second: &str) -> TestResult {
    let _bus = Bus::start()?;
    let daemon = Daemon::start_on_bus()?;
    let size = 32 * MIB;
    let disk = Disk::create("loaded", handler, first, &["--size", "32M"])?;
    disk.write(0, 1)?;
    changed(handler, "loaded", size, second)?;
    disk.write(0, 2)?;
    let mut load = load(&disk)?;
    for round in 0..6 {
        let (to, value) = [(first, 1), (second, 2)][round % 2];
        let before = commands(&disk)?;
        changed(handler, "loaded", size, to)?;
        ensure!(disk.holds(0, value)?, "{to} is not there in round {round}");
        // The load goes on with it.
        let deadline = Instant::now() + Duration::from_secs(30);
        while commands(&disk)? <= before + 50 {
            ensure!(load.try_wait()?.is_none(), "fio has ended");
            ensure!(Instant::now() < deadline, "no command goes on");
            thread::sleep(Duration::from_millis(10));
        }
    }
    ensure!(load.try_wait()?.is_none(), "fio has failed");
    sh::run(&["kill", &load.id().to_string()])?;
    load.wait()?;
    disk.delete()?;
    daemon.stop()
}

/// How many reads and writes of a disk have ended.
fn commands(disk: &Disk) -> anyhow::Result<u64> {
    let name = Path::new(disk.path()).file_name().context("no name")?;
    let stat = fs::read_to_string(Path::new("/sys/class/block").join(name).join("stat"))?;
    let numbers: Vec<u64> = stat
        .split_whitespace()
        .filter_map(|word| word.parse().ok())
        .collect();
    Ok(numbers[0] + numbers[4])
}

guest_test!(a_files_medium_is_changed_under_load);
fn a_files_medium_is_changed_under_load() -> TestResult {
    let (first, second) = (image("a", 32 * MIB)?, image("b", 32 * MIB)?);
    under_load("file", &first, &second)
}

guest_test!(a_qcow_medium_is_changed_under_load);
fn a_qcow_medium_is_changed_under_load() -> TestResult {
    for name in ["a", "b"] {
        let path = format!("/run/{name}.qcow2");
        sh::run(&["qemu-img", "create", "-q", "-f", "qcow2", &path, "32M"])?;
    }
    under_load("qcow", "/run/a.qcow2", "/run/b.qcow2")?;
    for name in ["a", "b"] {
        let path = format!("/run/{name}.qcow2");
        sh::run(&["qemu-img", "check", "-q", "-f", "qcow2", &path])?;
    }
    Ok(())
}
