//! Deleting backstores: what goes, what stays, and when it is refused.

use std::fs;
use std::time::Duration;

use crate::fake::Machine;
use crate::{BackstoreSpec, DeleteOptions, Error, IscsiSpec};

const IQN: &str = "iqn.2026-11.com.example:disk";

fn spec(name: &str) -> BackstoreSpec {
    BackstoreSpec::new(name, "ram", "x").size(1 << 20)
}

fn with_disk() -> Machine {
    let machine = Machine::new();
    machine
        .tree()
        .create(&spec("disk0").loopback())
        .expect("created");
    machine
}

fn force() -> DeleteOptions {
    DeleteOptions {
        force: true,
        ..DeleteOptions::default()
    }
}

/// Deleting is refused for `words`, and done when forced.
#[track_caller]
fn refused(machine: &Machine, words: &str) {
    let error = machine
        .tree()
        .delete("disk0", &DeleteOptions::default())
        .expect_err(words);
    assert!(matches!(error, Error::InUse { .. }), "{error}");
    assert!(error.to_string().contains(words), "{error}");
    assert_eq!(
        machine.tree().list().expect("listed").len(),
        1,
        "nothing was removed"
    );
    machine.tree().delete("disk0", &force()).expect("forced");
    assert!(machine.kernel.remains().is_empty());
}

#[test]
fn everything_that_create_made_goes() {
    let machine = Machine::new();
    let tree = machine.tree();
    let spec = spec("disk0").loopback().iscsi(IscsiSpec::new(IQN));
    tree.create(&spec).expect("created");
    tree.delete("disk0", &DeleteOptions::default())
        .expect("deleted");
    assert!(machine.kernel.remains().is_empty());
    let error = tree
        .delete("disk0", &DeleteOptions::default())
        .expect_err("gone");
    assert!(matches!(error, Error::NotFound(_)), "{error}");
}

#[test]
fn a_target_goes_with_its_last_lun() {
    let machine = Machine::new();
    let tree = machine.tree();
    for name in ["a", "b"] {
        tree.create(&spec(name).iscsi(IscsiSpec::new(IQN)))
            .expect("created");
    }
    tree.delete("a", &DeleteOptions::default())
        .expect("deleted");
    assert!(
        machine
            .target("iscsi")
            .join(IQN)
            .join("tpgt_1/lun/lun_1")
            .is_dir()
    );
    tree.delete("b", &DeleteOptions::default())
        .expect("deleted");
    assert!(!machine.target("iscsi").join(IQN).exists());
}

#[test]
fn a_target_that_somebody_else_made_stays() {
    let machine = Machine::new();
    let tree = machine.tree();
    tree.create(&spec("a").iscsi(IscsiSpec::new(IQN)))
        .expect("created");
    fs::remove_file(tree.mark("iscsi", IQN)).expect("not ours any more");
    tree.delete("a", &DeleteOptions::default())
        .expect("deleted");
    assert!(
        machine
            .target("iscsi")
            .join(IQN)
            .join("tpgt_1/np/127.0.0.1:3260")
            .is_dir()
    );
}

#[test]
fn luns_mapped_by_acls_go_first() {
    let machine = Machine::new();
    let tree = machine.tree();
    tree.create(&spec("disk0").iscsi(IscsiSpec::new(IQN)))
        .expect("created");
    let tpg = machine.target("iscsi").join(IQN).join("tpgt_1");
    let mapped = tpg.join("acls/iqn.2026-11.com.example:host/lun_3");
    fs::create_dir_all(&mapped).expect("an ACL");
    std::os::unix::fs::symlink(tpg.join("lun/lun_0"), mapped.join("default")).expect("linked");
    fs::remove_file(tree.mark("iscsi", IQN)).expect("somebody else's target");
    tree.delete("disk0", &DeleteOptions::default())
        .expect("deleted");
    assert!(!mapped.exists());
    assert!(mapped.parent().expect("the ACL").exists());
}

#[test]
fn a_mounted_disk_is_refused() {
    let machine = with_disk();
    machine.write(
        "proc/self/mountinfo",
        "20 1 8:0 / /srv rw - ext4 /dev/root rw\n",
    );
    refused(&machine, "mounted on /srv");
}

#[test]
fn a_disk_mounted_by_name_is_refused() {
    let machine = with_disk();
    let disk = machine.roots.dev.join("sda");
    let line = format!(
        "20 1 0:44 / /srv rw shared:1 - btrfs {} rw\n",
        disk.display()
    );
    machine.write("proc/self/mountinfo", &line);
    refused(&machine, "mounted on /srv");
}

#[test]
fn a_disk_with_a_mounted_partition_is_refused() {
    let machine = with_disk();
    machine.write("sys/class/block/sda/sda1/partition", "1\n");
    machine.write("sys/class/block/sda/sda1/dev", "8:1\n");
    machine.write(
        "proc/self/mountinfo",
        "20 1 8:1 / /srv rw - ext4 /dev/x rw\n",
    );
    refused(&machine, "sda1 is mounted on /srv");
}

#[test]
fn a_held_disk_is_refused() {
    let machine = with_disk();
    machine.write("sys/class/block/sda/holders/dm-0", "");
    refused(&machine, "dm-0 is built on");
}

#[test]
fn a_disk_used_as_swap_space_is_refused() {
    let machine = with_disk();
    let disk = machine.roots.dev.join("sda");
    machine.write(
        "proc/swaps",
        &format!("Filename Type\n{} partition 1 0 -2\n", disk.display()),
    );
    refused(&machine, "swap");
}

#[test]
fn a_disk_that_a_process_keeps_open_is_refused() {
    let machine = with_disk();
    machine.write("proc/99/comm", "qemu\n");
    fs::create_dir(machine.roots.proc.join("99/fd")).expect("a folder");
    std::os::unix::fs::symlink(
        machine.roots.dev.join("sda"),
        machine.roots.proc.join("99/fd/3"),
    )
    .expect("linked");
    refused(&machine, "process 99 (qemu)");
}

#[test]
fn a_lun_with_an_initiator_is_refused() {
    let machine = Machine::new();
    machine
        .tree()
        .create(&spec("disk0").iscsi(IscsiSpec::new(IQN)))
        .expect("created");
    let sessions = machine
        .target("iscsi")
        .join(IQN)
        .join("tpgt_1/dynamic_sessions");
    fs::write(sessions, "iqn.2026-11.com.example:host\n\0").expect("written");
    refused(&machine, "iqn.2026-11.com.example:host is logged in");
}

#[test]
fn without_a_daemon_deleting_still_works() {
    let machine = with_disk();
    machine.stop_daemon();
    machine
        .tree()
        .delete("disk0", &DeleteOptions::default())
        .expect("deleted");
    assert!(machine.kernel.remains().is_empty());
}

#[test]
fn an_hba_with_other_backstores_stays() {
    let machine = Machine::new();
    let tree = machine.tree();
    tree.create(&spec("a").hba(4)).expect("created");
    tree.create(&spec("b").hba(4)).expect("created");
    tree.delete("a", &DeleteOptions::default())
        .expect("deleted");
    assert!(machine.target("core/user_4/b").is_dir());
    tree.delete("b", &DeleteOptions::default())
        .expect("deleted");
    assert!(!machine.target("core/user_4").exists());
}

#[test]
fn names_that_are_no_names_are_not_found() {
    let machine = Machine::new();
    for name in ["", ".", "../..", "/etc"] {
        let error = machine
            .tree()
            .delete(name, &force())
            .expect_err("no such backstore");
        assert!(matches!(error, Error::NotFound(_)), "{error}");
    }
}

#[test]
fn a_stuck_lun_is_deleted_by_force_as_the_message_says() {
    let machine = with_disk();
    machine.kernel.with_stuck_commands();
    let tree = machine.tree().with_time_limit(Duration::from_millis(200));
    let error = tree
        .delete("disk0", &DeleteOptions::default())
        .expect_err("stuck");
    assert!(matches!(error, Error::TimedOut { .. }), "{error}");
    assert!(
        error.to_string().contains("tcmuctl delete --force disk0"),
        "{error}"
    );

    let machine = with_disk();
    machine.kernel.with_stuck_commands();
    let tree = machine.tree().with_time_limit(Duration::from_millis(200));
    tree.delete("disk0", &force()).expect("forced");
    assert!(machine.kernel.remains().is_empty());
}

#[test]
fn a_lun_that_the_daemon_leaves_alone_is_deleted_by_force_at_once() {
    let machine = with_disk();
    machine.kernel.with_stuck_commands();
    let held = |force| DeleteOptions {
        force,
        held: Some("somebody takes a snapshot".to_owned()),
        hba: None,
    };
    // Far longer than anybody would wait for this test.
    let tree = machine.tree().with_time_limit(Duration::from_secs(7200));
    let error = tree.delete("disk0", &held(false)).expect_err("held");
    assert!(matches!(error, Error::InUse { .. }), "{error}");
    assert!(error.to_string().contains("a snapshot"), "{error}");
    tree.delete("disk0", &held(true)).expect("forced");
    assert!(machine.kernel.remains().is_empty());
}
