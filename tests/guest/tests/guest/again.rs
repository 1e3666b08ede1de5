//! Commands that cannot simply run again, when the daemon dies under them.

use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use tcmu_guest_tests::daemon::{Daemon, RUNNER_WITH_KILL_POINTS};
use tcmu_guest_tests::lun::{Disk, MIB};
use tcmu_guest_tests::sg::{GOOD, Sg};
use tcmu_guest_tests::{TestResult, guest_test, needs_several_cpus, sh};

use super::copy::{SecondLun, fill};
use super::recovery::{kills, random_moment};

const BLOCK: usize = 512;
/// The counter fills so many blocks, from the first on.
const BLOCKS: u8 = 8;
const THREADS: usize = 3;
/// The sense key MISCOMPARE.
const MISCOMPARE: u8 = 0xe;

/// The counter's value; an error if not all of its blocks have it.
fn value(data: &[u8]) -> anyhow::Result<u64> {
    let word = |block: &[u8]| block.first_chunk().map(|bytes| u64::from_be_bytes(*bytes));
    let mut values = data.chunks(BLOCK).map(word);
    let first = values.next().flatten().context("no block")?;
    ensure!(
        values.all(|value| value == Some(first)),
        "a COMPARE AND WRITE was done by half"
    );
    Ok(first)
}

fn blocks_of(value: u64) -> Vec<u8> {
    let mut block = [0; BLOCK];
    block[..8].copy_from_slice(&value.to_be_bytes());
    block.repeat(BLOCKS.into())
}

fn read(sg: &mut Sg) -> anyhow::Result<u64> {
    let cdb = [0x28, 0, 0, 0, 0, 0, 0, 0, BLOCKS, 0];
    value(&sg.execute(&cdb, &[], usize::from(BLOCKS) * BLOCK)?)
}

/// COMPARE AND WRITE of the counter; returns whether it was still what was read.
fn increment(sg: &mut Sg, from: u64) -> anyhow::Result<bool> {
    let mut cdb = [0; 16];
    (cdb[0], cdb[13]) = (0x89, BLOCKS);
    let data = [blocks_of(from), blocks_of(from + 1)].concat();
    let ended = sg.attempt(&cdb, &data, 0)?;
    if ended.status == GOOD {
        return Ok(true);
    }
    ensure!(
        ended.sense_key() == MISCOMPARE,
        "status {:#04x}, sense {:02x?}",
        ended.status,
        ended.sense
    );
    Ok(false)
}

guest_test!(
    a_counter_counts_every_success_once,
    limit = Duration::from_secs(900)
);
fn a_counter_counts_every_success_once() -> TestResult {
    needs_several_cpus("so many daemons under load")?;
    /// Behind a note, the blocks are either about to be written, or have been.
    const POINTS: [&str; 4] = ["noted", "publishing", "published", "fetched"];
    let mut daemon = Daemon::start()?;
    let disk = Disk::of_image("counter", 16 * MIB)?;
    let stop = Arc::new(AtomicBool::new(false));
    let attempts = Arc::new(AtomicU64::new(0));
    let workers: Vec<_> = (0..THREADS)
        .map(|_| {
            let mut sg = Sg::open(&disk)?;
            let (stop, attempts) = (Arc::clone(&stop), Arc::clone(&attempts));
            Ok(thread::spawn(move || -> anyhow::Result<u64> {
                let mut successes = 0;
                while !stop.load(Ordering::Relaxed) {
                    let from = read(&mut sg)?;
                    successes += u64::from(increment(&mut sg, from)?);
                    attempts.fetch_add(1, Ordering::Relaxed);
                }
                Ok(successes)
            }))
        })
        .collect::<anyhow::Result<_>>()?;
    // Whether the daemon is killed at a point of its own.
    let mut doomed = false;
    for time in 0..kills() {
        if doomed {
            daemon.wait_for_kill()?;
        } else {
            thread::sleep(random_moment(time));
            daemon.kill()?;
        }
        let point = POINTS.get(time as usize % (POINTS.len() + 1));
        doomed = point.is_some() && time + 1 != kills();
        daemon = match point {
            Some(point) if doomed => {
                let place = format!("{point}:{}", 20 + 7 * time);
                let vars = [("TCMU_KILL_AT", place.as_str())];
                Daemon::start_doomed(RUNNER_WITH_KILL_POINTS, &[], &vars)?
            }
            _ => Daemon::start()?,
        };
        let before = attempts.load(Ordering::Relaxed);
        while attempts.load(Ordering::Relaxed) < before + 5 && daemon.is_running()? {
            ensure!(
                !workers.iter().any(|worker| worker.is_finished()),
                "a worker has given up"
            );
            thread::sleep(Duration::from_millis(2));
        }
        let log = daemon.log();
        ensure!(!log.contains("resetting"), "a ring was reset:\n{log}");
        ensure!(!log.contains("offline"), "a LUN was taken offline:\n{log}");
    }
    stop.store(true, Ordering::Relaxed);
    let mut successes = 0;
    for worker in workers {
        successes += worker.join().ok().context("a worker panicked")??;
    }
    let counted = read(&mut Sg::open(&disk)?)?;
    println!(
        "{} attempts, {successes} successes, counted to {counted}",
        attempts.load(Ordering::Relaxed)
    );
    ensure!(
        counted == successes,
        "the counter stands at {counted}, and {successes} increments were said to have succeeded"
    );
    disk.delete()?;
    daemon.stop()
}

/// EXTENDED COPY (LID1) of so many blocks from the beginning of one LUN to that of another, known by
/// their NAA designators (SPC-4, 6.4).
fn copy_list(from: &[u8], to: &[u8], blocks: u16) -> Vec<u8> {
    let cscd = |naa: &[u8]| {
        let mut bytes = vec![0xe4, 0, 0, 0, 1, 3, 0, naa.len() as u8];
        bytes.extend(naa);
        bytes.resize(29, 0);
        // The block length.
        bytes.extend([0, 2, 0]);
        bytes
    };
    let mut segment = [0; 28];
    (segment[0], segment[3], segment[7]) = (2, 0x18, 1);
    segment[10..12].copy_from_slice(&blocks.to_be_bytes());
    let mut list = vec![0; 16];
    (list[0], list[3], list[11]) = (7, 2 * 32, segment.len() as u8);
    [list, cscd(from), cscd(to), segment.to_vec()].concat()
}

/// The LUN's NAA designator.
fn naa(sg: &mut Sg) -> anyhow::Result<Vec<u8>> {
    let page = sg.execute(&[0x12, 1, 0x83, 0, 255, 0], &[], 255)?;
    ensure!(
        page[4..8] == [1, 3, 0, 16],
        "no NAA designator: {page:02x?}"
    );
    Ok(page[8..24].to_vec())
}

guest_test!(a_copy_waits_for_a_lun_that_is_not_there_yet);
fn a_copy_waits_for_a_lun_that_is_not_there_yet() -> TestResult {
    const LEN: u64 = 8 * MIB;
    let daemon = Daemon::start()?;
    let first = Disk::of_image("first", LEN)?;
    let second = Disk::of_image("second", LEN)?;
    let lun = SecondLun::add(&first, &second)?;
    fill("/run/first.img", LEN)?;
    let mut sg = Sg::open(&first)?;
    let list = copy_list(
        &naa(&mut sg)?,
        &naa(&mut Sg::open(&second)?)?,
        (LEN / BLOCK as u64) as u16,
    );
    // The target core tells the news of the second LUN first.
    while sg.attempt(&[0; 6], &[], 0)?.status != GOOD {}
    daemon.kill()?;
    fs::rename("/run/second.img", "/run/second.away")?;
    let mut cdb = [0; 16];
    cdb[0] = 0x83;
    cdb[10..14].copy_from_slice(&(list.len() as u32).to_be_bytes());
    let copy = thread::spawn(move || sg.execute(&cdb, &list, 0));
    while first.in_flight()? == 0 {
        thread::sleep(Duration::from_millis(2));
    }
    // The first daemon gets the command, the second finds it in flight.
    for _ in 0..2 {
        let daemon = Daemon::start()?;
        daemon.await_log(0, "cannot be opened")?;
        daemon.await_log(0, "serving")?;
        thread::sleep(Duration::from_millis(200));
        ensure!(!copy.is_finished(), "the copy did not wait");
        daemon.kill()?;
    }
    let daemon = Daemon::start()?;
    daemon.await_log(0, "cannot be opened")?;
    fs::rename("/run/second.away", "/run/second.img")?;
    copy.join().ok().context("the copy's thread panicked")??;
    sh::run(&["cmp", "/run/first.img", "/run/second.img"])?;
    lun.remove()?;
    second.delete()?;
    first.delete()?;
    daemon.stop()
}
