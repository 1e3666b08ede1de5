//! What cannot be served is refused, with a reason, and no other LUN notices.

use std::fs::{self, File};

use anyhow::ensure;
use tcmu_guest_tests::daemon::Daemon;
use tcmu_guest_tests::lun::{self, Disk, MIB, image, tcmuctl_fails};
use tcmu_guest_tests::{TestResult, guest_test, sh};

/// Tries to create a LUN beside a working one. It must be refused for a reason that names `reason`,
/// leave nothing, and not disturb the other.
fn is_refused(handler: &str, config: &str, options: &[&str], reason: &str) -> TestResult {
    let daemon = Daemon::start()?;
    let other = Disk::create("other", "ram", "other", &["--size", "16M"])?;
    let fixed = ["--timeout", "10", "create", "bad", "--loopback"];
    let what = ["--handler", handler, "--config", config];
    let message = tcmuctl_fails(&[&fixed[..], &what, options].concat())?;
    let all = format!("{message}{}", daemon.log());
    ensure!(
        all.to_lowercase().contains(&reason.to_lowercase()),
        "neither the message nor the log says `{reason}`: {message}"
    );
    ensure!(lun::names()? == ["other"], "something was left");
    other.write(0, 9)?;
    ensure!(other.holds(0, 9)?, "the other LUN was disturbed");
    other.delete()?;
    ensure!(
        lun::leftovers()?.is_empty(),
        "something was left in configfs"
    );
    daemon.stop()
}

guest_test!(an_unknown_subtype_is_refused);
fn an_unknown_subtype_is_refused() -> TestResult {
    is_refused("nosuch", "/run/x.img", &["--size", "16M"], "nosuch")
}

guest_test!(a_subtype_that_only_begins_right_is_refused);
fn a_subtype_that_only_begins_right_is_refused() -> TestResult {
    let image = image("prefix", 16 * MIB)?;
    is_refused("fil", &image, &["--size", "16M"], "fil")?;
    is_refused("files", &image, &["--size", "16M"], "files")
}

guest_test!(a_missing_file_is_refused);
fn a_missing_file_is_refused() -> TestResult {
    is_refused("file", "/run/none.img", &["--size", "16M"], "/run/none.img")?;
    is_refused("file", "/run/none.img", &[], "/run/none.img")
}

guest_test!(a_directory_is_refused);
fn a_directory_is_refused() -> TestResult {
    fs::create_dir("/run/folder")?;
    is_refused("file", "/run/folder", &["--size", "16M"], "/run/folder")
}

guest_test!(an_image_smaller_than_the_lun_is_refused);
fn an_image_smaller_than_the_lun_is_refused() -> TestResult {
    is_refused(
        "file",
        &image("small", 8 * MIB)?,
        &["--size", "16M"],
        "less than",
    )
}

guest_test!(a_size_of_no_whole_blocks_is_refused);
fn a_size_of_no_whole_blocks_is_refused() -> TestResult {
    let image = image("odd", 16 * MIB)?;
    is_refused("file", &image, &["--size", "1000000"], "multiple")?;
    is_refused(
        "file",
        &image,
        &["--size", "8389120", "--block-size", "4096"],
        "multiple",
    )
}

guest_test!(an_unknown_option_is_refused);
fn an_unknown_option_is_refused() -> TestResult {
    let config = format!("{};nosuch=1", image("option", 16 * MIB)?);
    is_refused("file", &config, &["--size", "16M"], "nosuch")
}

guest_test!(a_refusal_gives_the_daemons_reason_without_a_bus_too);
fn a_refusal_gives_the_daemons_reason_without_a_bus_too() -> TestResult {
    let daemon = Daemon::start()?;
    let image = image("reasons", 8 * MIB)?;
    let create = |name, config| {
        let what = ["--handler", "file", "--config", config, "--size", "16M"];
        tcmuctl_fails(&[&["create", name, "--loopback"], &what[..]].concat())
    };
    for name in ["first", "second"] {
        let message = create(name, &image)?;
        ensure!(
            message.contains("tcmu-runner says: ") && message.contains("less than the LUN's"),
            "{message}"
        );
    }
    // Not what was said of this name before.
    let message = create("first", &format!("{image};nosuch=1"))?;
    ensure!(
        message.contains("tcmu-runner says: ") && message.contains("nosuch"),
        "{message}"
    );
    ensure!(!message.contains("less than"), "{message}");

    let fixed = format!("{image};readonly=on");
    let disk = Disk::create("fixed", "file", &fixed, &["--size", "8M"])?;
    let message = tcmuctl_fails(&["resize", "fixed", "16M"])?;
    ensure!(
        message.contains("tcmu-runner says: ") && message.contains("less than the 16777216"),
        "{message}"
    );
    disk.delete()?;
    daemon.stop()
}

guest_test!(an_image_in_use_is_refused);
fn an_image_in_use_is_refused() -> TestResult {
    let daemon = Daemon::start()?;
    let disk = Disk::of_image("shared", 16 * MIB)?;
    let config = "/run/shared.img";
    let create = [
        "create",
        "second",
        "--handler",
        "file",
        "--config",
        config,
        "--loopback",
    ];
    tcmuctl_fails(&create)?;
    ensure!(lun::names()? == ["shared"]);
    disk.delete()?;
    daemon.stop()
}

guest_test!(a_file_that_shrinks_fails_only_what_is_gone);
fn a_file_that_shrinks_fails_only_what_is_gone() -> TestResult {
    let daemon = Daemon::start()?;
    let disk = Disk::of_image("shrunk", 16 * MIB)?;
    let other = Disk::of_image("intact", 16 * MIB)?;
    disk.write(MIB, 1)?;
    File::options()
        .write(true)
        .open("/run/shrunk.img")?
        .set_len(8 * MIB)?;
    ensure!(
        disk.holds(12 * MIB, 0).is_err(),
        "what the file lost could be read"
    );
    ensure!(
        disk.holds(MIB, 1)?,
        "what the file still has could not be read"
    );
    other.write(12 * MIB, 2)?;
    ensure!(other.holds(12 * MIB, 2)?, "the other LUN was disturbed");
    disk.delete()?;
    other.delete()?;
    daemon.stop()
}

guest_test!(a_full_disk_fails_the_write_and_nothing_else);
fn a_full_disk_fails_the_write_and_nothing_else() -> TestResult {
    let daemon = Daemon::start()?;
    fs::create_dir("/run/small")?;
    sh::run(&[
        "mount",
        "-t",
        "tmpfs",
        "-o",
        "size=4M",
        "tmpfs",
        "/run/small",
    ])?;
    File::create("/run/small/disk.img")?.set_len(16 * MIB)?;
    let disk = Disk::create("full", "file", "/run/small/disk.img", &[])?;
    let other = Disk::of_image("roomy", 16 * MIB)?;
    disk.write(0, 3)?;
    let target = format!("of={}", disk.path());
    let output = sh::run_any(&[
        "dd",
        "if=/dev/urandom",
        &target,
        "bs=1M",
        "count=8",
        "oflag=direct",
    ])?;
    ensure!(
        !output.status.success(),
        "more was written than there is room for"
    );
    ensure!(
        disk.holds(12 * MIB, 0)?,
        "what was never written could not be read"
    );
    other.write(0, 4)?;
    ensure!(other.holds(0, 4)?, "the other LUN was disturbed");
    disk.delete()?;
    other.delete()?;
    daemon.stop()
}
