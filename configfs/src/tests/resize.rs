//! Resizing.

use std::time::Duration;

use rustix::io::Errno;

use crate::fake::{Answer, Machine};
use crate::{BackstoreSpec, Error, ResizeOptions};

const MIB: u64 = 1 << 20;

fn with_disk() -> Machine {
    let machine = Machine::new();
    let spec = BackstoreSpec::new("disk0", "ram", "x")
        .size(4 * MIB)
        .loopback();
    machine.tree().create(&spec).expect("created");
    machine
}

fn grow() -> ResizeOptions {
    ResizeOptions::default()
}

#[test]
fn the_lun_and_its_disk_get_the_new_size() {
    let machine = with_disk();
    let tree = machine.tree();
    assert_eq!(
        tree.resize("disk0", 8 * MIB, &grow()).expect("grown").size,
        8 * MIB
    );
    let disk = machine.roots.dev.join("sda");
    assert_eq!(tree.disk_size(&disk), Some(8 * MIB));
    let shrink = ResizeOptions {
        shrink: true,
        hba: None,
    };
    assert_eq!(
        tree.resize("disk0", 2 * MIB, &shrink).expect("shrunk").size,
        2 * MIB
    );
    assert_eq!(tree.disk_size(&disk), Some(2 * MIB));
}

#[test]
fn shrinking_has_to_be_meant() {
    let machine = with_disk();
    let before = machine.kernel.count();
    let error = machine
        .tree()
        .resize("disk0", MIB, &grow())
        .expect_err("smaller");
    assert!(
        error.is_usage() && error.to_string().contains("--shrink"),
        "{error}"
    );
    let error = machine
        .tree()
        .resize("disk0", 8 * MIB + 1, &grow())
        .expect_err("not whole blocks");
    assert!(error.is_usage(), "{error}");
    assert_eq!(machine.kernel.count(), before, "nothing was tried");
}

#[test]
fn a_refused_size_leaves_the_old_one() {
    let machine = with_disk();
    machine
        .kernel
        .answer(&[Answer::Errno(Errno::NOSPC.raw_os_error())]);
    let error = machine
        .tree()
        .resize("disk0", 8 * MIB, &grow())
        .expect_err("no space");
    assert!(matches!(error, Error::Refused { .. }), "{error}");
    assert!(
        error.to_string().contains("no space to hold 8.0 MiB"),
        "{error}"
    );
    let notes = "99999999999999\tuser_0/disk0\tthe pool is full\n";
    machine.write("run/tcmu-runner/refusals", notes);
    machine
        .kernel
        .answer(&[Answer::Errno(Errno::NOSPC.raw_os_error())]);
    let error = machine.tree().resize("disk0", 8 * MIB, &grow());
    let text = error.expect_err("no space").to_string();
    assert!(
        text.ends_with("tcmu-runner says: the pool is full"),
        "{text}"
    );
    assert_eq!(
        machine
            .tree()
            .show("disk0", None)
            .expect("shown")
            .backstore
            .size,
        4 * MIB
    );
}

#[test]
fn a_daemon_that_never_answers_is_given_up_on() {
    let machine = with_disk();
    machine.kernel.answer(&[Answer::None]);
    let tree = machine.tree().with_time_limit(Duration::from_millis(200));
    let error = tree
        .resize("disk0", 8 * MIB, &grow())
        .expect_err("nobody answers");
    assert!(matches!(error, Error::TimedOut { .. }), "{error}");
}

#[test]
fn without_a_daemon_nothing_is_tried() {
    let machine = with_disk();
    machine.stop_daemon();
    let before = machine.kernel.count();
    let error = machine
        .tree()
        .resize("disk0", 8 * MIB, &grow())
        .expect_err("no daemon");
    assert!(matches!(error, Error::NoDaemon), "{error}");
    assert_eq!(machine.kernel.count(), before);
}

#[test]
fn resizing_again_reads_the_disk_again() {
    let machine = with_disk();
    let tree = machine.tree();
    machine.write("sys/class/block/sda/size", "1\n");
    tree.resize("disk0", 4 * MIB, &grow())
        .expect("the size that it has");
    assert_eq!(
        tree.disk_size(&machine.roots.dev.join("sda")),
        Some(4 * MIB)
    );
}
