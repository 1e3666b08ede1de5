//! qemu and this handler exclude each other.

use std::path::Path;
use std::process::Command;

use tcmu_handler::ErrorKind;
use tempfile::tempdir;

use super::nbd::Server;
use super::{open, qemu};

const SIZE: u64 = 1 << 20;

/// What qemu says to an attempt to use an image; nothing if it does.
fn complaint(args: &[&str], path: &Path) -> Option<String> {
    let output = Command::new(args[0])
        .args(&args[1..])
        .arg(path)
        .output()
        .unwrap();
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    (!output.status.success()).then_some(error)
}

#[test]
fn qemu_does_not_touch_what_we_serve() {
    let folder = tempdir().unwrap();
    qemu::img_in(folder.path(), &["create", "-f", "qcow2", "a.qcow2", "1M"]);
    let path = folder.path().join("a.qcow2");
    let write = ["qemu-io", "-f", "qcow2", "-c", "write 0 512"];
    let check = ["qemu-img", "check", "-f", "qcow2"];
    let read = ["qemu-io", "-r", "-f", "qcow2", "-c", "read 0 512"];

    let image = open(&path, "", SIZE).unwrap();
    for args in [&write[..], &check, &read] {
        let complaint = complaint(args, &path).expect("qemu used a locked image");
        assert!(complaint.contains("lock"), "{complaint}");
    }
    let again = open(&path, "", SIZE).map(drop).unwrap_err();
    assert_eq!(again.kind(), ErrorKind::InUse);
    assert!(open(&path, ";readonly=on", SIZE).is_err());
    drop(image);

    let image = open(&path, ";readonly=on", SIZE).unwrap();
    let second = open(&path, ";readonly=on", SIZE).unwrap();
    assert!(complaint(&write, &path).is_some());
    qemu::check(&path, false);
    drop((image, second));
    qemu::io(&path, &["write 0 512"]);
}

#[test]
fn we_do_not_touch_what_qemu_serves() {
    let folder = tempdir().unwrap();
    qemu::img_in(
        folder.path(),
        &["create", "-f", "qcow2", "base.qcow2", "1M"],
    );
    qemu::img_in(
        folder.path(),
        &[
            "create",
            "-f",
            "qcow2",
            "-b",
            "base.qcow2",
            "-F",
            "qcow2",
            "a.qcow2",
        ],
    );
    let (path, base) = (
        folder.path().join("a.qcow2"),
        folder.path().join("base.qcow2"),
    );
    let server = Server::start(&path, &[]);
    let mut errors = Vec::new();
    for (path, options) in [(&path, ""), (&path, ";readonly=on"), (&base, "")] {
        errors.push(open(path, options, SIZE).map(drop));
    }
    // Both sides only read the image below.
    let shared = open(&base, ";readonly=on", SIZE).map(drop);
    drop(server);
    for error in errors {
        assert_eq!(error.unwrap_err().kind(), ErrorKind::InUse);
    }
    shared.unwrap();
    open(&path, "", SIZE).map(drop).unwrap();
}
