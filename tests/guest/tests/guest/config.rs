//! Settings: read again while LUNs are served, and where images may be.

use std::fs::{self, File};
use std::os::unix::fs::symlink;

use anyhow::ensure;
use tcmu_guest_tests::bus::{self, Bus, ROOT};
use tcmu_guest_tests::daemon::Daemon;
use tcmu_guest_tests::lun::{Disk, MIB, image, tcmuctl_fails};
use tcmu_guest_tests::{TestResult, guest_test};

const FILE: &str = "/run/settings/tcmu.conf";

/// Saves the settings as careful editors do: a new file takes the old one's place.
fn save(text: &str) -> TestResult {
    fs::create_dir_all("/run/settings")?;
    fs::write("/run/settings/new", text)?;
    Ok(fs::rename("/run/settings/new", FILE)?)
}

guest_test!(settings_are_read_again);
fn settings_are_read_again() -> TestResult {
    save("log_level = \"info\"\n")?;
    let daemon = Daemon::start_with_config(FILE)?;
    let disk = Disk::of_image("served", 16 * MIB)?;
    disk.write(0, 1)?;
    ensure!(
        !daemon.log().contains("DEBUG"),
        "more than asked for is logged"
    );

    // Renamed into place.
    save("log_level = \"debug\"\nreactors = 2\nlog_dir = \"/var/log\"\n")?;
    let at = daemon.await_log(0, "log_level is \"debug\", and was \"info\"")?;
    daemon.await_log(0, &format!("{FILE}:3: log_dir means nothing here"))?;
    daemon.await_log(0, "settings read again")?;
    Disk::of_image("second", 16 * MIB)?.delete()?;
    let at = daemon.await_log(at, "DEBUG")?;

    // Written in place, with a mistake: what was stays.
    fs::write(FILE, "log_level = \"info\"\nreactors = 0\n")?;
    let why = format!("{FILE}:2: reactors: 0 is not a number from 1 to 64");
    let at = daemon.await_log(at, &format!("the settings stay as they were: {why}"))?;
    daemon.reload()?;
    let at = daemon.await_log(at, &why)?;
    Disk::of_image("third", 16 * MIB)?.delete()?;
    let at = daemon.await_log(at, "DEBUG")?;
    fs::remove_file(FILE)?;
    daemon.reload()?;
    let at = daemon.await_log(at, "the settings stay as they were")?;

    // Mended; what cannot change now says so.
    fs::write(FILE, "log_level = \"warn\"\nblocking_threads = 3\n")?;
    daemon.await_log(at, "blocking_threads stays 16: it becomes 3 when")?;
    ensure!(disk.holds(0, 1)?, "the LUN was disturbed");
    disk.write(0, 2)?;
    ensure!(disk.holds(0, 2)?, "the LUN was disturbed");
    disk.delete()?;
    daemon.stop()
}

guest_test!(settings_with_a_mistake_keep_it_from_starting);
fn settings_with_a_mistake_keep_it_from_starting() -> TestResult {
    save("# none\nreactor = 1\n")?;
    let (status, log) = Daemon::start_with_config_expecting_end(FILE)?;
    ensure!(status.code() == Some(1), "it ended with {status}");
    ensure!(
        log.contains(&format!("{FILE}:2: reactor: unknown field")),
        "{log}"
    );
    fs::remove_file(FILE)?;
    let (status, log) = Daemon::start_with_config_expecting_end(FILE)?;
    ensure!(status.code() == Some(1), "it ended with {status}");
    ensure!(log.contains(FILE), "{log}");
    Ok(())
}

guest_test!(images_lie_where_they_may);
fn images_lie_where_they_may() -> TestResult {
    let outside = image("outside", 16 * MIB)?;
    fs::create_dir("/run/images")?;
    File::create("/run/images/inside.img")?.set_len(16 * MIB)?;
    symlink(&outside, "/run/images/link.img")?;
    save("[handlers.file]\nallowed_paths = [\"/run/images\"]\n")?;
    let _bus = Bus::start()?;
    let daemon = Daemon::start_with_config(FILE)?;

    let disk = Disk::create("inside", "file", "/run/images/inside.img", &[])?;
    let fixed = [
        "create",
        "bad",
        "--handler",
        "file",
        "--loopback",
        "--config",
    ];
    let may_not = "outside of the paths that tcmu-runner's configuration allows: /run/images";
    for path in [
        &outside,
        "/run/images/link.img",
        "/run/images/../outside.img",
    ] {
        let from = daemon.log().len();
        tcmuctl_fails(&[&fixed[..], &[path]].concat())?;
        daemon.await_log(from, may_not)?;
        let (good, why) = check(path)?;
        ensure!(!good && why.contains(may_not), "{path}: {good}, {why}");
    }
    // The rule is the file handler's alone.
    Disk::create("ram", "ram", "ram", &["--size", "16M"])?.delete()?;

    // What is served goes on when the rule changes, and the rule holds at once.
    save("[handlers.file]\nallowed_paths = []\n")?;
    daemon.await_log(0, "handlers.file may open []")?;
    disk.write(0, 1)?;
    ensure!(disk.holds(0, 1)?, "the LUN was disturbed");
    save("")?;
    daemon.await_log(0, "handlers.file may open every path")?;
    Disk::create("free", "file", &outside, &[])?.delete()?;
    disk.delete()?;
    daemon.stop()
}

/// What CheckConfig says of an image.
fn check(path: &str) -> anyhow::Result<(bool, String)> {
    let config = format!("file/{path}");
    let file = format!("{ROOT}/file");
    bus::call(
        &file,
        "org.kernel.TCMUService1",
        "CheckConfig",
        &config.as_str(),
    )
}
