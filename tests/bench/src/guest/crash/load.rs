//! What goes on while a daemon ends and comes back: fio, and raw SCSI commands, all checked.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;
use tcmu_guest_tests::sg::{Ended, GOOD, Sg};

use crate::crash::{Fio, Raw};

/// What raw reads and writes transfer, in bytes.
const PIECE: usize = 8192;
const BLOCK: usize = 512;
/// How many pieces a thread has for itself.
const PIECES: usize = 256;
/// The threads that read and write.
const READERS: usize = 2;
/// The threads that count; the counter is the block behind all pieces.
const COUNTERS: usize = 2;
const COUNTER: u32 = (READERS * PIECES * PIECE / BLOCK) as u32;
const MISCOMPARE: u8 = 0xe;

/// What all threads share.
#[derive(Debug, Default)]
struct Shared {
    stop: AtomicBool,
    commands: AtomicU64,
    /// The longest that a command took since that was asked last, in microseconds.
    longest: AtomicU64,
    raw: Mutex<Raw>,
    fio: Mutex<Fio>,
}

impl Shared {
    fn raw(&self) -> MutexGuard<'_, Raw> {
        self.raw.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Executes a raw command; `None` if it failed, which is counted.
    fn execute(&self, sg: &mut Sg, cdb: &[u8], data: &[u8], len_in: usize) -> Option<Ended> {
        let begun = Instant::now();
        let ended = sg.attempt(cdb, data, len_in);
        let took = begun.elapsed().as_micros() as u64;
        self.longest.fetch_max(took, Ordering::Relaxed);
        self.commands.fetch_add(1, Ordering::Relaxed);
        let failure = match ended {
            Ok(ended) if ended.status == GOOD || ended.sense_key() == MISCOMPARE => {
                return Some(ended);
            }
            Ok(ended) => match ended.status {
                0x08 => "BUSY".to_owned(),
                0x28 => "TASK SET FULL".to_owned(),
                0x40 => "TASK ABORTED".to_owned(),
                0x02 => format!("CHECK CONDITION, sense key {:#x}", ended.sense_key()),
                other => format!("status {other:#04x}"),
            },
            Err(_) => "no status".to_owned(),
        };
        *self.raw().failed.entry(failure).or_default() += 1;
        // What fails at once must not fail thousands of times.
        thread::sleep(Duration::from_millis(5));
        None
    }
}

/// A load that goes on until it is told to stop.
#[derive(Debug)]
pub(super) struct Load {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<Result<()>>>,
    raw_disk: PathBuf,
    counted_before: u64,
}

impl Load {
    /// fio on one disk, raw commands on the other.
    ///
    /// # Errors
    /// A disk that cannot be used.
    pub(super) fn start(fio_disk: &Path, raw_disk: &Path) -> Result<Self> {
        let shared = Arc::new(Shared::default());
        let mut workers = Vec::new();
        let (disk, share) = (fio_disk.to_owned(), Arc::clone(&shared));
        workers.push(thread::spawn(move || {
            while !share.stop.load(Ordering::Relaxed) {
                let seen = fio(&disk)?;
                let mut sum = share.fio.lock().unwrap_or_else(PoisonError::into_inner);
                sum.requests += seen.requests;
                sum.errors += seen.errors;
            }
            Ok(())
        }));
        for reader in 0..READERS {
            let (mut sg, share) = (Sg::of(raw_disk)?, Arc::clone(&shared));
            workers.push(thread::spawn(move || {
                read_and_write(&mut sg, &share, reader);
                Ok(())
            }));
        }
        let counted_before = counter(&mut Sg::of(raw_disk)?)?;
        for _ in 0..COUNTERS {
            let (mut sg, share) = (Sg::of(raw_disk)?, Arc::clone(&shared));
            workers.push(thread::spawn(move || {
                count(&mut sg, &share);
                Ok(())
            }));
        }
        Ok(Self {
            shared,
            workers,
            raw_disk: raw_disk.to_owned(),
            counted_before,
        })
    }

    /// Waits until so many raw commands have ended.
    ///
    /// # Errors
    /// They do not within `limit`, or somebody has given up.
    pub(super) fn go_on(&self, commands: u64, limit: Duration) -> Result<()> {
        let done = || self.shared.commands.load(Ordering::Relaxed);
        let (goal, end) = (done() + commands, Instant::now() + limit);
        while done() < goal {
            ensure!(
                !self.workers.iter().any(JoinHandle::is_finished),
                "a part of the load has ended"
            );
            if Instant::now() >= end {
                bail!(
                    "commands do not end any more: none in {} s",
                    limit.as_secs()
                );
            }
            thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }

    /// The longest that a raw command took since the last call.
    pub(super) fn take_longest(&self) -> Duration {
        Duration::from_micros(self.shared.longest.swap(0, Ordering::Relaxed))
    }

    /// Ends it; returns what became of all commands.
    ///
    /// # Errors
    /// A part of it could not go on.
    pub(super) fn finish(self) -> Result<(Raw, Fio)> {
        self.shared.stop.store(true, Ordering::Relaxed);
        for worker in self.workers {
            worker.join().ok().context("a thread panicked")??;
        }
        let mut raw = self.shared.raw().clone();
        raw.commands = self.shared.commands.load(Ordering::Relaxed);
        raw.counted = counter(&mut Sg::of(&self.raw_disk)?)? - self.counted_before;
        let fio = self.shared.fio.lock();
        let fio = *fio.unwrap_or_else(PoisonError::into_inner);
        Ok((raw, fio))
    }
}

/// READ(10) or WRITE(10).
fn cdb(opcode: u8, lba: u32, blocks: u8) -> [u8; 10] {
    let mut cdb = [opcode, 0, 0, 0, 0, 0, 0, 0, blocks, 0];
    cdb[2..6].copy_from_slice(&lba.to_be_bytes());
    cdb
}

fn read_and_write(sg: &mut Sg, shared: &Shared, reader: usize) {
    // What each piece was written with last; unknown at first, and where a write failed.
    let mut written: Vec<Option<u8>> = vec![None; PIECES];
    let mut random = reader as u64 + 1;
    while !shared.stop.load(Ordering::Relaxed) {
        random = random
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(99);
        let bits = random >> 33;
        let piece = bits as usize % PIECES;
        let lba = ((reader * PIECES + piece) * PIECE / BLOCK) as u32;
        let blocks = (PIECE / BLOCK) as u8;
        if (bits / 1024).is_multiple_of(2) {
            let byte = (bits / 2048) as u8;
            let ended = shared.execute(sg, &cdb(0x2a, lba, blocks), &[byte; PIECE], 0);
            written[piece] = ended.map(|_| byte);
        } else if let Some(read) = shared.execute(sg, &cdb(0x28, lba, blocks), &[], PIECE)
            && let Some(byte) = written[piece]
            && read.data.iter().any(|&other| other != byte)
        {
            shared.raw().wrong += 1;
            written[piece] = None;
        }
    }
}

fn number(block: &[u8]) -> u64 {
    block
        .first_chunk()
        .map_or(0, |bytes| u64::from_be_bytes(*bytes))
}

fn counter(sg: &mut Sg) -> Result<u64> {
    let block = sg.execute(&cdb(0x28, COUNTER, 1), &[], BLOCK);
    Ok(number(&block.context("reading the counter")?))
}

fn count(sg: &mut Sg, shared: &Shared) {
    let mut compare_and_write = [0; 16];
    (compare_and_write[0], compare_and_write[13]) = (0x89, 1);
    compare_and_write[6..10].copy_from_slice(&COUNTER.to_be_bytes());
    while !shared.stop.load(Ordering::Relaxed) {
        let Some(before) = shared.execute(sg, &cdb(0x28, COUNTER, 1), &[], BLOCK) else {
            continue;
        };
        let mut next = [0; BLOCK];
        next[..8].copy_from_slice(&(number(&before.data) + 1).to_be_bytes());
        let data = [&before.data[..], &next].concat();
        if let Some(ended) = shared.execute(sg, &compare_and_write, &data, 0)
            && ended.status == GOOD
        {
            shared.raw().acknowledged += 1;
        }
    }
}

#[derive(Deserialize)]
struct FioOutput {
    jobs: [FioJob; 1],
}

#[derive(Deserialize)]
struct FioJob {
    #[serde(default)]
    total_err: u64,
    read: FioSide,
    write: FioSide,
}

#[derive(Deserialize)]
struct FioSide {
    total_ios: u64,
}

/// Runs fio once over the disk.
fn fio(disk: &Path) -> Result<Fio> {
    let output = Command::new("fio")
        .args([
            "--name=crash",
            &format!("--filename={}", disk.display()),
            "--direct=1",
            "--ioengine=libaio",
            "--iodepth=32",
            "--rw=randwrite",
            "--bsrange=4k-64k",
            // Otherwise overlapping writes may be swapped, and what is read is as fio does not expect.
            "--serialize_overlap=1",
            "--size=16M",
            "--io_size=16M",
            "--verify=crc32c",
            "--do_verify=1",
            "--verify_state_save=0",
            "--continue_on_error=all",
            "--output-format=json",
        ])
        .output()
        .context("cannot start fio")?;
    parse(&String::from_utf8_lossy(&output.stdout))
}

/// What fio's JSON says; warnings may stand before it.
fn parse(text: &str) -> Result<Fio> {
    let start = text.find('{').context("fio wrote no JSON")?;
    let FioOutput { jobs: [job] } =
        serde_json::from_str(&text[start..]).context("fio's JSON is not understood")?;
    Ok(Fio {
        requests: job.read.total_ios + job.write.total_ios,
        errors: job.total_err,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fios_errors_are_counted() {
        let text = r#"fio: pid=9, err=5
            {"jobs": [{"error": 5, "total_err": 3, "first_error": 5,
              "read": {"total_ios": 7}, "write": {"total_ios": 8}}]}"#;
        let seen = parse(text).expect("fio's JSON");
        assert_eq!((seen.requests, seen.errors), (15, 3));
        let none = text.replace("\"total_err\": 3, ", "");
        assert_eq!(parse(&none).expect("fio's JSON").errors, 0);
        assert!(parse("fio: no such option").is_err());
    }
}
