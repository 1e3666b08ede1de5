//! What `tcmuctl` shows of the daemon beside the kernel's tree.

use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use serde_json::Value;
use tcmu_guest_tests::bus::{Bus, NAME, await_name, connect};
use tcmu_guest_tests::daemon::{Daemon, program};
use tcmu_guest_tests::lun::{Disk, MIB, image, tcmuctl};
use tcmu_guest_tests::{TestResult, guest_test, sh};

const CONFIG: &str = "/run/view.toml";

/// How the daemon sees the LUN `seen`, its state and the reason, which all commands have to tell alike.
fn seen() -> anyhow::Result<(String, String)> {
    let list: Value = serde_json::from_str(&tcmuctl(&["list", "--json"])?)?;
    let show: Value = serde_json::from_str(&tcmuctl(&["show", "seen", "--json"])?)?;
    let list = list.as_array().context("no list")?;
    let lun = list.iter().find(|lun| lun["name"] == "seen");
    let text = |lun: &Value, key: &str| -> anyhow::Result<String> {
        let text = lun["daemon"][key].as_str();
        Ok(text.with_context(|| format!("no {key}: {lun}"))?.to_owned())
    };
    let lun = lun.context("it is not in the list")?;
    // What the kernel says does not depend on the daemon.
    ensure!(lun["state"] == "activated", "{lun}");
    let (state, reason) = (text(&show, "state")?, text(&show, "reason")?);
    // It may have changed in between.
    if text(lun, "state")? == state {
        ensure!(text(lun, "reason")? == reason, "{lun} and {show}");
    }
    Ok((state, reason))
}

/// Waits until the daemon sees the LUN so; returns the reason.
fn await_seen(state: &str) -> anyhow::Result<String> {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        let now = seen()?;
        if now.0 == state {
            return Ok(now.1);
        }
        ensure!(Instant::now() < deadline, "it is not {state}: {now:?}");
        thread::sleep(Duration::from_millis(20));
    }
}

guest_test!(the_list_tells_what_the_daemon_knows);
fn the_list_tells_what_the_daemon_knows() -> TestResult {
    let bus = Bus::start()?;
    fs::write(CONFIG, "offline_after = 3600\n")?;
    let daemon = Daemon::start_with_config(CONFIG)?;
    await_name(NAME, true)?;
    let path = image("seen", 16 * MIB)?;
    let disk = Disk::create("seen", "file", &path, &[])?;
    ensure!(await_seen("serving")?.is_empty());
    let tool = program("tcmuctl")?;
    let tool = tool.to_str().context("a path")?;
    let held = tcmuctl(&["drain", "seen", "--", tool, "list"])?;
    let row = held.lines().find(|line| line.starts_with("seen "));
    let row = row.with_context(|| format!("no row: {held}"))?;
    ensure!(row.contains("activated  held "), "{held}");

    // An image that is away: commands wait, and then they fail.
    daemon.kill()?;
    fs::rename(&path, format!("{path}.away"))?;
    let daemon = Daemon::start_with_config(CONFIG)?;
    await_name(NAME, true)?;
    let why = await_seen("waiting")?;
    ensure!(why.contains("seen.img"), "{why}");
    let text = tcmuctl(&["list"])?;
    ensure!(text.contains(&format!("\nseen: waiting: {why}")), "{text}");
    let text = tcmuctl(&["show", "seen"])?;
    ensure!(text.contains(&format!("waiting: {why}")), "{text}");
    fs::write(CONFIG, "offline_after = 1\n")?;
    ensure!(await_seen("offline")?.contains("seen.img"));
    fs::rename(format!("{path}.away"), &path)?;
    ensure!(await_seen("serving")?.is_empty());

    // Whatever cannot be asked is no error.
    daemon.stop()?;
    ensure!(seen()?.0 == "none", "{:?}", seen()?);
    ensure!(tcmuctl(&["list"])?.contains("activated  none "));
    let daemon = Daemon::start()?;
    let (state, why) = seen()?;
    ensure!(state == "silent" && why.contains("--no-dbus"), "{why}");
    drop(bus);
    let (state, why) = seen()?;
    ensure!(state == "silent" && why.contains("system bus"), "{why}");
    disk.delete()?;
    daemon.stop()
}

/// What the doctor says of the name on the bus: the severity and what it found.
fn name_finding() -> anyhow::Result<(String, String)> {
    let tool = program("tcmuctl")?;
    let output = sh::run_any(&[tool.as_os_str(), "doctor".as_ref(), "--json".as_ref()])?;
    let report: Value = serde_json::from_slice(&output.stdout)?;
    let findings = report["findings"].as_array().context("no findings")?;
    let finding = findings.iter().find(|found| found["check"] == "dbus name");
    let finding = finding.context("the doctor does not look at the name")?;
    let text = |key: &str| finding[key].as_str().unwrap_or_default().to_owned();
    Ok((text("severity"), text("what")))
}

guest_test!(the_doctor_knows_who_owns_the_name);
fn the_doctor_knows_who_owns_the_name() -> TestResult {
    let (severity, what) = name_finding()?;
    ensure!(
        severity == "slow" && what.contains("cannot be reached"),
        "{what}"
    );
    let bus = Bus::start()?;
    let daemon = Daemon::start_on_bus()?;
    await_name(NAME, true)?;
    let (severity, what) = name_finding()?;
    let ours = format!("process {} (tcmu-runner) owns", daemon.pid());
    ensure!(severity == "ok" && what.starts_with(&ours), "{what}");
    daemon.stop()?;
    await_name(NAME, false)?;

    let thief = connect()?;
    zbus::block_on(thief.request_name(NAME))?;
    let daemon = Daemon::start()?;
    let (severity, what) = name_finding()?;
    let theirs = format!("process {} (", std::process::id());
    ensure!(severity == "broken" && what.starts_with(&theirs), "{what}");
    drop(thief);
    await_name(NAME, false)?;
    let (severity, what) = name_finding()?;
    ensure!(
        severity == "slow" && what.starts_with("nobody owns"),
        "{what}"
    );
    drop(bus);
    daemon.stop()
}
