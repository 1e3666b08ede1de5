//! A daemon that is killed, restarted or replaced costs its initiators nothing but a pause.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use tcmu_guest_tests::daemon::{Daemon, RUNNER, RUNNER_WITH_KILL_POINTS};
use tcmu_guest_tests::lun::{Disk, MIB};
use tcmu_guest_tests::sg::Sg;
use tcmu_guest_tests::{TestResult, guest_test, needs_several_cpus, sh};

/// How often the daemon is killed in one test; 100 where it is asked for.
pub(super) fn kills() -> u32 {
    let asked = std::env::var("TCMU_KILLS").ok();
    asked.and_then(|text| text.parse().ok()).unwrap_or(12)
}

const SIZE: u64 = 32 * MIB;
const BLOCK: u64 = 512;
/// What one thread of raw commands has for itself.
const SHARE: u64 = 2 * MIB;
const THREADS: u64 = 3;

/// Load on LUNs, with everything that comes back checked.
struct Load {
    stop: Arc<AtomicBool>,
    /// The longest that a raw command took, in microseconds.
    longest: Arc<AtomicU64>,
    commands: Arc<AtomicU64>,
    workers: Vec<JoinHandle<TestResult>>,
}

impl Load {
    /// fio with verify on the first two disks, raw commands on the others.
    fn start(disks: &[Disk]) -> anyhow::Result<Self> {
        let mut load = Self {
            stop: Arc::default(),
            longest: Arc::default(),
            commands: Arc::default(),
            workers: Vec::new(),
        };
        let (with_fio, raw) = disks.split_at(2);
        for (number, disk) in with_fio.iter().enumerate() {
            let (stop, path) = (Arc::clone(&load.stop), disk.path().to_owned());
            load.workers.push(thread::spawn(move || {
                for round in 0.. {
                    if stop.load(Ordering::Relaxed) {
                        break;
                    }
                    fio(&path, number as u64 * 1000 + round)?;
                }
                Ok(())
            }));
        }
        for disk in raw {
            for share in 0..THREADS {
                let mut sg = Sg::open(disk)?;
                let stop = Arc::clone(&load.stop);
                let (longest, commands) = (Arc::clone(&load.longest), Arc::clone(&load.commands));
                load.workers.push(thread::spawn(move || {
                    let mut raw = Raw {
                        share,
                        random: share + 1,
                        written: vec![0; (SHARE / PIECE) as usize],
                    };
                    while !stop.load(Ordering::Relaxed) {
                        let begun = Instant::now();
                        raw.command(&mut sg)?;
                        longest.fetch_max(begun.elapsed().as_micros() as u64, Ordering::Relaxed);
                        commands.fetch_add(1, Ordering::Relaxed);
                    }
                    Ok(())
                }));
            }
        }
        Ok(load)
    }

    /// How many raw commands have ended.
    fn commands(&self) -> u64 {
        self.commands.load(Ordering::Relaxed)
    }

    /// Forgets the longest command; returns it.
    fn take_longest(&self) -> Duration {
        Duration::from_micros(self.longest.swap(0, Ordering::Relaxed))
    }

    fn check(&self) -> TestResult {
        ensure!(
            !self.workers.iter().any(JoinHandle::is_finished),
            "a worker has given up"
        );
        Ok(())
    }

    fn finish(self) -> TestResult {
        self.stop.store(true, Ordering::Relaxed);
        for worker in self.workers {
            worker.join().ok().context("a worker panicked")??;
        }
        Ok(())
    }
}

fn fio(path: &str, seed: u64) -> TestResult {
    sh::run(&[
        "fio",
        "--name=verify",
        &format!("--filename={path}"),
        &format!("--randseed={seed}"),
        "--direct=1",
        "--ioengine=libaio",
        "--iodepth=32",
        "--rw=randwrite",
        "--bsrange=4k-64k",
        // See `random_io_verifies` for why.
        "--serialize_overlap=1",
        "--size=16M",
        "--io_size=16M",
        "--verify=crc32c",
        "--do_verify=1",
        "--verify_fatal=1",
        "--verify_state_save=0",
    ])
    .map(drop)
}

/// What a raw command transfers, in bytes.
const PIECE: u64 = 8192;

/// One thread's raw commands.
struct Raw {
    share: u64,
    random: u64,
    /// What each piece of the share was written with last.
    written: Vec<u8>,
}

impl Raw {
    fn command(&mut self, sg: &mut Sg) -> TestResult {
        self.random = self
            .random
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(99);
        let random = self.random >> 33;
        let piece = random as usize % self.written.len();
        let lba = ((self.share * SHARE + piece as u64 * PIECE) / BLOCK) as u32;
        let mut cdb = [0; 10];
        cdb[2..6].copy_from_slice(&lba.to_be_bytes());
        cdb[8] = (PIECE / BLOCK) as u8;
        match random / 1024 % 8 {
            0 => {
                sg.execute(&[0; 6], &[], 0)?;
            }
            1 => {
                cdb[0] = 0x35;
                sg.execute(&cdb, &[], 0)?;
            }
            2..5 => {
                cdb[0] = 0x2a;
                let byte = (random / 7) as u8;
                sg.execute(&cdb, &vec![byte; PIECE as usize], 0)?;
                self.written[piece] = byte;
            }
            _ => {
                cdb[0] = 0x28;
                let data = sg.execute(&cdb, &[], PIECE as usize)?;
                let byte = self.written[piece];
                ensure!(
                    data.len() == PIECE as usize && data.iter().all(|other| *other == byte),
                    "LBA {lba} holds {:#x}, not {byte:#x}",
                    data[0]
                );
            }
        }
        Ok(())
    }
}

fn disks() -> anyhow::Result<Vec<Disk>> {
    (0..4)
        .map(|number| Disk::of_image(&format!("pause{number}"), SIZE))
        .collect()
}

/// Has a load go on while the daemon ends in some way again and again; `end` ends it, and gets the
/// number of the time.
fn costs_nothing_but_a_pause(
    times: u32,
    start: impl Fn(u32) -> anyhow::Result<Daemon>,
    mut end: impl FnMut(u32, Daemon, &Load) -> TestResult,
) -> TestResult {
    let mut daemon = Daemon::start()?;
    let disks = disks()?;
    let load = Load::start(&disks)?;
    let mut pauses = Vec::new();
    for time in 0..times {
        let ended = Instant::now();
        end(time, daemon, &load)?;
        let down = Instant::now();
        daemon = start(time)?;
        let started = down.elapsed();
        // All have had a turn before the next end, unless that is what the daemon is to be killed in.
        let before = load.commands();
        while load.commands() < before + 20 && daemon.is_running()? {
            load.check()?;
            thread::sleep(Duration::from_millis(2));
        }
        let pause = load.take_longest();
        pauses.push(pause);
        println!(
            "{time}: ended within {:?}, ready again after {started:?}, longest command {pause:?}",
            down.duration_since(ended),
        );
        let log = daemon.log();
        ensure!(!log.contains("resetting"), "a ring was reset:\n{log}");
        ensure!(!log.contains("offline"), "a LUN was taken offline:\n{log}");
    }
    load.finish()?;
    pauses.sort();
    let share = |percent: usize| pauses[(pauses.len() - 1) * percent / 100];
    println!(
        "of {times} pauses: median {:?}, 90 % within {:?}, 99 % within {:?}, the longest {:?}",
        share(50),
        share(90),
        share(99),
        share(100)
    );
    for disk in disks {
        disk.delete()?;
    }
    daemon.stop()
}

/// Moments that differ from run to run.
pub(super) fn random_moment(time: u32) -> Duration {
    let clock = std::time::UNIX_EPOCH
        .elapsed()
        .unwrap_or_default()
        .subsec_nanos();
    Duration::from_micros(u64::from(clock.rotate_left(time % 7) / 16 % 120_000))
}

guest_test!(killed_at_random_moments, limit = Duration::from_secs(1500));
fn killed_at_random_moments() -> TestResult {
    needs_several_cpus("so much load and so many daemons")?;
    costs_nothing_but_a_pause(
        kills(),
        |_| Daemon::start(),
        |time, daemon, _| {
            thread::sleep(random_moment(time));
            daemon.kill()
        },
    )
}

guest_test!(killed_at_chosen_points, limit = Duration::from_secs(1500));
fn killed_at_chosen_points() -> TestResult {
    needs_several_cpus("so much load and so many daemons")?;
    const POINTS: [&str; 3] = ["fetched", "publishing", "published"];
    let daemon = |time: u32| {
        let point = POINTS[time as usize % 3];
        let passes = 100 + 37 * (time / 3);
        if time + 1 == kills() {
            return Daemon::start();
        }
        Daemon::start_doomed(
            RUNNER_WITH_KILL_POINTS,
            &[],
            &[("TCMU_KILL_AT", &format!("{point}:{passes}"))],
        )
    };
    costs_nothing_but_a_pause(kills(), daemon, |time, daemon, load| {
        if time == 0 {
            // The first one has no kill point.
            return daemon.kill();
        }
        daemon.wait_for_kill().inspect_err(|_| {
            println!("{} raw commands had ended", load.commands());
        })
    })
}

guest_test!(
    restarted_and_replaced_under_load,
    limit = Duration::from_secs(600)
);
fn restarted_and_replaced_under_load() -> TestResult {
    needs_several_cpus("so much load and so many daemons")?;
    costs_nothing_but_a_pause(
        6,
        // Another program, as after an upgrade.
        |time| {
            Daemon::start_with(
                [RUNNER, RUNNER_WITH_KILL_POINTS][time as usize % 2],
                &[],
                &[],
            )
        },
        |time, daemon, _| {
            thread::sleep(random_moment(time));
            daemon.stop()
        },
    )
}

guest_test!(sg_dd_sees_no_kill, limit = Duration::from_secs(300));
fn sg_dd_sees_no_kill() -> TestResult {
    let mut daemon = Daemon::start()?;
    let disk = Disk::of_image("sgdd", SIZE)?;
    let file = "/run/sg-dd-source";
    sh::run(&[
        "dd",
        "if=/dev/urandom",
        &format!("of={file}"),
        "bs=1M",
        "count=24",
    ])?;
    for (from, to) in [(file, disk.path()), (disk.path(), "/run/sg-dd-back")] {
        let (input, output) = (format!("if={from}"), format!("of={to}"));
        // Direct SG_IO, no retries of its own.
        let words: Vec<String> = [
            "sg_dd",
            &input,
            &output,
            "bs=512",
            "bpt=16",
            "blk_sgio=1",
            "retries=0",
        ]
        .map(str::to_owned)
        .to_vec();
        let copy = thread::spawn(move || sh::run(&words));
        for time in 0..4 {
            thread::sleep(random_moment(time));
            daemon.kill()?;
            daemon = Daemon::start()?;
        }
        copy.join().ok().context("sg_dd's thread panicked")??;
    }
    // What was copied back is the whole disk.
    sh::run(&["cmp", "--bytes=24M", file, "/run/sg-dd-back"])?;
    disk.delete()?;
    daemon.stop()
}
