//! Many devices coming and going at once, while daemons do too: nobody hangs, and what is left is
//! served, or is gone.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use rustix::io::Errno;
use tcmu::discovery::{DeviceName, Sysfs};
use tcmu::netlink::{Delivery, Event, Netlink};
use tcmu_guest_tests::daemon::Daemon;
use tcmu_guest_tests::lun::leftovers;
use tcmu_guest_tests::{TestResult, guest_test, needs_several_cpus};

const CORE: &str = "/sys/kernel/config/target/core";
const CREATORS: usize = 16;
/// A ring takes 1 MiB of the guest's memory.
const DEVICES: usize = 64;
/// How many there are instead.
const DEVICES_VAR: &str = "TCMU_STORM_DEVICES";
const LIMIT: Duration = Duration::from_secs(900);
const PATIENCE: Duration = Duration::from_secs(60);

fn devices() -> anyhow::Result<usize> {
    match std::env::var(DEVICES_VAR) {
        Ok(number) => number.parse().context(DEVICES_VAR),
        Err(_) => Ok(DEVICES),
    }
}

/// A backstore in configfs, without any export.
pub(super) struct Device(PathBuf);

impl Device {
    /// Makes a backstore of a handler and enables it, which waits for the daemon's answer.
    pub(super) fn create(number: usize, subtype: &str) -> io::Result<Self> {
        Self::create_as(number, &format!("{subtype}/{number}"))
    }

    /// The same with this `dev_config`.
    pub(super) fn create_as(number: usize, config: &str) -> io::Result<Self> {
        loop {
            match Self::try_create(number, config) {
                Err(error) if is_kernels_race(&error) => {}
                result => return result,
            }
        }
    }

    fn try_create(number: usize, config: &str) -> io::Result<Self> {
        let hba = Path::new(CORE).join(format!("user_{number}"));
        let path = hba.join(format!("storm{number}"));
        fs::create_dir_all(&path)?;
        let device = Device(path);
        device.write("attrib/dev_config", config)?;
        for setting in [
            "dev_size=1048576",
            "hw_block_size=512",
            "max_data_area_mb=1",
            "cmd_ring_size_mb=1",
        ] {
            device.write("control", setting)?;
        }
        device.write("enable", "1")?;
        Ok(device)
    }

    /// Writes once: what was interrupted is not tried again, as `fs::write` would.
    fn write(&self, file: &str, value: &str) -> io::Result<()> {
        let file = File::options().write(true).open(self.0.join(file))?;
        rustix::io::write(&file, value.as_bytes())?;
        Ok(())
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        let _ = fs::remove_dir(&self.0);
        if let Some(hba) = self.0.parent() {
            let _ = fs::remove_dir(hba);
        }
    }
}

/// What the kernel says while the daemon changes: netlink is blocked, or a wait was ended.
fn is_passing(error: &io::Error) -> bool {
    matches!(
        Errno::from_io_error(error),
        Some(Errno::AGAIN | Errno::INTR | Errno::NOBUFS)
    )
}

/// uio gives a device's number away before the device's folder in sysfs is gone
/// (`uio_unregister_device` in drivers/uio/uio.c); who gets it just then is told EEXIST.
fn is_kernels_race(error: &io::Error) -> bool {
    Errno::from_io_error(error) == Some(Errno::EXIST)
}

/// Runs `work` on several threads at once, each with its number.
fn together(work: impl Fn(usize) -> TestResult + Send + Sync + 'static) -> TestResult {
    let work = Arc::new(work);
    let threads: Vec<JoinHandle<TestResult>> = (0..CREATORS)
        .map(|number| {
            let work = Arc::clone(&work);
            thread::spawn(move || work(number))
        })
        .collect();
    for thread in threads {
        thread.join().ok().context("a thread panicked")??;
    }
    Ok(())
}

/// The uio devices that a process has open.
fn held(pid: u32) -> anyhow::Result<Vec<String>> {
    let mut held: Vec<String> = fs::read_dir(format!("/proc/{pid}/fd"))?
        .flatten()
        .filter_map(|fd| fs::read_link(fd.path()).ok())
        .filter_map(|target| Some(target.to_str()?.strip_prefix("/dev/uio")?.to_owned()))
        .collect();
    held.sort();
    held.dedup();
    Ok(held)
}

/// The uio devices of a subtype.
pub(super) fn existing(subtype: &str) -> anyhow::Result<Vec<String>> {
    let mut existing: Vec<String> = Sysfs::system()
        .scan()?
        .into_iter()
        .filter(|device| device.name.subtype == subtype)
        .map(|device| device.minor.to_string())
        .collect();
    existing.sort();
    Ok(existing)
}

/// Waits until the daemon serves exactly what there is of its handler `null`.
fn await_consistency(daemon: &Daemon) -> TestResult {
    await_all_served(daemon, "null")
}

/// Waits until the daemon serves exactly what there is of a subtype.
pub(super) fn await_all_served(daemon: &Daemon, subtype: &str) -> TestResult {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let (held, existing) = (held(daemon.pid())?, existing(subtype)?);
        if held == existing {
            return Ok(());
        }
        ensure!(
            Instant::now() < deadline,
            "the daemon serves {held:?}, and there are {existing:?}"
        );
        thread::sleep(Duration::from_millis(20));
    }
}

guest_test!(many_come_and_go_at_once, limit = LIMIT);
fn many_come_and_go_at_once() -> TestResult {
    needs_several_cpus("a storm")?;
    let devices = devices()?;
    let daemon = Daemon::start()?;
    for _ in 0..2 {
        let served = Arc::new(AtomicUsize::new(0));
        let counter = Arc::clone(&served);
        together(move |creator| {
            let made = (creator..devices)
                .step_by(CREATORS)
                .map(|number| Device::create(number, "null"))
                .collect::<io::Result<Vec<_>>>()?;
            counter.fetch_add(made.len(), Ordering::Relaxed);
            Ok(())
        })?;
        ensure!(served.load(Ordering::Relaxed) == devices);
        await_consistency(&daemon)?;
        ensure!(
            leftovers()? == [""; 0],
            "left in configfs: {:?}",
            leftovers()?
        );
    }
    // All at once are there, and go at once.
    let made = Arc::new(std::sync::Mutex::new(Vec::new()));
    let keep = Arc::clone(&made);
    together(move |creator| {
        for number in (creator..devices).step_by(CREATORS) {
            let device = Device::create(number, "null")?;
            keep.lock().expect("no thread panicked").push(device);
        }
        Ok(())
    })?;
    ensure!(existing("null")?.len() == devices);
    await_consistency(&daemon)?;
    together(move |_| {
        loop {
            let device = made.lock().expect("no thread panicked").pop();
            if device.is_none() {
                return Ok(());
            }
        }
    })?;
    await_consistency(&daemon)?;
    ensure!(existing("null")?.is_empty());
    daemon.stop()
}

guest_test!(daemons_come_and_go_meanwhile, limit = LIMIT);
fn daemons_come_and_go_meanwhile() -> TestResult {
    needs_several_cpus("a storm")?;
    let devices = devices()?;
    let enough = Arc::new(AtomicBool::new(false));
    let (stop, made) = (Arc::clone(&enough), Arc::new(AtomicUsize::new(0)));
    let counter = Arc::clone(&made);
    let creators = thread::spawn(move || {
        together(move |creator| {
            while !stop.load(Ordering::Relaxed) {
                for number in (creator..devices).step_by(CREATORS) {
                    match Device::create(number, "null") {
                        Ok(_) => counter.fetch_add(1, Ordering::Relaxed),
                        Err(error) if is_passing(&error) => 0,
                        Err(error) => return Err(error.into()),
                    };
                }
            }
            Ok(())
        })
    });
    let mut daemon = Daemon::start()?;
    for round in 0..8 {
        // Some devices are made between any two changes of daemons.
        let before = made.load(Ordering::Relaxed);
        let deadline = Instant::now() + PATIENCE;
        while made.load(Ordering::Relaxed) < before + CREATORS {
            ensure!(Instant::now() < deadline, "no device is created any more");
            thread::sleep(Duration::from_millis(5));
        }
        if round % 2 == 0 {
            daemon.kill()?;
        } else {
            daemon.stop()?;
        }
        daemon = Daemon::start()?;
    }
    enough.store(true, Ordering::Relaxed);
    creators.join().ok().context("the creators panicked")??;
    await_consistency(&daemon)?;
    ensure!(
        leftovers()? == [""; 0],
        "left in configfs: {:?}",
        leftovers()?
    );
    daemon.stop()
}

/// A daemon of somebody else's, with a handler `theirs`.
struct Foreign {
    enough: Arc<AtomicBool>,
    thread: Option<JoinHandle<anyhow::Result<usize>>>,
}

impl Foreign {
    fn start() -> anyhow::Result<Self> {
        let mut netlink = Netlink::connect()?;
        let enough = Arc::new(AtomicBool::new(false));
        let stop = Arc::clone(&enough);
        let thread = thread::spawn(move || {
            let mut answered = 0;
            while !stop.load(Ordering::Relaxed) {
                let Some(event) = netlink.receive()? else {
                    thread::sleep(Duration::from_millis(1));
                    continue;
                };
                let (device, ticket) = match event {
                    Event::Added { device, ticket, .. }
                    | Event::Removed { device, ticket, .. }
                    | Event::Reconfigured { device, ticket, .. } => (device, ticket),
                    Event::Overflow => continue,
                };
                if device.parse::<DeviceName>()?.subtype == "theirs" {
                    answered += usize::from(netlink.reply(ticket, 0)? == Delivery::Accepted);
                }
            }
            Ok(answered)
        });
        Ok(Foreign {
            enough,
            thread: Some(thread),
        })
    }

    /// Ends it; returns how many answers of it were taken.
    fn stop(mut self) -> anyhow::Result<usize> {
        self.enough.store(true, Ordering::Relaxed);
        let thread = self.thread.take().context("it was stopped")?;
        thread.join().ok().context("the foreign daemon panicked")?
    }
}

guest_test!(two_daemons_answer_for_their_own_only, limit = LIMIT);
fn two_daemons_answer_for_their_own_only() -> TestResult {
    needs_several_cpus("a storm")?;
    let devices = devices()?;
    let daemon = Daemon::start()?;
    let foreign = Foreign::start()?;
    let kept = Arc::new(std::sync::Mutex::new(Vec::new()));
    let keep = Arc::clone(&kept);
    together(move |creator| {
        for number in (creator..devices).step_by(CREATORS) {
            let subtype = if number % 2 == 0 { "null" } else { "theirs" };
            let device = Device::create(number, subtype)?;
            keep.lock().expect("no thread panicked").push(device);
        }
        Ok(())
    })?;
    await_consistency(&daemon)?;
    ensure!(existing("theirs")?.len() == devices / 2);
    kept.lock().expect("no thread panicked").clear();
    ensure!(
        leftovers()? == [""; 0],
        "left in configfs: {:?}",
        leftovers()?
    );
    let answered = foreign.stop()?;
    ensure!(
        answered == devices / 2 * 2,
        "{answered} answers of the other daemon were taken: each device comes and goes"
    );
    daemon.stop()
}

guest_test!(a_subtype_of_nobody_holds_up_nobody, limit = LIMIT);
fn a_subtype_of_nobody_holds_up_nobody() -> TestResult {
    let daemon = Daemon::start()?;
    let waiting: Vec<_> = (0..4)
        .map(|number| thread::spawn(move || Device::create(1000 + number, "nobodys").map(drop)))
        .collect();
    while existing("nobodys")?.len() < waiting.len() {
        thread::sleep(Duration::from_millis(5));
    }
    let device = Device::create(0, "null")?;
    await_consistency(&daemon)?;
    drop(device);
    ensure!(
        waiting.iter().all(|thread| !thread.is_finished()),
        "somebody answered for a subtype that is nobody's"
    );
    // Whoever waits for a daemon that there is not is let go when one starts.
    daemon.kill()?;
    let daemon = Daemon::start()?;
    for thread in waiting {
        let error = thread.join().ok().context("a thread panicked")?;
        ensure!(error.is_err(), "a device of nobody's was enabled");
    }
    await_consistency(&daemon)?;
    ensure!(
        leftovers()? == [""; 0],
        "left in configfs: {:?}",
        leftovers()?
    );
    daemon.stop()
}
