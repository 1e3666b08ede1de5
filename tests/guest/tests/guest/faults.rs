//! What goes wrong outside of the commands: images that hang, rings that are damaged, devices that
//! vanish. One LUN has the trouble, the others go on.

use std::fs::{self, File};
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use rustix::process::Signal;
use tcmu_guest_tests::daemon::{Daemon, RUNNER, RUNNER_WITH_KILL_POINTS};
use tcmu_guest_tests::lun::{Disk, MIB, image, tcmuctl, tcmuctl_fails};
use tcmu_guest_tests::sg::Sg;
use tcmu_guest_tests::{TestResult, guest_test, needs_several_cpus, sh};

const FOLDER: &str = "/run/frozen";

/// A file system that can be frozen: whoever writes to it then hangs.
pub(crate) struct Freezer {
    frozen: bool,
}

impl Freezer {
    pub(crate) fn new() -> anyhow::Result<Self> {
        let below = image("freezer", 64 * MIB)?;
        sh::run(&["mkfs.ext4", "-q", "-F", &below])?;
        fs::create_dir(FOLDER)?;
        sh::run(&["mount", "-o", "loop", &below, FOLDER])?;
        Ok(Self { frozen: false })
    }

    pub(crate) fn image(&self, name: &str) -> anyhow::Result<String> {
        let path = format!("{FOLDER}/{name}.img");
        File::create(&path)?.set_len(16 * MIB)?;
        Ok(path)
    }

    pub(crate) fn freeze(&mut self) -> TestResult {
        sh::run(&["fsfreeze", "--freeze", FOLDER])?;
        self.frozen = true;
        Ok(())
    }

    pub(crate) fn thaw(&mut self) -> TestResult {
        self.frozen = false;
        sh::run(&["fsfreeze", "--unfreeze", FOLDER]).map(drop)
    }
}

impl Drop for Freezer {
    fn drop(&mut self) {
        if self.frozen {
            // Otherwise nothing of this test could ever end.
            let _ = self.thaw();
        }
        // The next test of this guest makes its own.
        let _ = sh::run_any(&["umount", "--lazy", FOLDER]);
        let _ = fs::remove_dir(FOLDER);
    }
}

/// Waits until the daemon's log has a line with all of these words.
fn logged(daemon: &Daemon, words: &[&str]) -> TestResult {
    let deadline = Instant::now() + Duration::from_secs(60);
    let said = |log: &str| {
        log.lines()
            .any(|line| words.iter().all(|word| line.contains(word)))
    };
    while !said(&daemon.log()) {
        ensure!(Instant::now() < deadline, "the log never says {words:?}");
        thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

/// WRITE(10) of a block.
fn write_10(lba: u32) -> [u8; 10] {
    let mut cdb = [0x2a, 0, 0, 0, 0, 0, 0, 0, 1, 0];
    cdb[2..6].copy_from_slice(&lba.to_be_bytes());
    cdb
}

/// READ(10) of a block.
fn read_10(lba: u32) -> [u8; 10] {
    let mut cdb = write_10(lba);
    cdb[0] = 0x28;
    cdb
}

guest_test!(a_stuck_image_is_named_and_its_commands_time_out);
fn a_stuck_image_is_named_and_its_commands_time_out() -> TestResult {
    let daemon = Daemon::start()?;
    let mut freezer = Freezer::new()?;
    let stuck = freezer.image("stuck")?;
    let stuck = Disk::create("stuck", "file", &stuck, &["--cmd-timeout", "5"])?;
    let other = Disk::of_image("other", 16 * MIB)?;
    stuck.write(0, 1)?;
    freezer.freeze()?;
    let mut sg = Sg::open(&stuck)?;
    let begun = Instant::now();
    let failed = sg.execute(&write_10(64), &[2; 512], 0);
    println!("after {:?}: {failed:?}", begun.elapsed());
    ensure!(failed.is_err(), "a write to a frozen file system succeeded");
    logged(&daemon, &["stuck", "does not answer"])?;
    other.write(0, 3)?;
    ensure!(other.holds(0, 3)?, "the other LUN was disturbed");
    freezer.thaw()?;
    logged(&daemon, &["stuck", "answers again"])?;
    // The late completion has disturbed nothing.
    stuck.write(MIB, 4)?;
    ensure!(stuck.holds(MIB, 4)? && stuck.holds(0, 1)?);
    stuck.delete()?;
    other.delete()?;
    daemon.stop()
}

guest_test!(a_lun_with_a_stuck_image_can_be_deleted);
fn a_lun_with_a_stuck_image_can_be_deleted() -> TestResult {
    let daemon = Daemon::start()?;
    let mut freezer = Freezer::new()?;
    let path = freezer.image("stuck")?;
    let stuck = Disk::create("stuck", "file", &path, &[])?;
    let other = Disk::of_image("other", 16 * MIB)?;
    let mut sg = Sg::open(&stuck)?;
    freezer.freeze()?;
    let writer = thread::spawn(move || sg.execute(&write_10(64), &[2; 512], 0));
    while stuck.in_flight()? == 0 {
        ensure!(!writer.is_finished(), "the write is not stuck");
        thread::sleep(Duration::from_millis(5));
    }
    let begun = Instant::now();
    tcmuctl(&["--timeout", "5", "delete", "--force", "stuck"])?;
    println!("deleted after {:?}", begun.elapsed());
    ensure!(
        writer.join().ok().context("the writer panicked")?.is_err(),
        "a write to a deleted LUN succeeded"
    );
    // A new LUN may well get the same uio device.
    let next = Disk::of_image("next", 16 * MIB)?;
    for disk in [&other, &next] {
        disk.write(0, 3)?;
        ensure!(disk.holds(0, 3)?, "{} was disturbed", disk.name());
    }
    freezer.thaw()?;
    next.write(MIB, 4)?;
    ensure!(next.holds(MIB, 4)? && next.holds(0, 3)?);
    next.delete()?;
    other.delete()?;
    drop(stuck);
    daemon.stop()
}

/// How many of io_uring's workers hang in the daemon.
fn hanging_workers(pid: u32) -> anyhow::Result<usize> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task"))?.flatten();
    let stats = tasks.map(|task| fs::read_to_string(task.path().join("stat")).unwrap_or_default());
    let hangs = |stat: &String| stat.contains("(iou-wrk-") && stat.contains(") D ");
    Ok(stats.filter(hangs).count())
}

guest_test!(images_that_hang_keep_no_other_from_its_work);
fn images_that_hang_keep_no_other_from_its_work() -> TestResult {
    let config = "/run/one-reactor.toml";
    fs::write(config, "reactors = 1\n")?;
    let daemon = Daemon::start_with(RUNNER, &["--config", config], &[])?;
    let mut freezer = Freezer::new()?;
    // So many workers io_uring has for one reactor.
    let workers = 4 * thread::available_parallelism()?.get();
    let stuck = (0..workers).map(|number| {
        let name = format!("stuck{number}");
        Disk::create(&name, "file", &freezer.image(&name)?, &[])
    });
    let stuck: Vec<_> = stuck.collect::<anyhow::Result<_>>()?;
    let other = Disk::of_image("other", 16 * MIB)?;
    let sgs = stuck.iter().map(Sg::open);
    let sgs: Vec<_> = sgs.collect::<anyhow::Result<_>>()?;
    freezer.freeze()?;
    let writers: Vec<_> = sgs
        .into_iter()
        .map(|mut sg| thread::spawn(move || sg.execute(&write_10(64), &[2; 512], 0)))
        .collect();
    while hanging_workers(daemon.pid())? < workers {
        thread::sleep(Duration::from_millis(5));
    }
    for value in 3..6 {
        other.write(0, value)?;
        ensure!(other.holds(0, value)?, "the other LUN was disturbed");
    }
    logged(&daemon, &["WARN", "other.img", "another image that hangs"])?;
    freezer.thaw()?;
    for (writer, disk) in writers.into_iter().zip(&stuck) {
        writer.join().ok().context("a writer panicked")??;
        let block = Sg::open(disk)?.execute(&read_10(64), &[], 512)?;
        ensure!(block == [2; 512], "a write that had to wait is lost");
    }
    other.write(MIB, 6)?;
    ensure!(other.holds(MIB, 6)? && other.holds(0, 5)?);
    for disk in stuck {
        disk.delete()?;
    }
    other.delete()?;
    daemon.stop()
}

guest_test!(an_image_that_takes_too_long_to_open_is_refused);
fn an_image_that_takes_too_long_to_open_is_refused() -> TestResult {
    let config = "/run/impatient.toml";
    fs::write(config, "opening_limit = 2\n")?;
    let daemon = Daemon::start_with(RUNNER, &["--config", config], &[])?;
    let mut freezer = Freezer::new()?;
    let other = Disk::of_image("other", 16 * MIB)?;
    freezer.freeze()?;
    // Making the file hangs.
    let config = format!("{FOLDER}/new.img;create=on");
    let message = tcmuctl_fails(&[
        "create",
        "late",
        "--handler",
        "file",
        "--config",
        &config,
        "--size",
        "16M",
        "--loopback",
    ])?;
    println!("{message}");
    logged(&daemon, &["late", "takes too long"])?;
    other.write(0, 3)?;
    ensure!(other.holds(0, 3)?, "the other LUN was disturbed");
    freezer.thaw()?;
    // What was opened too late is closed again: the name and the image can be used.
    let again = || Disk::create("late", "file", &config, &["--size", "16M"]);
    let deadline = Instant::now() + Duration::from_secs(60);
    let disk = loop {
        match again() {
            Ok(disk) => break disk,
            Err(error) => ensure!(Instant::now() < deadline, "{error:#}"),
        }
    };
    disk.write(0, 5)?;
    ensure!(disk.holds(0, 5)?);
    disk.delete()?;
    other.delete()?;
    daemon.stop()
}

/// Where the daemon has the memory of a device mapped.
fn mapped_at(pid: u32, device: &str) -> anyhow::Result<u64> {
    let maps = fs::read_to_string(format!("/proc/{pid}/maps"))?;
    let line = maps.lines().find(|line| line.ends_with(device));
    let line = line.with_context(|| format!("{device} is not mapped:\n{maps}"))?;
    let start = line.split('-').next().unwrap_or_default();
    Ok(u64::from_str_radix(start, 16)?)
}

/// Waits until no thread of a process runs any more that was told to stop.
fn await_stopped(pid: u32) -> TestResult {
    let is_stopped = |task: &Path| {
        let stat = fs::read_to_string(task.join("stat")).unwrap_or_default();
        // proc_pid_stat(5): the state follows the name, which is in parentheses.
        stat.rsplit_once(") ")
            .is_none_or(|(_, rest)| rest.starts_with('T'))
    };
    loop {
        let tasks = fs::read_dir(format!("/proc/{pid}/task"))?.flatten();
        if tasks.map(|task| task.path()).all(|task| is_stopped(&task)) {
            return Ok(());
        }
        thread::sleep(Duration::from_millis(1));
    }
}

guest_test!(a_damaged_ring_is_reset);
fn a_damaged_ring_is_reset() -> TestResult {
    let daemon = Daemon::start()?;
    let disk = Disk::of_image("damaged", 16 * MIB)?;
    let other = Disk::of_image("other", 16 * MIB)?;
    disk.write(0, 1)?;
    let memory = File::options()
        .read(true)
        .write(true)
        .open(format!("/proc/{}/mem", daemon.pid()))?;
    let base = mapped_at(daemon.pid(), &disk.uio()?)?;
    let word = |at: u64| -> anyhow::Result<u32> {
        let mut bytes = [0; 4];
        memory.read_exact_at(&mut bytes, base + at)?;
        Ok(u32::from_ne_bytes(bytes))
    };
    // The daemon must not see the next command before its entry is damaged.
    daemon.signal(Signal::STOP)?;
    await_stopped(daemon.pid())?;
    let head = word(12)?;
    let path = disk.path().to_owned();
    let reader = thread::spawn(move || {
        sh::run(&[
            "dd",
            &format!("if={path}"),
            "of=/dev/null",
            "bs=4k",
            "count=1",
            "iflag=direct",
        ])
    });
    while word(12)? == head {
        thread::sleep(Duration::from_millis(1));
    }
    let entry = base + u64::from(word(4)?) + u64::from(head);
    memory.write_all_at(&0xffff_fff9_u32.to_ne_bytes(), entry)?;
    daemon.signal(Signal::CONT)?;
    logged(&daemon, &["damaged", "the command ring is damaged"])?;
    logged(&daemon, &["damaged", "resetting the command ring"])?;
    // BUSY is repeated by the initiator.
    reader.join().ok().context("the reader panicked")??;
    disk.write(MIB, 2)?;
    ensure!(disk.holds(0, 1)? && disk.holds(MIB, 2)?);
    other.write(0, 3)?;
    ensure!(other.holds(0, 3)?, "the other LUN was disturbed");
    disk.delete()?;
    other.delete()?;
    daemon.stop()
}

guest_test!(a_device_that_vanishes_without_a_word_is_let_go);
fn a_device_that_vanishes_without_a_word_is_let_go() -> TestResult {
    let daemon = Daemon::start()?;
    let other = Disk::of_image("other", 16 * MIB)?;
    let path = image("vanishing", 16 * MIB)?;
    let create = [
        "create",
        "vanishing",
        "--handler",
        "file",
        "--config",
        &path,
    ];
    tcmuctl(&create)?;
    let block = Path::new("/sys/module/target_core_user/parameters/block_netlink");
    let folders: Vec<_> = fs::read_dir("/sys/kernel/config/target/core")?
        .flatten()
        .map(|hba| hba.path().join("vanishing"))
        .filter(|folder| folder.is_dir())
        .collect();
    fs::write(block, "1")?;
    let removed = folders.iter().try_for_each(fs::remove_dir);
    fs::write(block, "0")?;
    removed?;
    logged(&daemon, &["vanishing", "vanished"])?;
    // The image is free for the next one.
    let again = Disk::create("vanishing", "file", &path, &[])?;
    again.write(0, 1)?;
    ensure!(again.holds(0, 1)?);
    other.write(0, 3)?;
    ensure!(other.holds(0, 3)?, "the other LUN was disturbed");
    again.delete()?;
    other.delete()?;
    daemon.stop()
}

/// The block that kills the daemon with kill points when it is written to a LUN of the handler
/// `poisonous`.
const POISON: u32 = 64;

guest_test!(
    a_lun_that_brings_the_daemon_down_is_taken_offline,
    limit = Duration::from_secs(300)
);
fn a_lun_that_brings_the_daemon_down_is_taken_offline() -> TestResult {
    needs_several_cpus("so many daemons under load")?;
    // The poison may bring it down before it is ready.
    let start = || Daemon::start_doomed(RUNNER_WITH_KILL_POINTS, &[], &[]);
    let mut daemon = start()?;
    let bad = Disk::create("bad", "poisonous", "x", &["--size", "16M"])?;
    let good = Disk::of_image("good", 16 * MIB)?;
    good.write(0, 1)?;
    bad.write(MIB, 2)?;
    let (mut sg, mut other) = (Sg::open(&bad)?, Sg::open(&good)?);
    let poison = thread::spawn(move || (sg.execute(&write_10(POISON), &[1; 512], 0), sg));
    // In flight at the first death, and innocent.
    let (stop, stopped) = std::sync::mpsc::channel::<()>();
    let innocent = thread::spawn(move || -> anyhow::Result<u32> {
        let mut count = 0;
        while stopped.try_recv().is_err() {
            other.execute(&write_10(count % 1000 + 8), &[count as u8; 512], 0)?;
            count += 1;
        }
        Ok(count)
    });
    let mut deaths = 0;
    while !poison.is_finished() {
        if !daemon.is_running()? {
            deaths += 1;
            ensure!(deaths < 10, "the daemon dies again and again");
            daemon = start()?;
        }
        thread::sleep(Duration::from_millis(10));
    }
    let (answer, mut sg) = poison.join().ok().context("the poison's thread panicked")?;
    let answer = answer.err().context("the poison succeeded")?.to_string();
    println!("after {deaths} deaths: {answer}");
    ensure!(deaths >= 3, "{deaths} deaths are no loop");
    let log = daemon.log();
    let is_blamed = |lun: &str| {
        log.lines()
            .any(|line| line.contains("ERROR") && line.contains(lun) && line.contains("offline"))
    };
    ensure!(is_blamed("\"bad\""), "the log does not say so");
    ensure!(!is_blamed("\"good\""), "the other LUN is blamed");
    ensure!(
        sg.execute(&write_10(1), &[0; 512], 0).is_err(),
        "the LUN is not offline"
    );
    stop.send(())?;
    let count = innocent
        .join()
        .ok()
        .context("the innocent's thread panicked")??;
    println!("the other LUN served {count} commands meanwhile");

    // It stays so after another crash, and is tried again after a clean restart.
    daemon.kill()?;
    let daemon = start()?;
    ensure!(
        sg.execute(&write_10(1), &[0; 512], 0).is_err(),
        "a crash brought the LUN back"
    );
    daemon.stop()?;
    let daemon = start()?;
    sg.execute(&write_10(1), &[9; 512], 0)?;
    bad.write(MIB, 3)?;
    drop(sg);
    bad.delete()?;
    good.delete()?;
    daemon.stop()
}
