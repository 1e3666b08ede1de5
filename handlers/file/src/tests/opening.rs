//! What is opened, what is refused, and what is made.

use std::fs::{self, File};
use std::os::unix::fs::{MetadataExt, symlink};
use std::os::unix::net::UnixListener;

use rustix::fs::{CWD, FlockOperation, Mode, flock, mkfifoat};
use tcmu_handler::testing::{block_on, io};
use tcmu_handler::{Backstore, ErrorKind, Handler, Result};
use tempfile::{TempDir, tempdir};

use super::{config, open, read, write};
use crate::{FileHandler, FileImage};

const SIZE: u64 = 1 << 20;

fn image_of(size: u64) -> (TempDir, std::path::PathBuf) {
    let dir = tempdir().unwrap();
    let path = dir.path().join("image");
    File::create(&path).unwrap().set_len(size).unwrap();
    (dir, path)
}

fn kind(result: Result<FileImage>) -> (ErrorKind, i32, String) {
    let error = result.map(drop).unwrap_err();
    (error.kind(), error.errno(), error.to_string())
}

#[test]
fn what_is_no_image_is_refused_at_once() {
    let dir = tempdir().unwrap();
    let fifo = dir.path().join("fifo");
    mkfifoat(CWD, &fifo, Mode::RUSR | Mode::WUSR).unwrap();
    let socket = dir.path().join("socket");
    let _listener = UnixListener::bind(&socket).unwrap();
    let dangling = dir.path().join("dangling");
    symlink("/nonexistent/image", &dangling).unwrap();
    let missing = dir.path().join("missing");
    let below = dir.path().join("missing/image");
    for (path, options, expected, errno) in [
        (dir.path(), "", ErrorKind::InvalidConfig, 21),
        (dir.path(), ";create=on", ErrorKind::InvalidConfig, 21),
        (&fifo, "", ErrorKind::InvalidConfig, 22),
        (&fifo, ";readonly=on", ErrorKind::InvalidConfig, 22),
        (&socket, "", ErrorKind::InvalidConfig, 22),
        ("/dev/null".as_ref(), "", ErrorKind::InvalidConfig, 22),
        (&missing, "", ErrorKind::NotFound, 2),
        (&missing, ";readonly=on", ErrorKind::NotFound, 2),
        (&below, ";create=on", ErrorKind::NotFound, 2),
        (&dangling, "", ErrorKind::NotFound, 2),
        (&fifo.join("image"), "", ErrorKind::NotFound, 20),
    ] {
        let config = config(path, options);
        let (kind, code, text) = kind(open(&config, SIZE, 512));
        assert_eq!((kind, code), (expected, errno), "{config}: {text}");
        let parsed = config.parse().unwrap();
        let error = FileHandler.check(&parsed).unwrap_err();
        assert_eq!((error.kind(), error.errno()), (expected, errno), "{config}");
        assert!(text.contains(path.to_str().unwrap()), "{text}");
    }
    assert!(!missing.exists());
}

#[test]
fn checking_changes_nothing() {
    let dir = tempdir().unwrap();
    let path = dir.path().join("image");
    let check = |options: &str| FileHandler.check(&config(&path, options).parse().unwrap());
    check(";create=on").unwrap();
    assert!(!path.exists());
    fs::write(&path, "x").unwrap();
    let image = open(&config(&path, ""), 1, 512).unwrap();
    check("").unwrap();
    check(";create=on").unwrap();
    assert_eq!(fs::read(&path).unwrap(), b"x");
    drop(image);
}

#[test]
fn an_image_smaller_than_the_lun_is_refused_and_kept() {
    let (_dir, path) = image_of(SIZE - 512);
    for options in ["", ";create=on", ";readonly=on"] {
        let (kind, code, text) = kind(open(&config(&path, options), SIZE, 512));
        assert_eq!((kind, code), (ErrorKind::OutOfRange, 27), "{text}");
        assert!(
            text.contains("1048064") && text.contains("1048576"),
            "{text}"
        );
    }
    assert_eq!(fs::metadata(&path).unwrap().len(), SIZE - 512);
}

#[test]
fn a_larger_image_keeps_its_size() {
    let (_dir, path) = image_of(2 * SIZE);
    let image = open(&config(&path, ";create=on"), SIZE, 512).unwrap();
    assert_eq!(image.capabilities().size, 2 * SIZE);
    assert_eq!(fs::metadata(&path).unwrap().len(), 2 * SIZE);
}

#[test]
fn creates_a_sparse_private_file() {
    let dir = tempdir().unwrap();
    let missing = dir.path().join("missing");
    let empty = dir.path().join("empty");
    File::create(&empty).unwrap();
    for path in [&missing, &empty] {
        let image = open(&config(path, ";create=on"), 1 << 40, 512).unwrap();
        assert_eq!(image.capabilities().size, 1 << 40);
        let metadata = fs::metadata(path).unwrap();
        assert_eq!(metadata.len(), 1 << 40);
        assert!(metadata.blocks() < 64, "{} blocks", metadata.blocks());
        assert_eq!(read(&image, 4096, (1 << 40) - 4096).unwrap(), [0; 4096]);
    }
    assert_eq!(fs::metadata(&missing).unwrap().mode() & 0o077, 0);
}

#[test]
fn what_was_created_for_a_lun_that_failed_is_gone() {
    let dir = tempdir().unwrap();
    let path = dir.path().join("image");
    // Larger than a file can be.
    let result = open(&config(&path, ";create=on"), 1 << 63, 512);
    let (kind, _, text) = kind(result);
    assert!(
        matches!(kind, ErrorKind::NoSpace | ErrorKind::InvalidConfig),
        "{kind:?} {text}"
    );
    assert!(!path.exists());
}

#[test]
fn a_writable_image_is_held_alone() {
    let (_dir, path) = image_of(SIZE);
    let image = open(&config(&path, ""), SIZE, 512).unwrap();
    for options in ["", ";readonly=on"] {
        let (kind, code, text) = kind(open(&config(&path, options), SIZE, 512));
        assert_eq!((kind, code), (ErrorKind::InUse, 16), "{text}");
    }
    block_on(image.close(&io())).unwrap();
    drop(image);
    let first = open(&config(&path, ";readonly=on"), SIZE, 512).unwrap();
    let _second = open(&config(&path, ";readonly=on"), SIZE, 512).unwrap();
    assert_eq!(
        kind(open(&config(&path, ""), SIZE, 512)).0,
        ErrorKind::InUse
    );
    drop(first);
}

#[test]
fn waits_for_a_predecessor_that_is_just_ending() {
    let (_dir, path) = image_of(SIZE);
    let predecessor = File::open(&path).unwrap();
    flock(&predecessor, FlockOperation::LockExclusive).unwrap();
    let (started, starting) = std::sync::mpsc::channel();
    let opening = std::thread::spawn({
        let config = config(&path, "");
        move || {
            started.send(()).unwrap();
            open(&config, SIZE, 512).map(drop)
        }
    });
    starting.recv().unwrap();
    std::thread::sleep(std::time::Duration::from_millis(50));
    drop(predecessor);
    opening.join().unwrap().unwrap();
}

#[test]
fn a_read_only_image_claims_no_change() {
    let (_dir, path) = image_of(SIZE);
    let image = open(&config(&path, ";readonly=on"), SIZE, 512).unwrap();
    let capabilities = image.capabilities();
    assert!(capabilities.read_only);
    assert!(!capabilities.volatile_cache && !capabilities.write_zeroes);
    assert_eq!(capabilities.unmap, None);
    assert_eq!(read(&image, 512, 0).unwrap(), [0; 512]);
    // The kernel refuses, too: nobody has to trust the runner.
    assert_eq!(
        write(&image, 1, 512, 0, false).unwrap_err().kind(),
        ErrorKind::Write
    );
    assert_eq!(
        block_on(image.resize(&io(), 2 * SIZE)).unwrap_err().kind(),
        ErrorKind::OutOfRange
    );
    block_on(image.close(&io())).unwrap();
    assert_eq!(fs::metadata(&path).unwrap().len(), SIZE);
}
