//! A daemon that is killed ends, even if threads of it wait in configfs for somebody who waits for its
//! answer: such threads cannot be killed.

use std::collections::HashMap;
use std::fs;
use std::path::Path;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use rustix::process::{Pid, Signal};
use tcmu_guest_tests::daemon::{Daemon, RUNNER_WITH_KILL_POINTS};
use tcmu_guest_tests::lun::{Disk, MIB, folder, leftovers};
use tcmu_guest_tests::{TestResult, guest_test, sh};

use crate::storm::{Device, existing};

/// The name of the daemon's threads that look into configfs.
const OPENER: &str = "blocking";

/// Where the daemon's obstacles are (`hold_points.rs`).
const HOLD: &str = "/run/hold";

const PATIENCE: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(5);
/// How often in a row a thread is seen waiting until it is believed not to go on.
const LOOKS: u32 = 20;

/// What the kernel says of a process or thread (proc_pid_stat(5)).
struct Stat {
    name: String,
    state: char,
    parent: u32,
}

impl Stat {
    fn read(folder: &Path) -> Option<Self> {
        let stat = fs::read_to_string(folder.join("stat")).ok()?;
        let (name, rest) = stat.split_once('(')?.1.rsplit_once(") ")?;
        let (state, rest) = rest.split_once(' ')?;
        Some(Self {
            name: name.to_owned(),
            state: state.chars().next()?,
            parent: rest.split(' ').next()?.parse().ok()?,
        })
    }

    /// Of all processes, or of all threads of one, with their numbers. Some may be gone by now.
    fn read_all(folder: &str) -> anyhow::Result<Vec<(u32, Self)>> {
        let entries = fs::read_dir(folder).with_context(|| format!("listing {folder}"))?;
        let number = |path: &Path| path.file_name()?.to_str()?.parse().ok();
        let stats = entries.flatten().filter_map(|entry| {
            let path = entry.path();
            Some((number(&path)?, Stat::read(&path)?))
        });
        Ok(stats.collect())
    }
}

fn await_that(what: &str, mut is_so: impl FnMut() -> anyhow::Result<bool>) -> TestResult {
    let deadline = Instant::now() + PATIENCE;
    while !is_so()? {
        ensure!(Instant::now() < deadline, "{what}: not so after a minute");
        thread::sleep(POLL);
    }
    Ok(())
}

/// Waits until a thread of this name waits uninterruptibly, and does not go on.
fn await_stuck(process: u32, name: &str) -> TestResult {
    let mut looks = HashMap::<u32, u32>::new();
    await_that(&format!("a thread `{name}` is stuck"), || {
        let threads = Stat::read_all(&format!("/proc/{process}/task"))?;
        let stuck = threads
            .into_iter()
            .filter(|(_, stat)| stat.name == name && stat.state == 'D')
            .map(|(thread, _)| (thread, looks.get(&thread).copied().unwrap_or(0) + 1));
        looks = stuck.collect();
        Ok(looks.values().any(|count| *count >= LOOKS))
    })
}

fn spawn<T: Send + 'static>(
    name: &str,
    work: impl FnOnce() -> T + Send + 'static,
) -> anyhow::Result<JoinHandle<T>> {
    Ok(thread::Builder::new().name(name.to_owned()).spawn(work)?)
}

/// Whoever waited is let go, and everything is in order for the next daemon.
fn is_in_order<T>(waiting: Vec<JoinHandle<T>>) -> TestResult {
    for thread in waiting {
        thread.join().ok().context("a thread panicked")?;
    }
    ensure!(
        leftovers()? == [""; 0],
        "left in configfs: {:?}",
        leftovers()?
    );
    let daemon = Daemon::start()?;
    drop(Device::create(0, "null")?);
    daemon.stop()
}

/// A daemon of which a thread waits for a lock of configfs that an rmdir(2) waits for, which itself
/// waits for an attribute's store, which waits for the daemon's answer; and those who wait.
fn stuck_while_a_device_is_enabled() -> anyhow::Result<(Daemon, Vec<JoinHandle<()>>)> {
    let own = std::process::id();
    let daemon = Daemon::start()?;
    daemon.signal(Signal::STOP)?;
    let creator = spawn("creator", || drop(Device::create(0, "null")))?;
    await_that("the device is announced", || {
        Ok(!existing("null")?.is_empty())
    })?;
    await_stuck(own, "creator")?;
    let remover = spawn("remover", || {
        let _ = fs::remove_dir("/sys/kernel/config/target/core/user_0/storm0");
    })?;
    await_stuck(own, "remover")?;
    daemon.signal(Signal::CONT)?;
    await_stuck(daemon.pid(), OPENER)?;
    Ok((daemon, vec![creator, remover]))
}

guest_test!(while_a_device_is_enabled);
fn while_a_device_is_enabled() -> TestResult {
    let (daemon, waiting) = stuck_while_a_device_is_enabled()?;
    daemon.kill()?;
    is_in_order(waiting)
}

guest_test!(while_a_device_is_removed);
fn while_a_device_is_removed() -> TestResult {
    let start = |vars: &[_]| Daemon::start_with(RUNNER_WITH_KILL_POINTS, &[], vars);
    let daemon = start(&[])?;
    let device = Device::create(0, "poisonous")?;
    daemon.stop()?;

    fs::create_dir(HOLD)?;
    for point in ["opening", "removing"] {
        fs::write(format!("{HOLD}/{point}"), "")?;
    }
    let daemon = start(&[("TCMU_HOLD", HOLD)])?;
    let remover = spawn("remover", || drop(device))?;
    await_stuck(std::process::id(), "remover")?;
    // The device's folder is not found in the directory cache any more, and its parent is locked.
    fs::remove_file(format!("{HOLD}/opening"))?;
    await_stuck(daemon.pid(), OPENER)?;
    daemon.kill()?;
    fs::remove_dir_all(HOLD)?;
    is_in_order(vec![remover])
}

guest_test!(while_it_waits_for_itself);
fn while_it_waits_for_itself() -> TestResult {
    let start = |vars: &[_]| Daemon::start_with(RUNNER_WITH_KILL_POINTS, &[], vars);
    fs::create_dir(HOLD)?;
    let daemon = start(&[("TCMU_HOLD", HOLD)])?;
    let disk = Disk::of_image("itself", 16 * MIB)?;
    fs::write(format!("{HOLD}/reconfiguring"), "")?;
    let cache_type = sh::run(&["sh", "-c", "echo /sys/class/scsi_disk/*/cache_type"])?;
    // The daemon writes the attribute, and the kernel asks the daemon.
    let initiator = spawn("initiator", move || {
        fs::write(cache_type.trim(), "write through")
    })?;
    await_stuck(daemon.pid(), OPENER)?;
    daemon.kill()?;
    fs::remove_dir_all(HOLD)?;
    // The next daemon goes on with the command.
    let daemon = start(&[])?;
    initiator.join().ok().context("a thread panicked")??;
    let attribute = folder(disk.name())?.join("attrib/emulate_write_cache");
    let write_cache = fs::read_to_string(attribute)?;
    ensure!(write_cache.trim() == "0", "it was not switched");
    disk.delete()?;
    daemon.stop()
}

guest_test!(while_nobody_guards_it);
fn while_nobody_guards_it() -> TestResult {
    let (daemon, waiting) = stuck_while_a_device_is_enabled()?;
    let mut guardian = None;
    await_that("the daemon has a guardian", || {
        guardian = Stat::read_all("/proc")?
            .into_iter()
            .find(|(_, stat)| stat.parent == daemon.pid() && stat.name == "tcmu-guardian")
            .and_then(|(guardian, _)| Pid::from_raw(i32::try_from(guardian).ok()?));
        Ok(guardian.is_some())
    })?;
    let guardian = guardian.context("no guardian")?;
    rustix::process::kill_process(guardian, Signal::KILL)?;
    daemon.signal(Signal::KILL)?;
    let process = format!("/proc/{}", daemon.pid());
    await_that("the daemon is a zombie", || {
        let stat = Stat::read(Path::new(&process)).context("it has ended")?;
        Ok(stat.state == 'Z')
    })?;
    // So the next daemon has to see to it.
    let successor = Daemon::start()?;
    daemon.kill()?;
    let log = successor.log();
    ensure!(log.contains("ending the kernel's waits"), "{log}");
    successor.stop()?;
    is_in_order(waiting)
}

guest_test!(and_its_device_is_released_late);
fn and_its_device_is_released_late() -> TestResult {
    let daemon = Daemon::start()?;
    let device = Device::create(0, "null")?;
    daemon.kill()?;
    // The kernel has it open for a moment, until the dead daemon's io_uring is taken apart; this has it
    // open for longer.
    let number = existing("null")?.pop().context("no device")?;
    let mut open = None;
    await_that("the device is released", || {
        let mut options = fs::File::options();
        let opened = options.read(true).write(true);
        open = opened.open(format!("/dev/uio{number}")).ok();
        Ok(open.is_some())
    })?;
    let daemon = Daemon::start()?;
    daemon.await_log(0, "opening lun=\"storm0\"")?;
    thread::sleep(40 * POLL);
    drop(open);
    daemon.await_log(0, "serving lun=\"storm0\"")?;
    drop(device);
    daemon.stop()
}
