//! Power cuts at every point of a workload: unflushed writes may be lost, torn and out of order.
//! After each the image has no errors (leaks aside), and shows what was flushed.
//!
//! The death of the daemon at every point: nothing is lost that the kernel was given, and the image
//! shows every request that was answered.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use tcmu_handler::testing::{
    FileId, OperationKind, Random, Record, Together, UnorderedEngine, buffer, contents, durable,
    scattered,
};
use tcmu_handler::{Backstore, Extent, WriteFlags};
use tempfile::tempdir;

use super::model::{Allowed, End, SECTOR};
use super::variants::{self, SIZE};
use super::workload::{Workload, close, read_all, run};
use super::{open, qemu};
use crate::QcowImage;
use crate::bitmap;
use crate::check::{Contents, Report, check};
use crate::lock::Claim;
use crate::open::read_header;
use crate::snapshot;
use crate::storage::Storage;

/// What a cut leaves of what was not flushed.
#[derive(Clone, Copy, Debug)]
pub(super) enum Left {
    Nothing,
    Everything,
    SomeWrites,
    SomeSectors,
}

impl Left {
    /// That nothing is lost is what the death of the daemon looks like.
    fn end(self) -> End {
        match self {
            Self::Everything => End::Killed,
            _ => End::Cut,
        }
    }
}

/// The files of an image on a medium.
#[derive(Clone)]
pub(super) struct Medium {
    files: HashMap<FileId, (PathBuf, Vec<u8>)>,
}

impl Medium {
    /// The medium of an image of one file, which is durable as it is.
    pub(super) fn of(image: &QcowImage) -> Self {
        let storage = &image.top.disk.storage;
        let name = PathBuf::from(storage.path.file_name().unwrap());
        let bytes = std::fs::read(&storage.path).unwrap();
        Self {
            files: HashMap::from([(storage.identity, (name, bytes))]),
        }
    }

    fn apply(&mut self, record: &Record, keep: &mut dyn FnMut() -> bool) {
        let (_, medium) = self.files.get_mut(&record.file()).unwrap();
        let (offset, bytes) = match record {
            Record::Write { offset, after, .. } => (*offset, after.clone()),
            Record::Zero { offset, before, .. } => {
                // What lies behind the end of the file is zero already.
                let within = medium.len().saturating_sub(*offset as usize);
                (*offset, vec![0; before.len().min(within)])
            }
            Record::Sync { .. } => return,
        };
        let mut at = offset as usize;
        // Sectors are aligned on the medium, whatever the write.
        let mut rest = bytes.as_slice();
        while !rest.is_empty() {
            let len = (SECTOR - at % SECTOR).min(rest.len());
            let (now, later) = rest.split_at(len);
            if keep() {
                if medium.len() < at + len {
                    medium.resize(at + len, 0);
                }
                medium[at..at + len].copy_from_slice(now);
            }
            at += len;
            rest = later;
        }
    }

    /// What is there after a cut behind `log`.
    pub(super) fn after(&self, log: &[Record], left: Left, random: &mut Random) -> Self {
        let mut medium = self.clone();
        for (record, is_durable) in log.iter().zip(durable(log)) {
            let whole = random.one_in(2);
            medium.apply(record, &mut || match left {
                _ if is_durable => true,
                Left::Nothing => false,
                Left::Everything => true,
                Left::SomeWrites => whole,
                Left::SomeSectors => random.one_in(2),
            });
        }
        medium
    }

    pub(super) fn store(&self, folder: &Path) {
        for (name, bytes) in self.files.values() {
            std::fs::write(folder.join(name), bytes).unwrap();
        }
    }
}

/// Checks an image with the engine's own checker; returns what is wrong.
pub(super) fn errors(path: &Path) -> Vec<String> {
    let report = report(path);
    match report.errors + report.too_low {
        0 => Vec::new(),
        _ => report.words,
    }
}

fn report(path: &Path) -> Report {
    let storage = Storage::open(path, Claim::Read).unwrap();
    let (header, _) = read_header(&storage).unwrap();
    let (snapshots, snapshot_table) = snapshot::read(&storage, &header).unwrap();
    let contents = Contents {
        snapshots,
        snapshot_table,
        bitmaps: bitmap::read(&storage, &header).unwrap(),
    };
    check(&storage, &header, &contents).unwrap()
}

/// Panics if a sector shows what it cannot.
fn compare(shown: &[u8], allowed: &Allowed<'_>, what: &str) {
    for (sector, bytes) in shown.chunks(SECTOR).enumerate() {
        assert!(
            allowed.allows(sector, bytes),
            "{what}: sector {sector} is neither as it was nor as it was to be"
        );
    }
}

fn cut(name: &str, requests: usize, cuts: usize) {
    let (folder, path) = variants::make(name);
    let before = qemu::contents(&path);
    for depth in [4, 24] {
        let seed = depth as u64 * 31 + requests as u64;
        let mut random = Random::new(seed);
        // Another folder of the same depth: relative names work in both.
        let after = tempdir().unwrap();
        for entry in std::fs::read_dir(folder.path()).unwrap() {
            let entry = entry.unwrap();
            std::fs::copy(entry.path(), after.path().join(entry.file_name())).unwrap();
        }
        let image = open(&path, "", SIZE).unwrap();
        let mut medium = Medium {
            files: HashMap::new(),
        };
        let disk = &image.top.disk;
        for storage in [Some(&disk.storage), disk.data.as_ref()]
            .into_iter()
            .flatten()
        {
            // What opening has written is durable.
            let bytes = std::fs::read(&storage.path).unwrap();
            let name = PathBuf::from(storage.path.file_name().unwrap());
            medium.files.insert(storage.identity, (name, bytes));
        }
        let engine = UnorderedEngine::repeatable(seed);
        engine.remember();
        let mut model = before.clone();
        let workload = Workload {
            seed,
            depth,
            requests,
            longest: 96 << 10,
        };
        let outcome = run(&engine, &image, &mut model, workload);
        assert!(outcome.errors.is_empty(), "{:?}", outcome.errors);
        close(&engine, &image).unwrap();
        drop(image);
        let log = engine.take_log();

        for number in 0..cuts {
            let position = log.len() * number / (cuts - 1);
            let left = match number % 5 {
                0 => Left::Nothing,
                1 => Left::Everything,
                2 => Left::SomeWrites,
                _ => Left::SomeSectors,
            };
            let what = format!(
                "{name}, depth {depth}, cut at {position} of {}, {left:?}",
                log.len()
            );
            medium
                .after(&log[..position], left, &mut random)
                .store(after.path());
            let crashed = after.path().join("a.qcow2");
            let errors = errors(&crashed);
            assert!(errors.is_empty(), "{what}: {errors:?}");
            let image = open(&crashed, ";readonly=on", SIZE).unwrap();
            let shown = read_all(&UnorderedEngine::repeatable(1), &image).unwrap();
            drop(image);
            let allowed = Allowed::new(&outcome.history, left.end(), position, &before);
            compare(&shown, &allowed, &what);
            if number % 16 == 3 {
                qemu::check(&crashed, true);
                // What was cut off can be used on.
                let image = open(&crashed, "", SIZE).unwrap();
                let mut model = shown;
                let engine = UnorderedEngine::repeatable(2);
                let again = Workload {
                    requests: 40,
                    ..workload
                };
                run(&engine, &image, &mut model, again);
                close(&engine, &image).unwrap();
                drop(image);
                qemu::check(&crashed, true);
                assert!(qemu::contents(&crashed) == model, "{what}: after going on");
            }
        }
        // The next depth begins with the same image.
        medium.store(folder.path());
    }
}

#[test]
fn what_is_unmapped_during_a_flush() {
    let folder = tempdir().unwrap();
    let path = folder.path().join("a.qcow2");
    let image = open(&path, ";create=on;cluster_size=4k", SIZE).unwrap();
    let engine = UnorderedEngine::repeatable(8);
    let io = engine.io();
    let data = scattered(&[7; 1 << 20], 4096);
    let flags = WriteFlags::default();
    engine.run(image.write(&io, data.view(), 0, flags)).unwrap();
    engine.run(image.flush(&io)).unwrap();
    let medium = Medium::of(&image);

    engine.remember();
    engine.hold(OperationKind::Sync);
    let mut flush = Together::new(&engine);
    flush.add(image.flush(&io));
    assert!(flush.poll().is_none());
    // The flush that runs does not cover this, and nothing may be counted down for it yet.
    let extent = Extent {
        offset: 0,
        len: 1 << 20,
    };
    engine.run(image.unmap(&io, extent)).unwrap();
    engine.release();
    flush.finish_one().unwrap().unwrap();
    drop(flush);
    drop(image);
    let log = engine.take_log();
    let mut random = Random::new(3);
    for number in 0..40 {
        let left = match number % 2 {
            0 => Left::SomeWrites,
            _ => Left::SomeSectors,
        };
        medium.after(&log, left, &mut random).store(folder.path());
        let errors = errors(&path);
        assert!(errors.is_empty(), "{left:?} {number}: {errors:?}");
    }
}

#[test]
fn old_bytes_of_free_clusters_never_show() {
    let (folder, path) = variants::make("after a snapshot");
    let before = qemu::contents(&path);
    let mut bytes = std::fs::read(&path).unwrap();
    for (cluster, count) in bytes.chunks_mut(4096).zip(report(&path).counts) {
        if count == 0 {
            cluster.fill(0xaa);
        }
    }
    std::fs::write(&path, &bytes).unwrap();
    let image = open(&path, "", SIZE).unwrap();
    let medium = Medium::of(&image);
    let engine = UnorderedEngine::repeatable(8);
    let io = engine.io();
    engine.remember();
    // One sector each, in clusters that have none yet.
    let sectors: Vec<u64> = (0..16).map(|number| 3 << 20 | number << 14).collect();
    let data = scattered(&[9; SECTOR], SECTOR);
    for offset in &sectors {
        let write = image.write(&io, data.view(), *offset, WriteFlags::default());
        engine.run(write).unwrap();
    }
    drop(image);
    let log = engine.take_log();
    let mut random = Random::new(3);
    for number in 0..20 {
        medium
            .after(&log, Left::SomeWrites, &mut random)
            .store(folder.path());
        let errors = errors(&path);
        assert!(errors.is_empty(), "{number}: {errors:?}");
        let shown = read_start(&open(&path, ";readonly=on", SIZE).unwrap(), SIZE);
        for (sector, (is, was)) in shown.chunks(SECTOR).zip(before.chunks(SECTOR)).enumerate() {
            let written = sectors.contains(&((sector * SECTOR) as u64));
            let good = is == was || (written && is == [9; SECTOR]);
            assert!(good, "{number}: sector {sector} shows something else");
        }
    }
}

#[test]
fn while_the_image_is_enlarged() {
    for name in ["clusters of 512", "on a longer raw", "v2 with data"] {
        let (folder, path) = variants::make(name);
        let before = qemu::contents(&path);
        let image = open(&path, "", SIZE).unwrap();
        let medium = Medium::of(&image);
        let engine = UnorderedEngine::repeatable(8);
        let io = engine.io();
        engine.remember();
        engine.run(image.resize(&io, 300 << 20)).unwrap();
        drop(image);
        let log = engine.take_log();
        let mut random = Random::new(3);
        for position in 0..=log.len() {
            for left in [Left::Nothing, Left::SomeWrites, Left::SomeSectors] {
                let what = format!("{name}: {position} of {}, {left:?}", log.len());
                medium
                    .after(&log[..position], left, &mut random)
                    .store(folder.path());
                let errors = errors(&path);
                assert!(errors.is_empty(), "{what}: {errors:?}");
                let image = open(&path, ";readonly=on", SIZE).unwrap();
                let size = image.capabilities().size;
                assert!(size == SIZE || size == 300 << 20, "{what}: {size}");
                assert!(position < log.len() || size == 300 << 20, "{what}: {size}");
                let shown = read_start(&image, SIZE + (4 << 20));
                let (old, new) = shown.split_at(SIZE as usize);
                assert!(old == before, "{what}: the old part has changed");
                assert!(new.iter().all(|byte| *byte == 0), "{what}: the new part");
            }
        }
    }
}

/// The first bytes of a disk, at most `len`.
pub(super) fn read_start(image: &QcowImage, len: u64) -> Vec<u8> {
    let engine = UnorderedEngine::repeatable(1);
    let io = engine.io();
    let target = buffer(image.capabilities().size.min(len) as usize);
    engine.run(image.read(&io, target.view(), 0)).unwrap();
    contents(&target)
}

macro_rules! cuts {
    ($($test:ident: $name:literal;)+) => {
        $(#[test]
        fn $test() {
            cut($name, 100, 120);
        })+
    };
}

cuts! {
    plain: "v3";
    with_data: "v3 with data";
    version_2: "v2 with data";
    tiny_clusters: "clusters of 512";
    huge_clusters: "clusters of 2M";
    narrow_refcounts: "refcounts of 1 bit";
    wide_refcounts: "refcounts of 64 bits";
    subclusters: "subclusters of 512";
    subclusters_on_raw: "on raw, subclusters";
    compressed: "compressed, zlib";
    on_raw: "on raw";
    on_raw_version_2: "on raw, v2";
    on_a_chain: "on a chain";
    snapshots: "with two snapshots, small clusters";
    free_clusters: "after a snapshot";
    snapshot_of_subclusters: "with a snapshot, subclusters, on raw";
    preallocated: "preallocated tables";
    external_data: "external data, on raw";
    external_data_raw: "external data, raw";
}
