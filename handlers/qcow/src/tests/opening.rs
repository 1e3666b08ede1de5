//! What is opened and what is refused, with which words.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use tcmu_handler::testing::UnorderedEngine;
use tcmu_handler::{Backstore, Config, ErrorKind, Handler};
use tempfile::tempdir;

use super::workload::{close, read_all};
use super::{config, open, qemu};
use crate::QcowHandler;

const SIZE: u64 = 1 << 20;

/// Opening and checking fail, and leave the file alone; returns the words.
fn refused(path: &Path, options: &str, kind: ErrorKind) -> String {
    let before = fs::read(path).ok();
    let error = open(path, options, SIZE).map(drop).unwrap_err();
    assert_eq!(error.kind(), kind, "{error}");
    let parsed: Config = config(path, options).parse().unwrap();
    let checked = QcowHandler.check(&parsed).unwrap_err();
    assert_eq!(checked.to_string(), error.to_string());
    assert!(
        fs::read(path).ok() == before,
        "a refused image was written to"
    );
    error.to_string()
}

fn image(folder: &Path, options: &str) -> std::path::PathBuf {
    qemu::img_in(
        folder,
        &["create", "-f", "qcow2", "-o", options, "a.qcow2", "1M"],
    );
    folder.join("a.qcow2")
}

/// Changes bytes of a file.
fn patch(path: &Path, at: usize, new: &[u8]) {
    let mut bytes = fs::read(path).unwrap();
    bytes[at..at + new.len()].copy_from_slice(new);
    fs::write(path, bytes).unwrap();
}

#[test]
fn what_is_no_image() {
    let folder = tempdir().unwrap();
    let missing = folder.path().join("missing");
    assert!(refused(&missing, "", ErrorKind::NotFound).contains("missing"));
    let raw = folder.path().join("raw");
    for len in [0, 10, 100, 70000] {
        fs::write(&raw, vec![7; len]).unwrap();
        let words = refused(&raw, "", ErrorKind::InvalidConfig);
        assert!(words.contains("not a qcow2 image"), "{words}");
    }
    refused(Path::new("/dev/null"), "", ErrorKind::InvalidConfig);
    refused(folder.path(), ";readonly=on", ErrorKind::InvalidConfig);
}

#[test]
fn what_is_not_supported() {
    let folder = tempdir().unwrap();
    let path = image(folder.path(), "compat=1.1");
    patch(&path, 79, &[0x20]);
    let words = refused(&path, "", ErrorKind::Unsupported);
    assert!(words.contains("incompatible bits 0x20"), "{words}");
    refused(&path, ";readonly=on", ErrorKind::Unsupported);

    let secret = "encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10";
    qemu::img_in(
        folder.path(),
        &[
            "create",
            "-f",
            "qcow2",
            "--object",
            "secret,id=s,data=x",
            "-o",
            secret,
            "l.qcow2",
            "1M",
        ],
    );
    let words = refused(&folder.path().join("l.qcow2"), "", ErrorKind::Unsupported);
    assert!(words.contains("encrypted"), "{words}");

    let path = image(folder.path(), "compat=1.1");
    patch(&path, 7, &[4]);
    refused(&path, "", ErrorKind::Unsupported);
}

#[test]
fn a_corrupt_image_is_only_read() {
    let folder = tempdir().unwrap();
    let path = image(folder.path(), "compat=1.1");
    patch(&path, 79, &[2]);
    let words = refused(&path, "", ErrorKind::InvalidConfig);
    assert!(words.contains("marked as corrupt"), "{words}");
    open(&path, ";readonly=on", SIZE).unwrap();
}

#[test]
fn an_image_that_is_too_small() {
    let folder = tempdir().unwrap();
    let path = image(folder.path(), "compat=1.1");
    let error = open(&path, "", SIZE + 512).map(drop).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::OutOfRange);
    assert!(error.to_string().contains("qemu-img resize"), "{error}");
}

#[test]
fn backing_files() {
    let folder = tempdir().unwrap();
    let here = folder.path();
    fs::write(here.join("base"), vec![3; 1 << 20]).unwrap();
    qemu::img_in(
        here,
        &[
            "create", "-f", "qcow2", "-b", "base", "-F", "raw", "a.qcow2",
        ],
    );
    let path = here.join("a.qcow2");
    // Relative names begin where the image is, not where the link to it is.
    let engine = UnorderedEngine::repeatable(1);
    let shown = read_all(&engine, &open(&path, "", SIZE).unwrap()).unwrap();
    assert!(shown.iter().all(|byte| *byte == 3));

    // A raw image that looks like qcow2 stays a raw image.
    let inner = image(here, "compat=1.1");
    fs::rename(&inner, here.join("base")).unwrap();
    qemu::img_in(
        here,
        &[
            "create", "-f", "qcow2", "-b", "base", "-F", "raw", "a.qcow2", "1M",
        ],
    );
    let shown = read_all(&engine, &open(&path, "", SIZE).unwrap()).unwrap();
    assert_eq!(shown[..4], *b"QFI\xfb");

    fs::remove_file(here.join("base")).unwrap();
    let words = refused(&path, "", ErrorKind::NotFound);
    assert!(words.contains("base"), "{words}");
}

#[test]
fn a_backing_file_of_unknown_format_is_not_guessed() {
    let folder = tempdir().unwrap();
    let here = folder.path();
    fs::write(here.join("base"), vec![3; 1 << 20]).unwrap();
    let args = [
        "create", "-f", "qcow2", "-u", "-b", "base", "-F", "raw", "a.qcow2", "1M",
    ];
    qemu::img_in(here, &args);
    let path = here.join("a.qcow2");
    let bytes = fs::read(&path).unwrap();
    let at = bytes
        .windows(4)
        .position(|w| w == [0xe2, 0x79, 0x2a, 0xca])
        .unwrap();
    patch(&path, at, &[1, 2, 3, 4]);
    let words = refused(&path, "", ErrorKind::InvalidConfig);
    assert!(
        words.contains("qemu-img rebase -u -b base -F raw"),
        "{words}"
    );

    qemu::img_in(here, &["create", "-f", "qcow2", "a.qcow2", "1M"]);
    qemu::img_in(
        here,
        &[
            "rebase",
            "-u",
            "-b",
            "nbd://localhost/x",
            "-F",
            "raw",
            "a.qcow2",
        ],
    );
    let words = refused(&path, "", ErrorKind::Unsupported);
    assert!(words.contains("not a path"), "{words}");
}

#[test]
fn chains_that_never_end() {
    let folder = tempdir().unwrap();
    let here = folder.path();
    for (name, below) in [("a.qcow2", "b.qcow2"), ("b.qcow2", "a.qcow2")] {
        let args = [
            "create", "-f", "qcow2", "-u", "-b", below, "-F", "qcow2", name, "1M",
        ];
        qemu::img_in(here, &args);
    }
    // A writer's own image is locked: the loop shows as a lock, unless it is only read.
    let words = open(&here.join("a.qcow2"), ";readonly=on", SIZE)
        .map(drop)
        .unwrap_err()
        .to_string();
    assert!(words.contains("comes back"), "{words}");
    assert!(open(&here.join("a.qcow2"), "", SIZE).is_err());

    symlink("a.qcow2", here.join("self")).unwrap();
    qemu::img_in(
        here,
        &[
            "create", "-f", "qcow2", "-u", "-b", "self", "-F", "qcow2", "a.qcow2", "1M",
        ],
    );
    assert!(open(&here.join("a.qcow2"), ";readonly=on", SIZE).is_err());

    let mut below = String::from("base");
    fs::write(here.join("base"), vec![3; 1 << 20]).unwrap();
    let mut format = "raw";
    for number in 0..70 {
        let name = format!("{number}.qcow2");
        let args = [
            "create", "-f", "qcow2", "-u", "-b", &below, "-F", format, &name, "1M",
        ];
        qemu::img_in(here, &args);
        (below, format) = (name, "qcow2");
    }
    let error = open(&here.join("69.qcow2"), "", SIZE)
        .map(drop)
        .unwrap_err();
    assert!(error.to_string().contains("more than 64"), "{error}");
    open(&here.join("60.qcow2"), "", SIZE).map(drop).unwrap();
}

#[test]
fn a_dirty_image_is_repaired() {
    let folder = tempdir().unwrap();
    let path = image(folder.path(), "lazy_refcounts=on");
    let commands = ["-c", "write -P 9 0 512k", "-c", "abort"];
    let _ = std::process::Command::new("qemu-io")
        .args(commands)
        .args(["-f", "qcow2", qemu::text(&path)])
        .output();
    let dirty = fs::read(&path).unwrap();
    assert_eq!(dirty[79] & 1, 1, "qemu has left nothing to repair");
    // Only reading needs no repair, and makes none.
    open(&path, ";readonly=on", SIZE).unwrap();
    assert!(fs::read(&path).unwrap() == dirty);

    let image = open(&path, "", SIZE).unwrap();
    let engine = UnorderedEngine::repeatable(1);
    let shown = read_all(&engine, &image).unwrap();
    assert!(shown[..512 << 10].iter().all(|byte| *byte == 9));
    close(&engine, &image).unwrap();
    drop(image);
    assert_eq!(fs::read(&path).unwrap()[79] & 1, 0);
    qemu::check(&path, false);
}

#[test]
fn bitmaps_are_distrusted_or_left_alone() {
    let folder = tempdir().unwrap();
    let path = image(folder.path(), "compat=1.1");
    qemu::img_in(folder.path(), &["bitmap", "--add", "a.qcow2", "follows"]);
    qemu::img_in(
        folder.path(),
        &["bitmap", "--add", "--disable", "a.qcow2", "stands"],
    );
    open(&path, ";readonly=on", SIZE).unwrap();
    let info = qemu::info(&path);
    assert!(!info.contains("in-use"), "{info}");
    drop(open(&path, "", SIZE).unwrap());
    let info = qemu::info(&path);
    assert!(info.matches("in-use").count() == 1, "{info}");
    qemu::check(&path, false);
    // The one that was disabled is still of use.
    qemu::img_in(
        folder.path(),
        &["bitmap", "--enable", "-f", "qcow2", "a.qcow2", "stands"],
    );
}

#[test]
fn unknown_autoclear_bits_go_with_the_first_writer() {
    let folder = tempdir().unwrap();
    let path = image(folder.path(), "compat=1.1");
    patch(&path, 95, &[0x40]);
    drop(open(&path, ";readonly=on", SIZE).unwrap());
    assert_eq!(fs::read(&path).unwrap()[95], 0x40);
    drop(open(&path, "", SIZE).unwrap());
    assert_eq!(fs::read(&path).unwrap()[95], 0);
}

#[test]
fn capabilities_are_those_of_the_image() {
    let folder = tempdir().unwrap();
    let path = image(folder.path(), "cluster_size=4k");
    let capabilities = open(&path, "", SIZE).unwrap().capabilities();
    assert_eq!(capabilities.size, SIZE);
    assert!(capabilities.volatile_cache && !capabilities.read_only);
    assert_eq!(capabilities.unmap.unwrap().granularity, 4096);
    let capabilities = open(&path, ";readonly=on", SIZE).unwrap().capabilities();
    assert!(capabilities.read_only && !capabilities.volatile_cache);
    assert!(capabilities.unmap.is_none() && !capabilities.write_zeroes);
}
