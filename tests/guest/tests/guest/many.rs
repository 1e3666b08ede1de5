//! Many LUNs at once.

use std::fs;
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use tcmu_guest_tests::daemon::Daemon;
use tcmu_guest_tests::lun::{Disk, leftovers, names};
use tcmu_guest_tests::{TestResult, guest_test, needs_several_cpus};

/// How long idle LUNs are watched at a time, and how often at the most until they are found idle twice
/// in a row.
const WATCHED: Duration = Duration::from_secs(3);
const PERIODS: u32 = 20;
const IDLE_LUNS: usize = 64;
const LUNS: usize = 200;
const CREATORS: usize = 16;

guest_test!(
    two_hundred_luns_come_and_go_in_parallel,
    limit = Duration::from_secs(600)
);
fn two_hundred_luns_come_and_go_in_parallel() -> TestResult {
    needs_several_cpus("setting up so many LUNs")?;
    let daemon = Daemon::start()?;
    let creators = (0..CREATORS).map(|creator| {
        thread::spawn(move || -> anyhow::Result<Vec<Disk>> {
            (creator..LUNS)
                .step_by(CREATORS)
                .map(|n| Disk::create(&format!("lun{n}"), "ram", "many", &["--size", "4M"]))
                .collect()
        })
    });
    let mut shares = Vec::new();
    for creator in creators.collect::<Vec<_>>() {
        shares.push(creator.join().ok().context("a creator panicked")??);
    }
    let disks: Vec<&Disk> = shares.iter().flatten().collect();
    ensure!(disks.len() == LUNS);
    ensure!(names()?.len() == LUNS, "tcmuctl does not list them all");
    for disk in &disks {
        ensure!(disk.size()? == 4 << 20, "{} has another size", disk.name());
    }
    let last = disks.last().context("no disk")?;
    last.write(0, 0xee)?;
    ensure!(
        last.holds(0, 0xee)? && disks[0].holds(0, 0)?,
        "LUNs are mixed up"
    );
    Disk::delete_all(shares.into_iter().flatten().collect())?;
    ensure!(
        leftovers()? == [""; 0],
        "left in configfs: {:?}",
        leftovers()?
    );
    daemon.stop()
}

guest_test!(idle_luns_cost_no_cpu, limit = Duration::from_secs(600));
fn idle_luns_cost_no_cpu() -> TestResult {
    needs_several_cpus("setting up so many LUNs")?;
    let daemon = Daemon::start()?;
    let alone = resident_kib(daemon.pid())?;
    let disks = (0..IDLE_LUNS)
        .map(|n| Disk::create(&format!("idle{n}"), "ram", "idle", &["--size", "4M"]))
        .collect::<anyhow::Result<Vec<_>>>()?;
    // What attaching them has started ends some time; then nothing happens any more.
    let mut before = switches(daemon.pid())?;
    let (mut quiet, mut woken) = (0, 0);
    for _ in 0..PERIODS {
        thread::sleep(WATCHED);
        let now = switches(daemon.pid())?;
        woken = now.abs_diff(before);
        quiet = if woken == 0 { quiet + 1 } else { 0 };
        before = now;
        if quiet == 2 {
            break;
        }
    }
    ensure!(
        quiet == 2,
        "the daemon still wakes up, {woken} times in {WATCHED:?}, although all LUNs are idle"
    );
    let with_luns = resident_kib(daemon.pid())?;
    println!(
        "{} KiB of memory for each of {IDLE_LUNS} idle LUNs, {alone} KiB without any",
        with_luns.saturating_sub(alone) / IDLE_LUNS as u64
    );
    for disk in disks {
        disk.delete()?;
    }
    daemon.stop()
}

/// How often the threads of a process have been given a CPU.
fn switches(pid: u32) -> anyhow::Result<u64> {
    let mut sum = 0;
    for task in fs::read_dir(format!("/proc/{pid}/task"))? {
        // A thread may end while we look.
        let Ok(status) = fs::read_to_string(task?.path().join("status")) else {
            continue;
        };
        sum += number(&status, "voluntary_ctxt_switches:")?;
        sum += number(&status, "nonvoluntary_ctxt_switches:")?;
    }
    Ok(sum)
}

/// The memory of a process that is its own, without the mapped rings and data areas.
fn resident_kib(pid: u32) -> anyhow::Result<u64> {
    number(
        &fs::read_to_string(format!("/proc/{pid}/status"))?,
        "RssAnon:",
    )
}

/// The number behind a label at the start of a line.
fn number(text: &str, label: &str) -> anyhow::Result<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(label));
    let word = line.and_then(|rest| rest.split_whitespace().next());
    Ok(word
        .with_context(|| format!("there is no {label}"))?
        .parse()?)
}
