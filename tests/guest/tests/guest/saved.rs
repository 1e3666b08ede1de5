//! `tcmuctl save`, `restore` and `doctor` on a real tree.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use anyhow::{Context as _, ensure};
use serde_json::Value;
use tcmu_guest_tests::daemon::Daemon;
use tcmu_guest_tests::initiator::{self, PORTAL, Session};
use tcmu_guest_tests::lun::{self, Disk, MIB, holds, image, leftovers, tcmuctl, tcmuctl_fails};
use tcmu_guest_tests::{TestResult, guest_test, sh, skip};

const IQN: &str = "iqn.2026-11.com.example:saved";
const HOST: &str = "iqn.2026-11.com.example:host";
const OTHER: &str = "iqn.2026-11.com.example:other";
const LOCKED: &str = "iqn.2026-11.com.example:locked";
const SECRET: &str = "secret123456";
const FILE: &str = "/run/saved/saveconfig.json";
const TARGET: &str = "/sys/kernel/config/target";

/// Makes a LUN with whatever can be saved: on loopback, and for one initiator with a password.
fn set_up(image: &str) -> TestResult {
    tcmuctl(&[
        "create",
        "first",
        "--handler",
        "file",
        "--config",
        image,
        "--loopback",
        "--iscsi",
        IQN,
    ])?;
    tcmuctl(&[
        "create",
        "second",
        "--handler",
        "ram",
        "--config",
        "x",
        "--size",
        "16M",
        "--iscsi",
        IQN,
        "--hba",
        "7",
        "--write-cache",
        "off",
    ])?;
    let group = format!("{TARGET}/iscsi/{IQN}/tpgt_1");
    let acl = format!("{group}/acls/{HOST}");
    let alua = lun::folder("first")?.join("alua/slow");
    let alua = alua.display().to_string();
    for folder in [&acl, &format!("{acl}/lun_4"), &alua] {
        fs::create_dir(folder).with_context(|| folder.clone())?;
    }
    symlink(format!("{group}/lun/lun_0"), format!("{acl}/lun_4/x"))?;
    for (file, value) in [
        (format!("{group}/attrib/generate_node_acls"), "0"),
        (format!("{group}/attrib/authentication"), "0"),
        (format!("{group}/param/MaxRecvDataSegmentLength"), "65536"),
        (format!("{acl}/auth/userid"), "me"),
        (format!("{acl}/auth/password"), SECRET),
        (format!("{acl}/lun_4/write_protect"), "1"),
        (format!("{alua}/tg_pt_gp_id"), "16"),
        (format!("{alua}/alua_access_state"), "1"),
        (format!("{alua}/preferred"), "1"),
        (format!("{group}/lun/lun_0/alua_tg_pt_gp"), "slow"),
        (
            format!("{TARGET}/core/user_7/second/attrib/emulate_pr"),
            "0",
        ),
    ] {
        fs::write(&file, value).with_context(|| file.clone())?;
    }
    Ok(())
}

fn tear_down() -> TestResult {
    for lun in ["first", "second"] {
        tcmuctl(&["delete", "--force", lun])?;
    }
    ensure!(leftovers()? == [""; 0], "left: {:?}", leftovers()?);
    Ok(())
}

/// Whether an initiator sees LUN 4.
fn sees(initiator: &str) -> anyhow::Result<bool> {
    let url = format!("iscsi://{PORTAL}/{IQN}/4");
    let inquiry = sh::run_any(&["iscsi-inq", "-i", initiator, &url])?;
    Ok(inquiry.status.success())
}

guest_test!(what_was_saved_comes_back);
fn what_was_saved_comes_back() -> TestResult {
    let daemon = Daemon::start()?;
    let image = image("saved", 32 * MIB)?;
    set_up(&image)?;
    let disk = lun::disk_of("first")?;
    lun::write(Path::new(&disk), MIB, 0x5a)?;
    tcmuctl(&["save", FILE])?;
    let saved = fs::read_to_string(FILE)?;
    tear_down()?;
    daemon.stop()?;

    // Nobody serves: this is said at once, and nothing is begun.
    let message = tcmuctl_fails(&["restore", FILE])?;
    ensure!(message.contains("no TCMU daemon"), "{message}");
    ensure!(leftovers()? == [""; 0]);

    let daemon = Daemon::start()?;
    let tried = tcmuctl(&["restore", "--dry-run", FILE])?;
    ensure!(tried.contains("9 would be made, 0 unchanged"), "{tried}");
    ensure!(leftovers()? == [""; 0], "a dry run made something");
    let made = tcmuctl(&["restore", FILE])?;
    ensure!(
        made.contains("9 made, 0 unchanged, 0 different, 0 failed"),
        "{made}"
    );
    let again = tcmuctl(&["restore", FILE])?;
    ensure!(
        again.contains("0 made, 9 unchanged, 0 different, 0 failed"),
        "{again}"
    );
    let kept = tcmuctl(&["save", FILE])?;
    ensure!(
        kept.contains("unchanged in") && fs::read_to_string(FILE)? == saved,
        "what was restored is not what was saved"
    );
    let disk = lun::disk_of("first")?;
    ensure!(
        holds(Path::new(&disk), MIB, 0x5a)?,
        "the data did not survive"
    );
    ensure!(sees(HOST)?, "the initiator is kept out");
    ensure!(!sees(OTHER)?, "everybody is let in");
    tear_down()?;
    daemon.stop()
}

guest_test!(a_lun_that_is_broken_does_not_hold_up_the_others);
fn a_lun_that_is_broken_does_not_hold_up_the_others() -> TestResult {
    let daemon = Daemon::start()?;
    let image = image("broken", 32 * MIB)?;
    set_up(&image)?;
    tcmuctl(&["save", FILE])?;
    tear_down()?;
    let aside = format!("{image}.aside");
    fs::rename(&image, &aside)?;
    let output = sh::run_any(&tcmuctl_words(&["restore", "--json", FILE])?)?;
    ensure!(
        output.status.code() == Some(1),
        "it ended with {}",
        output.status
    );
    let report: Value = serde_json::from_slice(&output.stdout)?;
    let steps = report["steps"].as_array().context("no steps")?;
    let failed: Vec<_> = steps
        .iter()
        .filter(|step| step["outcome"] == "failed")
        .filter_map(|step| step["kind"].as_str())
        .collect();
    // The backstore, and its LUNs of both targets.
    ensure!(failed == ["backstore", "lun", "lun"], "{steps:?}");
    ensure!(lun::names()? == ["second"]);

    // Mended, the same command brings the rest; what stands otherwise is named.
    fs::rename(&aside, &image)?;
    tcmuctl(&["restore", FILE])?;
    ensure!(lun::names()? == ["first", "second"]);
    ensure!(sees(HOST)?, "the initiator does not see it");
    tcmuctl(&["resize", "second", "32M"])?;
    let output = sh::run_any(&tcmuctl_words(&["restore", FILE])?)?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(
        output.status.code() == Some(1) && said.contains("its size is 33554432, not 16777216"),
        "{said}"
    );
    tear_down()?;
    daemon.stop()
}

guest_test!(a_password_comes_back);
fn a_password_comes_back() -> TestResult {
    sh::run_any(&["modprobe", "-q", "md5"])?;
    let algorithms = fs::read_to_string("/proc/crypto")?;
    let is_md5 = |line: &str| line.split_whitespace().eq(["name", ":", "md5"]);
    if !algorithms.lines().any(is_md5) {
        skip!("this kernel has no MD5, which CHAP needs");
    }
    let daemon = Daemon::start()?;
    let image = image("locked", 32 * MIB)?;
    let words = "create locked --handler file --iscsi";
    let words: Vec<&str> = words
        .split(' ')
        .chain([LOCKED, "--config", &image])
        .collect();
    tcmuctl(&words)?;
    let group = format!("{TARGET}/iscsi/{LOCKED}/tpgt_1");
    let acl = format!("{group}/acls/{}", initiator::NAME);
    for folder in [&acl, &format!("{acl}/lun_0")] {
        fs::create_dir(folder).with_context(|| folder.clone())?;
    }
    symlink(format!("{group}/lun/lun_0"), format!("{acl}/lun_0/x"))?;
    for (file, value) in [
        ("attrib/generate_node_acls", "0"),
        ("attrib/authentication", "1"),
        (&format!("acls/{}/auth/userid", initiator::NAME), "me"),
        (&format!("acls/{}/auth/password", initiator::NAME), SECRET),
    ] {
        fs::write(format!("{group}/{file}"), value).with_context(|| file.to_owned())?;
    }
    tcmuctl(&["save", FILE])?;
    tcmuctl(&["delete", "--force", "locked"])?;
    ensure!(leftovers()? == [""; 0], "left: {:?}", leftovers()?);

    tcmuctl(&["restore", FILE])?;
    Session::refused_as(LOCKED, "me", "another-secret")?;
    Session::refused_as(LOCKED, "you", SECRET)?;
    let session = Session::login_as(LOCKED, "me", SECRET)?;
    lun::write(session.disk(), MIB, 0x5a)?;
    ensure!(holds(session.disk(), MIB, 0x5a)?);
    session.logout()?;
    tcmuctl(&["delete", "--force", "locked"])?;
    ensure!(leftovers()? == [""; 0], "left: {:?}", leftovers()?);
    daemon.stop()
}

fn tcmuctl_words(args: &[&str]) -> anyhow::Result<Vec<String>> {
    let program = tcmu_guest_tests::daemon::program("tcmuctl")?;
    let program = program.to_string_lossy().into_owned();
    let args = args.iter().map(|&arg| arg.to_owned());
    Ok(std::iter::once(program).chain(args).collect())
}

/// A finding that is not ok: its check and severity.
type Bad = (String, String);

guest_test!(the_doctor_finds_what_is_wrong);
fn the_doctor_finds_what_is_wrong() -> TestResult {
    let doctor = || -> anyhow::Result<(Option<i32>, Vec<Bad>)> {
        let output = sh::run_any(&tcmuctl_words(&["doctor", "--json"])?)?;
        let report: Value = serde_json::from_slice(&output.stdout)?;
        let findings = report["findings"].as_array().context("no findings")?;
        let bad = findings
            .iter()
            .filter(|finding| finding["severity"] != "ok")
            .map(|finding| {
                let text = |key: &str| finding[key].as_str().unwrap_or_default().to_owned();
                (text("check"), text("severity"))
            });
        Ok((output.status.code(), bad.collect()))
    };
    let has = |found: &[Bad], check: &str, severity: &str| {
        found.contains(&(check.to_owned(), severity.to_owned()))
    };
    let (code, found) = doctor()?;
    ensure!(
        code == Some(1) && has(&found, "daemon", "broken"),
        "{found:?}"
    );

    let daemon = Daemon::start()?;
    let disk = Disk::create("well", "ram", "x", &["--size", "16M"])?;
    let (code, found) = doctor()?;
    ensure!(code == Some(0), "a working LUN is called broken: {found:?}");
    // The rig may be short of something, the LUN is not.
    for check in [
        "hw_max_sectors",
        "cmd_time_out",
        "emulate_write_cache",
        "service",
    ] {
        ensure!(!found.iter().any(|(name, _)| name == check), "{found:?}");
    }

    // As targetcli sets it up.
    let folder = lun::folder("well")?;
    let folder = folder.display();
    fs::write(format!("{folder}/attrib/emulate_write_cache"), "0")?;
    fs::write(format!("{folder}/action/block_dev"), "1")?;
    let (code, found) = doctor()?;
    fs::write(format!("{folder}/action/block_dev"), "0")?;
    ensure!(
        code == Some(1)
            && has(&found, "block_dev", "broken")
            && has(&found, "emulate_write_cache", "slow"),
        "{found:?}"
    );
    daemon.stop()?;
    let (_, found) = doctor()?;
    ensure!(has(&found, "service", "broken"), "{found:?}");
    let daemon = Daemon::start()?;
    disk.delete()?;
    daemon.stop()
}
