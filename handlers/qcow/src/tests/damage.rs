//! Entries of tables that lead where nothing can lie: what is read there is zero, nothing is written
//! there, and the rest of the image stays as good as it was.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use tcmu_handler::testing::{UnorderedEngine, buffer, contents, scattered};
use tcmu_handler::{Backstore, Error, ErrorKind, Extent, Io, WriteFlags, ZeroFlags};
use tempfile::{TempDir, tempdir};

use super::variants::{self, SIZE};
use super::{open, qemu};
use crate::QcowImage;

/// No file system has files so long, and the format does.
const FAR: u64 = 1 << 54;
const COPIED: u64 = 1 << 63;
const COMPRESSED: u64 = 1 << 62;
const SECTOR: u64 = 512;
/// Clusters are made ready ahead of use.
const GROWTH: u64 = 8 << 20;

/// A closed image.
struct Victim {
    _folder: TempDir,
    path: PathBuf,
}

impl Victim {
    /// One in clusters of 4 KiB, of which the first 16 hold sevens.
    fn new() -> Self {
        let folder = tempdir().unwrap();
        let path = folder.path().join("a.qcow2");
        let served = Served::new(open(&path, ";create=on;cluster_size=4k", SIZE).unwrap());
        served.write(0, 64 << 10, 7).unwrap();
        served.close().unwrap();
        Self {
            _folder: folder,
            path,
        }
    }

    fn of(variant: &str) -> Self {
        let (folder, path) = variants::make(variant);
        Self {
            _folder: folder,
            path,
        }
    }

    fn word(&self, at: u64) -> u64 {
        let mut bytes = [0; 8];
        let file = File::open(&self.path).unwrap();
        file.read_exact_at(&mut bytes, at).unwrap();
        u64::from_be_bytes(bytes)
    }

    fn set(&self, at: u64, word: u64) {
        let file = File::options().write(true).open(&self.path).unwrap();
        file.write_all_at(&word.to_be_bytes(), at).unwrap();
    }

    /// Where the L1 table lies.
    fn l1(&self) -> u64 {
        self.word(40)
    }

    /// Where the refcount table lies.
    fn refcount_table(&self) -> u64 {
        self.word(48)
    }

    /// Where the entry of guest cluster `number` of the first L2 table lies, if entries have `size`
    /// bytes.
    fn l2(&self, number: u64, size: u64) -> u64 {
        (self.word(self.l1()) & 0x00ff_ffff_ffff_fe00) + number * size
    }

    fn len(&self) -> u64 {
        fs::metadata(&self.path).unwrap().len()
    }

    fn serve(&self) -> Served {
        Served::new(open(&self.path, "", SIZE).unwrap())
    }
}

/// An open image.
struct Served {
    image: QcowImage,
    engine: Rc<UnorderedEngine>,
    io: Io,
}

impl Served {
    fn new(image: QcowImage) -> Self {
        let engine = UnorderedEngine::new(1);
        let io = engine.io();
        Self { image, engine, io }
    }

    fn read(&self, offset: u64, len: u64) -> Result<Vec<u8>, Error> {
        let target = buffer(len as usize);
        target.view().fill(0xee);
        let read = self.image.read(&self.io, target.view(), offset);
        self.engine.run(read)?;
        Ok(contents(&target))
    }

    fn write(&self, offset: u64, len: u64, byte: u8) -> Result<(), Error> {
        let source = scattered(&vec![byte; len as usize], 4096);
        let flags = WriteFlags::default();
        let write = self.image.write(&self.io, source.view(), offset, flags);
        self.engine.run(write)
    }

    fn zero(&self, offset: u64, len: u64) -> Result<(), Error> {
        let extent = Extent { offset, len };
        let zero = self
            .image
            .write_zeroes(&self.io, extent, ZeroFlags::default());
        self.engine.run(zero)
    }

    fn unmap(&self, offset: u64, len: u64) -> Result<(), Error> {
        let extent = Extent { offset, len };
        self.engine.run(self.image.unmap(&self.io, extent))
    }

    fn flush(&self) -> Result<(), Error> {
        self.engine.run(self.image.flush(&self.io))
    }

    fn close(&self) -> Result<(), Error> {
        self.engine.run(self.image.close(&self.io))
    }
}

/// It ended with a medium error that says why.
fn assert_refused(result: Result<(), Error>, why: &str) {
    let error = result.expect_err("nothing can be written there");
    let kinds = [ErrorKind::Write, ErrorKind::Read];
    assert!(kinds.contains(&error.kind()), "{error:?}");
    assert!(error.to_string().contains(why), "{error}");
}

#[test]
fn a_cluster_that_is_far_away() {
    let victim = Victim::new();
    victim.set(victim.l2(1, 8), FAR | COPIED);
    let len = victim.len();
    let served = victim.serve();
    assert!(served.read(4096, 4096).unwrap() == [0; 4096]);
    assert_refused(served.write(4096, 512, 1), "behind the end");
    assert_refused(served.write(4096, 4096, 1), "behind the end");
    assert_refused(served.zero(4096 + SECTOR, SECTOR), "behind the end");
    assert_refused(served.unmap(4096 + SECTOR, SECTOR), "behind the end");
    // Also as a part of more.
    assert_refused(served.write(0, 12 << 10, 1), "behind the end");
    served.write(8 << 10, 4096, 2).unwrap();
    assert_eq!(victim.len(), len);
    // Whoever unmaps it has it mended.
    served.unmap(4096, 4096).unwrap();
    served.write(4096, 512, 3).unwrap();
    let mended = served.read(4096, 4096).unwrap();
    assert!(mended[..512] == [3; 512] && mended[512..] == [0; 3584]);
    served.close().unwrap();
    drop(served);
    assert!(victim.len() <= len + GROWTH, "{} bytes", victim.len());
    qemu::check(&victim.path, true);
}

#[test]
fn a_cluster_that_a_power_cut_has_left_behind_the_end() {
    let victim = Victim::new();
    let last = victim.word(victim.l2(15, 8)) & !COPIED;
    let file = File::options().write(true).open(&victim.path).unwrap();
    file.set_len(last).unwrap();
    let served = victim.serve();
    assert!(served.read(60 << 10, 4096).unwrap() == [0; 4096]);
    served.write((60 << 10) + SECTOR, SECTOR, 9).unwrap();
    assert!(victim.len() <= last + 4096);
    // New clusters come behind it.
    served.write(1 << 20, 1 << 20, 5).unwrap();
    let shown = served.read(60 << 10, 4096).unwrap();
    assert!(shown[512..1024] == [9; 512] && shown[1024..] == [0; 3072]);
    served.close().unwrap();
    drop(served);
    qemu::check(&victim.path, false);
}

#[test]
fn a_subcluster_that_is_far_away() {
    let victim = Victim::of("subclusters");
    // The first of its 32 subclusters has data.
    victim.set(victim.l2(1, 16), FAR | COPIED);
    victim.set(victim.l2(1, 16) + 8, 1);
    let len = victim.len();
    let served = victim.serve();
    assert!(served.read(64 << 10, 4096).unwrap() == [0; 4096]);
    assert_refused(served.write(64 << 10, 512, 1), "behind the end");
    assert_refused(served.write(96 << 10, 512, 1), "behind the end");
    assert_refused(served.zero(64 << 10, 512), "behind the end");
    served.flush().unwrap();
    drop(served);
    assert_eq!(victim.len(), len);
}

#[test]
fn a_subcluster_in_a_table() {
    let victim = Victim::of("subclusters");
    let l1 = victim.l1();
    victim.set(victim.l2(1, 16), l1 | COPIED);
    victim.set(victim.l2(1, 16) + 8, 0);
    let before = victim.word(l1);
    let served = victim.serve();
    assert_refused(served.write(64 << 10, 512, 1), "lie in its tables");
    drop(served);
    assert_eq!(victim.word(l1), before);
}

#[test]
fn an_l2_table_that_is_far_away_or_another_table() {
    for (why, place) in [("behind the end", FAR), ("in other tables", 4096)] {
        let victim = Victim::new();
        assert_eq!(victim.refcount_table(), 4096);
        for owned in [COPIED, 0] {
            victim.set(victim.l1(), place | owned);
            let before = fs::read(&victim.path).unwrap();
            let served = victim.serve();
            if place == FAR {
                assert!(served.read(0, 8192).unwrap() == [0; 8192]);
            }
            assert_refused(served.write(0, 512, 1), why);
            assert_refused(served.write(16 << 10, 8192, 1), why);
            served.flush().unwrap();
            served.close().unwrap();
            drop(served);
            assert!(fs::read(&victim.path).unwrap() == before, "it was written");
        }
    }
}

#[test]
fn a_refcount_block_that_is_far_away_or_another_table() {
    let victim = Victim::new();
    for (why, place) in [("behind the end", FAR), ("in other tables", victim.l1())] {
        victim.set(victim.refcount_table(), place);
        let len = victim.len();
        let served = victim.serve();
        assert_refused(served.write(1 << 20, 512, 1), why);
        // What needs no new cluster goes on.
        served.write(4096, 512, 8).unwrap();
        assert!(served.read(4096, 512).unwrap() == [8; 512]);
        served.flush().unwrap();
        drop(served);
        assert_eq!(victim.len(), len);
    }
}

#[test]
fn tables_that_the_header_puts_far_away() {
    for field in [40, 48] {
        let victim = Victim::new();
        victim.set(field, FAR);
        let before = fs::read(&victim.path).unwrap();
        let error = open(&victim.path, "", SIZE).map(drop).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidConfig, "{error}");
        assert!(error.to_string().contains("behind the end"), "{error}");
        drop(open(&victim.path, ";readonly=on", SIZE).unwrap());
        assert!(fs::read(&victim.path).unwrap() == before);
    }
}

#[test]
fn a_compressed_cluster_that_is_far_away() {
    let victim = Victim::of("compressed, zlib");
    let len = victim.len();
    victim.set(victim.l2(1, 8), COMPRESSED | 1 << 53);
    let served = victim.serve();
    let cluster = 64 << 10;
    let error = served.read(cluster, 4096).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Read, "{error}");
    // What lies around these bytes is not known.
    assert_refused(served.write(cluster, 512, 1), "is damaged");
    served.write(cluster, cluster, 4).unwrap();
    assert!(served.read(cluster, cluster).unwrap() == vec![4; 64 << 10]);
    served.close().unwrap();
    drop(served);
    assert!(victim.len() <= len + GROWTH, "{} bytes", victim.len());
    qemu::check(&victim.path, true);
}

#[test]
fn external_data_that_are_far_away() {
    let victim = Victim::of("external data");
    // This cluster has data.
    victim.set(victim.l2(3, 8), FAR | COPIED);
    let data: &Path = &victim.path.with_file_name("data");
    let len = fs::metadata(data).unwrap().len();
    let served = victim.serve();
    let offset = 3 * (64 << 10);
    let error = served.read(offset, 512).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Read, "{error}");
    assert_refused(served.write(offset, 512, 1), "guest offset");
    served.write(5 * (64 << 10), 512, 1).unwrap();
    drop(served);
    assert_eq!(fs::metadata(data).unwrap().len(), len);
}

#[test]
fn tables_are_not_let_go_with_data() {
    let victim = Victim::new();
    let (l1, table) = (victim.l1(), victim.refcount_table());
    let before = (victim.word(l1), victim.word(table));
    // Neither is its own: they are replaced.
    victim.set(victim.l2(1, 8), l1);
    victim.set(victim.l2(2, 8), table);
    let served = victim.serve();
    served.write(4096, 4096, 1).unwrap();
    served.write(8192, 4096, 2).unwrap();
    served.flush().unwrap();
    served.write(2 << 20, 1 << 20, 3).unwrap();
    served.close().unwrap();
    drop(served);
    assert_eq!((victim.word(l1), victim.word(table)), before);
    qemu::check(&victim.path, true);
}

#[test]
fn a_cluster_that_is_a_table_is_neither_written_nor_unmapped() {
    let victim = Victim::new();
    for table in [victim.l1(), victim.refcount_table()] {
        victim.set(victim.l2(1, 8), table | COPIED);
        let before = fs::read(&victim.path).unwrap();
        let served = victim.serve();
        assert_refused(served.write(4096, 512, 1), "lie in its tables");
        assert_refused(served.unmap(4096, 4096), "lie in its tables");
        // Also as a part of more.
        assert_refused(served.unmap(0, 16 << 10), "lie in its tables");
        served.flush().unwrap();
        served.close().unwrap();
        drop(served);
        assert!(fs::read(&victim.path).unwrap() == before, "it was written");
    }
}
