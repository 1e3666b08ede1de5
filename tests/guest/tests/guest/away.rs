//! Images, and daemons, that are away: commands wait, but not for ever.

use std::collections::HashMap;
use std::fs;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use tcmu_guest_tests::bus::{Bus, ROOT, call};
use tcmu_guest_tests::daemon::{Daemon, RUNNER, RUNNER_WITH_KILL_POINTS};
use tcmu_guest_tests::lun::{Disk, MIB, image, tcmuctl_fails};
use tcmu_guest_tests::sg::Sg;
use tcmu_guest_tests::{TestResult, guest_test};
use zbus::OwnedVariant;

type Record = HashMap<String, OwnedVariant>;

const PATIENCE: Duration = Duration::from_secs(60);
const TEST_UNIT_READY: [u8; 6] = [0; 6];
const NOT_READY: u8 = 2;
const UNIT_ATTENTION: u8 = 6;

/// Moves an image to where nobody looks for it.
fn hide(path: &str) -> TestResult {
    fs::rename(path, format!("{path}.away")).context("hiding an image")
}

fn show(path: &str) -> TestResult {
    fs::rename(format!("{path}.away"), path).context("bringing an image back")
}

/// Something that reads a block of a disk, past the page cache, and says why it cannot.
fn reader(disk: &Disk) -> anyhow::Result<Child> {
    Command::new("dd")
        .arg(format!("if={}", disk.path()))
        .args(["of=/dev/null", "bs=4k", "count=1", "iflag=direct"])
        .stdin(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .context("cannot run dd")
}

/// Waits until a command of the disk's is under way.
fn await_command(disk: &Disk, reader: &mut Child) -> TestResult {
    while disk.in_flight()? == 0 {
        ensure!(
            reader.try_wait()?.is_none(),
            "dd ended although nobody served it"
        );
        thread::sleep(Duration::from_millis(2));
    }
    Ok(())
}

/// The reader has to end with an I/O error; as long as it waits for the disk, nobody can kill it.
fn ends_with_error(reader: Child) -> TestResult {
    let output = reader.wait_with_output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(
        !output.status.success() && said.contains("Input/output error"),
        "dd ended with {}: {said}",
        output.status
    );
    Ok(())
}

fn text(record: &Record, key: &str) -> String {
    let value = record.get(key).cloned();
    value
        .and_then(|value| String::try_from(value).ok())
        .unwrap_or_default()
}

/// Waits until the daemon says that its LUN has come to this state; returns the reason it gives.
fn await_state(state: &str) -> anyhow::Result<String> {
    let (path, interface) = (format!("{ROOT}/Runner1"), "org.kernel.TCMUService1.Runner1");
    let deadline = Instant::now() + PATIENCE;
    loop {
        let luns: Vec<Record> = call(&path, interface, "ListLuns", &())?;
        if let Some(lun) = luns.iter().find(|lun| text(lun, "state") == state) {
            return Ok(text(lun, "reason"));
        }
        ensure!(
            Instant::now() < deadline,
            "no LUN is {state}, but: {luns:?}"
        );
        thread::sleep(Duration::from_millis(20));
    }
}

fn event_kinds() -> anyhow::Result<Vec<String>> {
    let (path, interface) = (format!("{ROOT}/Runner1"), "org.kernel.TCMUService1.Runner1");
    let (events, _): (Vec<Record>, u64) = call(&path, interface, "ListEvents", &0_u64)?;
    Ok(events.iter().map(|event| text(event, "kind")).collect())
}

guest_test!(commands_wait_for_an_image_that_is_away);
fn commands_wait_for_an_image_that_is_away() -> TestResult {
    let config = "/run/patient.toml";
    fs::write(config, "offline_after = 3600\n")?;
    let daemon = Daemon::start()?;
    let path = image("away", 16 * MIB)?;
    let disk = Disk::create("away", "file", &path, &[])?;
    let other = Disk::of_image("other", 16 * MIB)?;
    disk.write(0, 1)?;
    daemon.kill()?;
    hide(&path)?;
    let daemon = Daemon::start_with(RUNNER, &["--config", config], &[])?;
    daemon.await_log(0, "cannot be opened")?;
    let mut waiting = reader(&disk)?;
    await_command(&disk, &mut waiting)?;
    other.write(0, 3)?;
    ensure!(other.holds(0, 3)?, "the other LUN was disturbed");
    ensure!(
        waiting.try_wait()?.is_none(),
        "a command ended without an image"
    );
    // Another start changes nothing.
    daemon.stop()?;
    let daemon = Daemon::start_with(RUNNER, &["--config", config], &[])?;
    daemon.await_log(0, "cannot be opened")?;
    show(&path)?;
    let ended = waiting.wait_with_output()?;
    ensure!(ended.status.success(), "dd failed: {ended:?}");
    ensure!(disk.holds(0, 1)?);
    disk.write(MIB, 2)?;
    ensure!(disk.holds(MIB, 2)?);
    ensure!(
        !daemon.log().contains("offline"),
        "the LUN went offline meanwhile"
    );
    other.delete()?;
    disk.delete()?;
    daemon.stop()
}

guest_test!(an_image_that_stays_away_takes_its_lun_offline_until_it_is_there);
fn an_image_that_stays_away_takes_its_lun_offline_until_it_is_there() -> TestResult {
    let config = "/run/hasty.toml";
    fs::write(config, "offline_after = 1\n")?;
    let daemon = Daemon::start()?;
    let path = image("away", 16 * MIB)?;
    let disk = Disk::create("away", "file", &path, &[])?;
    disk.write(0, 1)?;
    daemon.kill()?;
    let waiting = reader(&disk)?;
    hide(&path)?;
    let _bus = Bus::start_open()?;
    let daemon = Daemon::start_with_config(config)?;
    ends_with_error(waiting)?;
    let reason = await_state("offline")?;
    ensure!(reason.contains("away.img"), "the reason is {reason:?}");
    let mut sg = Sg::open(&disk)?;
    let ended = sg.attempt(&TEST_UNIT_READY, &[], 0)?;
    ensure!(ended.sense_key() == NOT_READY, "{ended:?}");
    ends_with_error(reader(&disk)?)?;

    show(&path)?;
    await_state("serving")?;
    let ended = sg.attempt(&TEST_UNIT_READY, &[], 0)?;
    ensure!(
        ended.sense_key() == UNIT_ATTENTION && ended.sense[12] == 0x28,
        "initiators do not hear that the LUN is ready again: {ended:?}"
    );
    sg.execute(&TEST_UNIT_READY, &[], 0)?;
    ensure!(disk.holds(0, 1)?);
    disk.write(MIB, 2)?;
    ensure!(disk.holds(MIB, 2)?);
    let kinds = event_kinds()?;
    ensure!(
        kinds == ["failed", "offline", "serving"],
        "the events are {kinds:?}"
    );
    ensure!(
        !daemon.log().contains("resetting"),
        "the ring was reset meanwhile"
    );

    // A LUN that is offline can be deleted.
    daemon.stop()?;
    hide(&path)?;
    let daemon = Daemon::start_with_config(config)?;
    await_state("offline")?;
    drop(sg);
    disk.delete()?;
    daemon.stop()
}

guest_test!(when_the_daemon_does_not_come_back_commands_end_with_errors);
fn when_the_daemon_does_not_come_back_commands_end_with_errors() -> TestResult {
    let daemon = Daemon::start()?;
    let disk = Disk::of_image("orphan", 16 * MIB)?;
    let other = Disk::of_image("other", 16 * MIB)?;
    disk.write(0, 1)?;
    daemon.stop()?;
    // One command is in flight when the daemon dies, the other is sent to nobody.
    let mut fetched = reader(&disk)?;
    let daemon = Daemon::start_doomed(
        RUNNER_WITH_KILL_POINTS,
        &[],
        &[("TCMU_KILL_AT", "fetched:0")],
    )?;
    daemon.wait_for_kill()?;
    ensure!(
        fetched.try_wait()?.is_none(),
        "dd ended although its command was not executed"
    );
    let mut waiting = reader(&other)?;
    await_command(&other, &mut waiting)?;

    // That tcmu-runner itself does not start with such settings must not matter.
    let config = "/run/mistaken.toml";
    fs::write(config, "reactors = none\n")?;
    let offline = Daemon::start_with(RUNNER, &["--offline", "--config", config], &[])?;
    ends_with_error(fetched)?;
    ends_with_error(waiting)?;
    // What follows does too.
    ends_with_error(reader(&disk)?)?;
    ensure!(
        !offline.log().contains("resetting"),
        "the ring was reset: initiators repeat what was in flight"
    );
    let new = image("new", 16 * MIB)?;
    let create = ["create", "new", "--handler", "file", "--config", &new];
    let message = tcmuctl_fails(&create)?;
    println!("{message}");
    other.delete()?;
    offline.stop()?;

    let daemon = Daemon::start()?;
    ensure!(disk.holds(0, 1)?);
    disk.write(MIB, 2)?;
    ensure!(disk.holds(MIB, 2)?);
    disk.delete()?;
    daemon.stop()
}
