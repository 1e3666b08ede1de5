//! EXTENDED COPY between LUNs of two reactors, each on a thread of its own.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};

use tcmu::mock::{Data, Finished};
use tcmu::scsi::Status;
use tcmu_handler::{
    Backstore, Buffer, Capabilities, Error, ErrorKind, File, Handler, Io, OpenRequest, Result,
    WriteFlags,
};
use tcmu_handler_ram::RamHandler;
use tcmu_runner::{CopyAccess, CopyDirectory};

use crate::lun::{BLOCK, Lun, SIZE, image, pattern};

const GOOD: u8 = Status::Good.code();
const CHECK_CONDITION: u8 = Status::CheckCondition.code();

/// Allows what the test allows, and remembers what was asked.
#[derive(Debug, Default)]
struct Allowing {
    allowed: AtomicBool,
    asked: Mutex<Vec<(String, String, bool)>>,
}

#[derive(Debug)]
struct Shared(Arc<Allowing>);

impl CopyAccess for Shared {
    fn allows(&self, own: &Path, other: &Path, for_writing: bool) -> bool {
        let name = |path: &Path| path.display().to_string();
        let asked = (name(own), name(other), for_writing);
        self.0.asked.lock().unwrap().push(asked);
        self.0.allowed.load(Ordering::Relaxed)
    }
}

fn directory() -> (Arc<CopyDirectory>, Arc<Allowing>) {
    let access = Arc::new(Allowing::default());
    access.allowed.store(true, Ordering::Relaxed);
    (CopyDirectory::new(Shared(Arc::clone(&access))), access)
}

/// A LUN that another thread serves until this is dropped.
struct Elsewhere {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Elsewhere {
    fn serve<B: Backstore>(
        directory: &Arc<CopyDirectory>,
        name: &'static str,
        serial: &'static str,
        backstore: B,
    ) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let (directory, stopped) = (Arc::clone(directory), Arc::clone(&stop));
        let (ready, is_ready) = channel();
        let thread = thread::spawn(move || {
            let mut lun = Lun::among(&directory, name, serial, backstore);
            ready.send(()).unwrap();
            while !stopped.load(Ordering::Relaxed) {
                lun.turn(false);
                thread::yield_now();
            }
        });
        is_ready.recv().unwrap();
        let thread = Some(thread);
        Self { stop, thread }
    }
}

impl Drop for Elsewhere {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
    }
}

fn ram() -> impl Backstore {
    RamHandler
        .open(&OpenRequest {
            config: "".parse().unwrap(),
            size: SIZE,
            block_size: BLOCK as u32,
        })
        .unwrap()
}

/// A backstore that hides the file of another, so that copies go through memory.
struct Opaque<B>(B);

impl<B: Backstore> Backstore for Opaque<B> {
    fn capabilities(&self) -> Capabilities {
        self.0.capabilities()
    }

    async fn read(&self, io: &Io, buffer: Buffer<'_>, offset: u64) -> Result<()> {
        self.0.read(io, buffer, offset).await
    }

    async fn write(
        &self,
        io: &Io,
        buffer: Buffer<'_>,
        offset: u64,
        flags: WriteFlags,
    ) -> Result<()> {
        self.0.write(io, buffer, offset, flags).await
    }

    async fn flush(&self, io: &Io) -> Result<()> {
        self.0.flush(io).await
    }
}

/// A LUN whose image is a plain file, but which must not be read from: its data come through the
/// kernel or not at all.
struct Unreadable<B>(B);

impl<B: Backstore> Backstore for Unreadable<B> {
    fn capabilities(&self) -> Capabilities {
        self.0.capabilities()
    }

    async fn read(&self, _: &Io, _: Buffer<'_>, _: u64) -> Result<()> {
        Err(Error::new(ErrorKind::Read, "the test wants it so"))
    }

    async fn write(&self, io: &Io, buffer: Buffer<'_>, offset: u64, f: WriteFlags) -> Result<()> {
        self.0.write(io, buffer, offset, f).await
    }

    async fn flush(&self, io: &Io) -> Result<()> {
        self.0.flush(io).await
    }

    fn file(&self) -> Option<File> {
        self.0.file()
    }
}

/// The NAA designator that LIO makes of a serial number of 25 hexadecimal digits.
fn naa(serial: &str) -> [u8; 16] {
    let mut digits = b"6001405".to_vec();
    digits.extend(serial.bytes());
    let digits: Vec<u8> = digits
        .iter()
        .map(|digit| (*digit as char).to_digit(16).unwrap() as u8)
        .collect();
    let bytes: Vec<u8> = digits
        .chunks(2)
        .map(|pair| pair[0] << 4 | pair[1])
        .collect();
    bytes.try_into().unwrap()
}

const OWN: &str = "1111111111111111111111111";
const OTHER: &str = "2222222222222222222222222";
const BLOCKS: u16 = 9000;

/// Copies BLOCKS blocks from block 8 of the first to block 16 of the second.
fn copy(lun: &mut Lun, source: &str, destination: &str) -> Finished {
    let mut list = vec![1, 0, 0, 64, 0, 0, 0, 0, 0, 0, 0, 28, 0, 0, 0, 0];
    for serial in [source, destination] {
        list.extend([0xe4, 0, 0, 0, 1, 3, 0, 16]);
        list.extend(naa(serial));
        list.extend([0, 0, 0, 0, 0, 0, 2, 0]);
    }
    list.extend([2, 0, 0, 0x18, 0, 0, 0, 1, 0, 0]);
    list.extend(BLOCKS.to_be_bytes());
    list.extend(8u64.to_be_bytes());
    list.extend(16u64.to_be_bytes());
    let mut cdb = [0; 16];
    cdb[0] = 0x83;
    cdb[10..14].copy_from_slice(&(list.len() as u32).to_be_bytes());
    let tag = lun.submit(&cdb, Data::Out(&list));
    lun.wait(tag)
}

#[track_caller]
fn aborted(finished: &Finished, asc: u8, ascq: u8) {
    assert_eq!(finished.status, CHECK_CONDITION);
    assert_eq!(finished.sense[2] & 0xf, 0xa, "{:x?}", finished.sense);
    assert_eq!(finished.sense[12..14], [asc, ascq]);
}

/// The bytes of an image that a copy concerns, from block `block` on.
fn range(folder: &Path, block: usize) -> Vec<u8> {
    let image = std::fs::read(folder.join("image")).unwrap();
    image[block * BLOCK..][..usize::from(BLOCKS) * BLOCK].to_vec()
}

/// Folders of two images; the first holds bytes that differ from place to place.
fn folders() -> (tempfile::TempDir, tempfile::TempDir) {
    let folders = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    std::fs::write(folders.0.path().join("image"), pattern(1, SIZE as usize)).unwrap();
    folders
}

#[test]
fn goes_to_and_from_the_lun_of_another_reactor() {
    for pull in [false, true] {
        let (from, to) = folders();
        let (directory, access) = directory();
        let (source, destination) = (Opaque(image(from.path())), Opaque(image(to.path())));
        let finished = if pull {
            let _other = Elsewhere::serve(&directory, "other", OTHER, source);
            let mut lun = Lun::among(&directory, "own", OWN, destination);
            copy(&mut lun, OTHER, OWN)
        } else {
            let _other = Elsewhere::serve(&directory, "other", OTHER, destination);
            let mut lun = Lun::among(&directory, "own", OWN, source);
            copy(&mut lun, OWN, OTHER)
        };
        assert_eq!(finished.status, GOOD, "{:x?}", finished.sense);
        assert!(range(from.path(), 8) == range(to.path(), 16));
        let image = std::fs::read(to.path().join("image")).unwrap();
        assert!(image[..16 * BLOCK].iter().all(|&byte| byte == 0));
        let asked = access.asked.lock().unwrap().clone();
        assert_eq!(asked, [("own".to_owned(), "other".to_owned(), !pull)]);
    }
}

#[test]
fn plain_files_are_copied_by_the_kernel() {
    let (from, to) = folders();
    let (directory, _) = directory();
    let destination = Unreadable(image(to.path()));
    let _other = Elsewhere::serve(&directory, "other", OTHER, destination);
    let source = Unreadable(image(from.path()));
    let mut lun = Lun::among(&directory, "own", OWN, source);
    assert_eq!(copy(&mut lun, OWN, OTHER).status, GOOD);
    assert!(range(from.path(), 8) == range(to.path(), 16));
}

#[test]
fn a_file_and_another_backstore_go_through_memory() {
    let (from, _) = folders();
    let (directory, _) = directory();
    let _other = Elsewhere::serve(&directory, "other", OTHER, image(from.path()));
    let mut lun = Lun::among(&directory, "own", OWN, ram());
    assert_eq!(copy(&mut lun, OTHER, OWN).status, GOOD);
    let tag = lun.read(16, 256);
    assert!(lun.wait(tag).data_in == range(from.path(), 8)[..256 * BLOCK]);
}

#[test]
fn what_is_not_allowed_is_not_reached() {
    let (from, to) = folders();
    let (directory, access) = directory();
    access.allowed.store(false, Ordering::Relaxed);
    let _other = Elsewhere::serve(&directory, "other", OTHER, image(to.path()));
    let mut lun = Lun::among(&directory, "own", OWN, image(from.path()));
    for (source, destination) in [(OWN, OTHER), (OTHER, OWN), (OTHER, OTHER)] {
        aborted(&copy(&mut lun, source, destination), 0x0d, 0x02);
    }
    let image = std::fs::read(to.path().join("image")).unwrap();
    assert!(image.iter().all(|&byte| byte == 0));
    assert!(std::fs::read(from.path().join("image")).unwrap() == pattern(1, SIZE as usize));
}

#[test]
fn a_lun_that_has_gone_is_not_reached() {
    let (from, to) = folders();
    let (directory, _) = directory();
    let other = Elsewhere::serve(&directory, "other", OTHER, image(to.path()));
    let mut lun = Lun::among(&directory, "own", OWN, image(from.path()));
    drop(other);
    aborted(&copy(&mut lun, OWN, OTHER), 0x0d, 0x02);
}

#[test]
fn a_serial_number_that_two_luns_have_leads_nowhere() {
    let (directory, _) = directory();
    let _first = Elsewhere::serve(&directory, "first", OTHER, ram());
    let mut lun = Lun::among(&directory, "own", OWN, ram());
    assert_eq!(copy(&mut lun, OTHER, OWN).status, GOOD);
    let _second = Elsewhere::serve(&directory, "second", OTHER, ram());
    aborted(&copy(&mut lun, OTHER, OWN), 0x0d, 0x02);
}

#[test]
fn errors_of_the_other_end_abort_the_copy() {
    let (_, to) = folders();
    let (directory, _) = directory();
    let read_only = RamHandler
        .open(&OpenRequest {
            config: ";readonly=on".parse().unwrap(),
            size: SIZE,
            block_size: BLOCK as u32,
        })
        .unwrap();
    let _protected = Elsewhere::serve(&directory, "protected", OTHER, read_only);
    let mut lun = Lun::among(&directory, "own", OWN, ram());
    aborted(&copy(&mut lun, OWN, OTHER), 0x0d, 0x01);
    assert_eq!(copy(&mut lun, OTHER, OWN).status, GOOD);

    const BROKEN: &str = "3333333333333333333333333";
    let _broken = Elsewhere::serve(&directory, "broken", BROKEN, Unreadable(image(to.path())));
    aborted(&copy(&mut lun, BROKEN, OWN), 0x0d, 0x01);
}

#[test]
fn two_luns_that_copy_to_each_other_both_finish() {
    let (from, to) = folders();
    let (directory, _) = directory();
    let mut lun = Lun::among(&directory, "own", OWN, Opaque(image(from.path())));
    let stop = Arc::new(AtomicBool::new(false));
    let (stopped, path) = (Arc::clone(&stop), to.path().to_owned());
    let (ready, is_ready) = channel();
    let other = thread::spawn(move || {
        let mut lun = Lun::among(&directory, "other", OTHER, Opaque(image(&path)));
        ready.send(()).unwrap();
        for _ in 0..3 {
            assert_eq!(copy(&mut lun, OTHER, OWN).status, GOOD);
        }
        while !stopped.load(Ordering::Relaxed) {
            lun.turn(false);
            thread::yield_now();
        }
    });
    is_ready.recv().unwrap();
    for _ in 0..3 {
        assert_eq!(copy(&mut lun, OWN, OTHER).status, GOOD);
    }
    stop.store(true, Ordering::Relaxed);
    while !other.is_finished() {
        lun.turn(false);
        thread::yield_now();
    }
    other.join().unwrap();
}
