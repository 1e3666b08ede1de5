//! LUNs that are drained and held, under load.

use std::fs;
use std::os::unix::fs::symlink;
use std::process::{Child, Command};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use serde_json::Value;
use tcmu_guest_tests::bus::{self, Bus, ROOT};
use tcmu_guest_tests::daemon::{Daemon, program};
use tcmu_guest_tests::initiator::Session;
use tcmu_guest_tests::lun::{self, Disk, MIB, names, tcmuctl, tcmuctl_fails};
use tcmu_guest_tests::sg::Sg;
use tcmu_guest_tests::{TestResult, guest_test, sh};

const RUNNER: &str = "org.kernel.TCMUService1.Runner1";

/// A LUN's state, how many commands are in flight, and how many were completed.
fn lun(name: &str) -> anyhow::Result<(String, u64, u64)> {
    let status: Value = serde_json::from_str(&tcmuctl(&["status", "--json"])?)?;
    let luns = status["luns"].as_array().context("no LUNs")?;
    let lun = luns.iter().find(|lun| lun["name"] == name);
    let lun = lun.with_context(|| format!("no {name}: {status}"))?;
    let figure = |key: &str| {
        lun[key]
            .as_u64()
            .with_context(|| format!("no {key}: {lun}"))
    };
    let state = lun["state"].as_str().context("no state")?.to_owned();
    Ok((state, figure("in_flight")?, figure("completed")?))
}

fn await_state(name: &str, state: &str) -> TestResult {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        let now = lun(name)?;
        if now.0 == state {
            return Ok(());
        }
        ensure!(Instant::now() < deadline, "{name} is not {state}: {now:?}");
        thread::sleep(Duration::from_millis(10));
    }
}

/// Waits until more commands have been completed.
fn await_progress(name: &str) -> TestResult {
    let (_, _, before) = lun(name)?;
    let deadline = Instant::now() + Duration::from_secs(60);
    while lun(name)?.2 == before {
        ensure!(Instant::now() < deadline, "{name} does nothing");
    }
    Ok(())
}

/// Runs `work` while two processes read from and write to the disk; none of them may see an error.
fn under_load(disk: &Disk, work: impl FnOnce() -> TestResult) -> TestResult {
    let done = AtomicBool::new(false);
    let (input, output) = (format!("if={}", disk.path()), format!("of={}", disk.path()));
    let read = [
        "dd",
        &input,
        "of=/dev/null",
        "bs=4k",
        "count=500",
        "iflag=direct",
    ];
    let write = [
        "dd",
        "if=/dev/zero",
        &output,
        "bs=4k",
        "count=500",
        "oflag=direct",
    ];
    thread::scope(|scope| {
        let loads = [read, write].map(|load| {
            let done = &done;
            scope.spawn(move || -> TestResult {
                while !done.load(Ordering::Relaxed) {
                    sh::run(&load)?;
                }
                Ok(())
            })
        });
        let result = work();
        done.store(true, Ordering::Relaxed);
        for load in loads {
            load.join().ok().context("a load panicked")??;
        }
        result
    })
}

/// `tcmuctl drain` that holds LUNs until it is killed.
struct Holder(Child);

impl Holder {
    fn start(lun: &str) -> anyhow::Result<Self> {
        let child = Command::new(program("tcmuctl")?)
            .args(["drain", lun, "--hold", "--limit", "3600"])
            .spawn()?;
        Ok(Self(child))
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

guest_test!(a_held_lun_is_left_alone_and_goes_on);
fn a_held_lun_is_left_alone_and_goes_on() -> TestResult {
    let _bus = Bus::start()?;
    let daemon = Daemon::start_on_bus()?;
    let disk = Disk::of_image("held", 16 * MIB)?;
    let other = Disk::of_image("other", 16 * MIB)?;
    under_load(&disk, || {
        await_progress("held")?;
        let status: Value = serde_json::from_str(&tcmuctl(&["status", "--json"])?)?;
        let luns = status["luns"].as_array().context("no LUNs")?;
        let id = luns.iter().find(|lun| lun["name"] == "held");
        let id = id.and_then(|lun| lun["id"].as_u64()).context("no id")? as u32;
        let drain = |limit: u32| -> anyhow::Result<(zbus::OwnedFd, Vec<u32>)> {
            let path = format!("{ROOT}/Runner1");
            bus::call(&path, RUNNER, "Drain", &(vec![id], limit))
        };
        for limit in [0, 3601] {
            ensure!(drain(limit).is_err(), "a limit of {limit} s");
        }
        let (hold, drained) = drain(600)?;
        ensure!(drained == [id], "{drained:?}");
        let before = lun("held")?;
        ensure!((before.0.as_str(), before.1) == ("held", 0), "{before:?}");
        // The load waits in the kernel, and other LUNs do not.
        thread::sleep(Duration::from_millis(300));
        other.write(0, 7)?;
        ensure!(other.holds(0, 7)?);
        ensure!(lun("held")? == before, "{before:?} and {:?}", lun("held")?);
        let twice = drain(1);
        let why = twice.err().context("it is drained twice")?.to_string();
        ensure!(why.contains("already"), "{why}");
        tcmuctl_fails(&["resize", "held", "32M"])?;
        drop(hold);
        await_state("held", "serving")?;
        await_progress("held")
    })?;
    disk.delete()?;
    other.delete()?;
    daemon.stop()
}

guest_test!(a_command_runs_while_luns_are_held);
fn a_command_runs_while_luns_are_held() -> TestResult {
    let _bus = Bus::start()?;
    let daemon = Daemon::start_on_bus()?;
    let disk = Disk::of_image("held", 16 * MIB)?;
    let tool = program("tcmuctl")?;
    let tool = tool.to_str().context("a path")?;
    under_load(&disk, || {
        let text = tcmuctl(&["drain", "held", "--", tool, "status"])?;
        ensure!(text.starts_with("held: nothing is in flight"), "{text}");
        let row = text.lines().find(|line| line.starts_with("held "));
        let row = row.with_context(|| format!("no row: {text}"))?;
        // The name, and the state.
        let held = row
            .split_whitespace()
            .filter(|word| *word == "held")
            .count();
        ensure!(held == 2, "it is not held meanwhile: {text}");
        await_progress("held")?;
        ensure!(tcmuctl(&["drain", "--all", "--json"])?.contains("\"held\""));
        await_progress("held")?;
        sh::run_code(&[tool, "drain", "held", "--", "sh", "-c", "exit 7"], 7)?;
        let why = tcmuctl_fails(&["drain", "held", "--limit", "1", "--", "sleep", "2"])?;
        ensure!(why.contains("not held any more"), "{why}");
        await_progress("held")
    })?;
    let why = tcmuctl_fails(&["drain", "nosuch"])?;
    ensure!(why.contains("no LUN named nosuch"), "{why}");
    let events = tcmuctl(&["events", "--lun", "held"])?;
    ensure!(
        events.contains(" held ") && events.contains("resumed"),
        "{events}"
    );
    disk.delete()?;
    daemon.stop()
}

guest_test!(whoever_holds_a_lun_may_die);
fn whoever_holds_a_lun_may_die() -> TestResult {
    let bus = Bus::start()?;
    let daemon = Daemon::start_on_bus()?;
    let disk = Disk::of_image("kept", 16 * MIB)?;
    under_load(&disk, || {
        let holder = Holder::start("kept")?;
        await_state("kept", "held")?;
        drop(holder);
        await_state("kept", "serving")?;
        await_progress("kept")
    })?;
    // The daemon may end, and a bus go, while LUNs are held.
    let holder = Holder::start("kept")?;
    await_state("kept", "held")?;
    drop(bus);
    let _bus = Bus::start()?;
    daemon.stop()?;
    drop(holder);
    let daemon = Daemon::start_on_bus()?;
    disk.write(0, 1)?;
    disk.delete()?;
    daemon.stop()
}

/// `tcmuctl delete` refuses the LUN, and says what to do.
fn is_not_deleted(name: &str) -> TestResult {
    let why = tcmuctl_fails(&["delete", name])?;
    ensure!(
        why.contains("tcmuctl drain") && why.contains(&format!("delete --force {name}")),
        "{why}"
    );
    ensure!(lun(name)?.0 == "held");
    Ok(())
}

guest_test!(a_held_lun_is_deleted_by_force_only);
fn a_held_lun_is_deleted_by_force_only() -> TestResult {
    let _bus = Bus::start()?;
    let daemon = Daemon::start_on_bus()?;
    let disk = Disk::of_image("held", 16 * MIB)?;
    let other = Disk::of_image("other", 16 * MIB)?;
    let holder = Holder::start("held")?;
    await_state("held", "held")?;
    let mut sg = Sg::open(&disk)?;
    let write = [0x2a, 0, 0, 0, 0, 0, 0, 0, 1, 0];
    let writer = thread::spawn(move || sg.execute(&write, &[1; 512], 0));
    while disk.in_flight()? == 0 {
        thread::sleep(Duration::from_millis(2));
    }
    is_not_deleted("held")?;
    ensure!(!writer.is_finished(), "the write did not wait");
    tcmuctl(&["delete", "--force", "held"])?;
    let written = writer.join().ok().context("the writer panicked")?;
    ensure!(written.is_err(), "a write to a deleted LUN succeeded");
    drop(holder);
    drop(disk);
    // Another one of that name is not held, whatever uio device it gets.
    let again = Disk::of_image("held", 16 * MIB)?;
    for disk in [&again, &other] {
        disk.write(0, 3)?;
        ensure!(disk.holds(0, 3)?, "{} was disturbed", disk.name());
    }
    again.delete()?;
    other.delete()?;
    daemon.stop()
}

guest_test!(a_held_lun_that_nobody_uses_is_deleted_by_force_only);
fn a_held_lun_that_nobody_uses_is_deleted_by_force_only() -> TestResult {
    let _bus = Bus::start()?;
    let daemon = Daemon::start_on_bus()?;
    let create = [
        "create",
        "alone",
        "--handler",
        "ram",
        "--config",
        "x",
        "--size",
        "4M",
    ];
    tcmuctl(&create)?;
    let mut holder = Holder::start("alone")?;
    await_state("alone", "held")?;
    is_not_deleted("alone")?;
    tcmuctl(&["delete", "--force", "alone"])?;
    ensure!(names()?.is_empty());
    ensure!(!holder.0.wait()?.success(), "the hold did not end");
    daemon.stop()
}

guest_test!(a_held_lun_of_an_iscsi_session_is_deleted_by_force_only);
fn a_held_lun_of_an_iscsi_session_is_deleted_by_force_only() -> TestResult {
    const IQN: &str = "iqn.2026-11.com.example:held";
    let _bus = Bus::start()?;
    let daemon = Daemon::start_on_bus()?;
    lun::export("held", 16 * MIB, IQN)?;
    let session = Session::login(IQN)?;
    let path = session.disk().to_owned();
    lun::write(&path, 0, 1)?;
    let _holder = Holder::start("held")?;
    await_state("held", "held")?;
    let writer = thread::spawn(move || lun::write(&path, 0, 2));
    thread::sleep(Duration::from_millis(300));
    ensure!(!writer.is_finished(), "the write did not wait");
    is_not_deleted("held")?;
    tcmuctl(&["delete", "--force", "held"])?;
    // Whoever waits for the target to come back is told that it will not.
    session.logout()?;
    let written = writer.join().ok().context("the writer panicked")?;
    ensure!(written.is_err(), "a write to a deleted LUN succeeded");
    ensure!(names()?.is_empty());
    daemon.stop()
}

guest_test!(whoever_removes_a_held_lun_otherwise_waits_for_the_end_of_the_hold);
fn whoever_removes_a_held_lun_otherwise_waits_for_the_end_of_the_hold() -> TestResult {
    let _bus = Bus::start()?;
    let daemon = Daemon::start_on_bus()?;
    let disk = Disk::of_image("kept", 16 * MIB)?;
    let holder = Holder::start("kept")?;
    await_state("kept", "held")?;
    let links = fs::read_dir("/sys/kernel/config/target/loopback")?.flatten();
    let mut links = links.map(|target| target.path().join("tpgt_1/lun/lun_0/storage"));
    let link = links.find(|link| link.is_symlink()).context("no LUN")?;
    let unlinked = link.clone();
    let remover = thread::spawn(move || fs::remove_file(unlinked));
    // The kernel has the disk flush its cache.
    while disk.in_flight().is_ok_and(|count| count == 0) {
        ensure!(!remover.is_finished(), "the disk has no cache to flush");
        thread::sleep(Duration::from_millis(2));
    }
    ensure!(!remover.is_finished(), "the flush did not wait");
    drop(holder);
    remover.join().ok().context("the remover panicked")??;
    symlink(lun::folder("kept")?, link)?;
    disk.delete()?;
    daemon.stop()
}
