//! Saving and restoring: what comes back, what is left alone, what is refused.

use std::fs;
use std::os::unix::fs::symlink;

use rustix::io::Errno;

use crate::fake::{Answer, Machine};
use crate::saved::{Acl, Group, MappedLun, Outcome, Saved, Step, Target};
use crate::{BackstoreSpec, Error, IscsiSpec};

const IQN: &str = "iqn.2026-11.com.example:disk";
const HOST: &str = "iqn.2026-11.com.example:host";

/// A machine with two backstores: one is exposed on loopback and iSCSI, one only on iSCSI.
fn machine() -> Machine {
    let machine = Machine::new();
    let tree = machine.tree();
    let iscsi = || IscsiSpec::new(IQN);
    let first = BackstoreSpec::new("disk0", "file", "/srv/a,b.img").size(1 << 20);
    tree.create(&first.loopback().iscsi(iscsi()).command_timeout(7))
        .expect("created");
    let second = BackstoreSpec::new("disk1", "ram", "x").size(1 << 20).hba(4);
    tree.create(&second.iscsi(iscsi()).write_cache(false))
        .expect("created");
    machine
}

fn capture(machine: &Machine) -> Saved {
    let taken = machine.tree().capture().expect("captured");
    assert_eq!(taken.left_out, []);
    taken.saved
}

fn restore(machine: &Machine, saved: &Saved) -> Vec<Step> {
    machine.tree().restore(saved, false).expect("restored")
}

/// The outcome of each step by its name.
fn outcomes(steps: &[Step]) -> Vec<(&str, Outcome)> {
    let outcome = |step: &Step| (step.kind, step.outcome);
    steps.iter().map(outcome).collect()
}

#[track_caller]
fn all_are(steps: &[Step], outcome: Outcome) {
    assert!(!steps.is_empty());
    for step in steps {
        assert_eq!(
            (step.outcome, &step.details[..]),
            (outcome, &[][..]),
            "{step:?}"
        );
    }
}

#[test]
fn what_was_saved_comes_back() {
    let before = machine();
    let saved = capture(&before);
    assert_eq!(saved.backstores.len(), 2);
    assert_eq!(saved.luns(), 3);

    let after = Machine::new();
    let steps = restore(&after, &saved);
    all_are(&steps, Outcome::Created);
    assert_eq!(capture(&after), saved);
    let listed = |machine: &Machine| {
        let mut all = machine.tree().list().expect("listed");
        for backstore in &mut all {
            // The machines stand in different folders.
            for export in &mut backstore.exports {
                export.block_device = None;
            }
        }
        all
    };
    assert_eq!(listed(&after), listed(&before));
    let attribute = |name: &str| after.read(&format!("core/user_0/disk0/attrib/{name}"));
    assert_eq!(attribute("cmd_time_out"), "7");
    assert_eq!(
        after.read("core/user_4/disk1/attrib/emulate_write_cache"),
        "0"
    );

    // Targets that tcmuctl made are still its own.
    for name in ["disk0", "disk1"] {
        after
            .tree()
            .delete(name, &Default::default())
            .expect("deleted");
    }
    assert!(after.kernel.remains().is_empty());
}

#[test]
fn restoring_again_changes_nothing() {
    let machine = machine();
    let saved = capture(&machine);
    let before = machine.kernel.count();
    all_are(&restore(&machine, &saved), Outcome::Unchanged);
    assert_eq!(machine.kernel.count(), before, "{:?}", machine.kernel.log());
}

#[test]
fn a_trial_changes_nothing() {
    let saved = capture(&machine());
    let after = Machine::new();
    all_are(
        &after.tree().restore(&saved, true).expect("tried"),
        Outcome::Created,
    );
    assert!(after.kernel.log().is_empty(), "{:?}", after.kernel.log());
}

#[test]
fn differences_are_named_and_left() {
    let machine = machine();
    let mut saved = capture(&machine);
    saved.backstores[0].size = 2 << 20;
    saved.backstores[0]
        .attributes
        .insert("cmd_time_out".to_owned(), "9".to_owned());
    saved.backstores[0]
        .attributes
        .insert("no_such".to_owned(), "1".to_owned());
    saved.backstores[1].config = "y".to_owned();
    let before = machine.kernel.count();
    let steps = restore(&machine, &saved);
    assert_eq!(steps[0].outcome, Outcome::Differs);
    assert_eq!(
        steps[0].details,
        [
            "its size is 1048576, not 2097152",
            "attrib/cmd_time_out is \"7\", not \"9\"",
            "this kernel has no attrib/no_such",
        ]
    );
    assert_eq!(steps[1].details, ["its config is x, not y"]);
    all_are(&steps[2..], Outcome::Unchanged);
    assert_eq!(machine.kernel.count(), before);
}

#[test]
fn a_group_that_differs_gets_no_luns() {
    let saved = capture(&machine());
    let after = Machine::new();
    // A target of the same name lets everybody in.
    let other = BackstoreSpec::new("other", "ram", "x").size(4096).hba(9);
    after
        .tree()
        .create(&other.iscsi(IscsiSpec::new(IQN)))
        .expect("created");
    let mut strict = saved.clone();
    for target in &mut strict.targets {
        if target.fabric == "iscsi" {
            target.groups[0]
                .attributes
                .insert("authentication".to_owned(), "1".to_owned());
        }
    }
    let steps = restore(&after, &strict);
    let of_iscsi: Vec<_> = steps
        .iter()
        .filter(|s| s.name.starts_with("iscsi/"))
        .collect();
    assert_eq!(of_iscsi[0].outcome, Outcome::Differs);
    assert!(
        of_iscsi[0].details[0].contains("authentication"),
        "{of_iscsi:?}"
    );
    for step in &of_iscsi[1..] {
        assert_eq!(step.outcome, Outcome::Failed, "{step:?}");
    }
    assert!(
        !after
            .target("iscsi")
            .join(IQN)
            .join("tpgt_1/lun/lun_1")
            .exists()
    );
}

#[test]
fn a_group_is_not_made_with_less_protection() {
    let mut saved = capture(&machine());
    saved.targets.retain(|target| target.fabric == "iscsi");
    let attributes = &mut saved.targets[0].groups[0].attributes;
    attributes.insert("authentication_of_tomorrow".to_owned(), "1".to_owned());
    let after = Machine::new();
    let steps = restore(&after, &saved);
    let target = steps
        .iter()
        .find(|step| step.kind == "target")
        .expect("a step");
    assert_eq!(target.outcome, Outcome::Failed);
    assert!(
        target.details[0].contains("authentication_of_tomorrow"),
        "{target:?}"
    );
    assert!(!after.target("iscsi").join(IQN).exists());
    assert_eq!(
        after.tree().list().expect("listed").len(),
        2,
        "the backstores are there"
    );
}

#[test]
fn what_fails_does_not_hold_up_the_rest() {
    let saved = capture(&machine());
    let after = Machine::new();
    after
        .kernel
        .answer(&[Answer::Errno(Errno::NOENT.raw_os_error())]);
    let steps = restore(&after, &saved);
    assert_eq!(
        outcomes(&steps),
        [
            ("backstore", Outcome::Failed),
            ("backstore", Outcome::Created),
            ("target", Outcome::Created),
            ("lun", Outcome::Failed),
            ("lun", Outcome::Created),
            ("portal", Outcome::Created),
            ("target", Outcome::Created),
            ("lun", Outcome::Failed),
        ]
    );
    assert!(steps[0].details[0].contains("finds nothing at /srv/a,b.img"));
    assert!(steps[3].details[0].contains("no backstore named disk0"));
    // Mended, the same file brings the rest.
    let again = restore(&after, &saved);
    let created = again
        .iter()
        .filter(|step| step.outcome == Outcome::Created)
        .count();
    assert_eq!(created, 3, "{again:?}");
    all_are(&restore(&after, &saved), Outcome::Unchanged);
}

#[test]
fn whatever_step_fails_the_next_attempt_makes_it_whole() {
    let saved = capture(&machine());
    let all = {
        let machine = Machine::new();
        restore(&machine, &saved);
        machine.kernel.count()
    };
    // Each step of each kind would take half a minute: steps of a kind come in groups.
    for number in (0..all).step_by(8) {
        let after = Machine::new();
        after.kernel.fail_at(number);
        let steps = restore(&after, &saved);
        let failed = &after.kernel.log()[number];
        if !failed.ends_with("target/loopback") && !failed.ends_with("target/iscsi") {
            assert!(steps.iter().any(|step| step.outcome.is_bad()), "{failed}");
        }
        let again = restore(&after, &saved);
        for step in &again {
            // What was made but for an attribute stays as it is.
            assert_ne!(step.outcome, Outcome::Failed, "after {failed}: {again:#?}");
        }
    }
}

#[test]
fn without_a_daemon_nothing_is_made() {
    let saved = capture(&machine());
    let after = Machine::new();
    after.stop_daemon();
    let error = after.tree().restore(&saved, false).expect_err("no daemon");
    assert!(matches!(error, Error::NoDaemon), "{error}");
    assert!(after.kernel.log().is_empty());
    // Where all stands already, none is needed.
    let machine = machine();
    let saved = capture(&machine);
    machine.stop_daemon();
    all_are(&restore(&machine, &saved), Outcome::Unchanged);
}

#[test]
fn initiators_come_back_with_their_luns() {
    let before = machine();
    let tpg = before.target("iscsi").join(IQN).join("tpgt_1");
    let acl = tpg.join("acls").join(HOST);
    for (file, text) in [
        ("auth/userid", "me"),
        ("auth/password", "secret"),
        ("auth/userid_mutual", "NULL"),
        ("cmdsn_depth", "32"),
        ("lun_3/write_protect", "1"),
    ] {
        let path = acl.join(file);
        fs::create_dir_all(path.parent().expect("a folder")).expect("folders");
        fs::write(path, format!("{text}\n")).expect("written");
    }
    symlink(tpg.join("lun/lun_1"), acl.join("lun_3/x")).expect("linked");
    let saved = capture(&before);
    let iscsi = saved
        .targets
        .iter()
        .find(|t| t.fabric == "iscsi")
        .expect("saved");
    let [acl] = &iscsi.groups[0].acls[..] else {
        panic!("{iscsi:?}");
    };
    assert_eq!(
        *acl,
        Acl {
            initiator: HOST.to_owned(),
            queue_depth: Some(32),
            attributes: Default::default(),
            authentication: [("userid", "me"), ("password", "secret")]
                .map(|(name, value)| (name.to_owned(), value.to_owned()))
                .into(),
            luns: vec![MappedLun {
                lun: 3,
                target_lun: 1,
                read_only: true,
            }],
        }
    );
    let after = Machine::new();
    all_are(&restore(&after, &saved), Outcome::Created);
    assert_eq!(capture(&after), saved);
    all_are(&restore(&after, &saved), Outcome::Unchanged);

    // A password that is another one is not shown.
    let mut other = saved.clone();
    for acl in other.targets.iter_mut().flat_map(|t| &mut t.groups[0].acls) {
        acl.authentication
            .insert("password".to_owned(), "hidden".to_owned());
    }
    let steps = restore(&after, &other);
    let acl = steps
        .iter()
        .find(|step| step.kind == "acl")
        .expect("a step");
    assert_eq!(acl.details, ["auth/password is another"]);
}

#[test]
fn names_that_lead_elsewhere_are_refused() {
    let sound = capture(&machine());
    let bad = |change: &dyn Fn(&mut Saved)| {
        let mut saved = sound.clone();
        change(&mut saved);
        let after = Machine::new();
        let steps = restore(&after, &saved);
        assert!(
            steps.iter().any(|s| s.outcome == Outcome::Failed),
            "{steps:?}"
        );
        for line in after.kernel.log() {
            assert!(!line.contains(".."), "{line}");
        }
    };
    bad(&|saved| saved.backstores[0].name = "../x".to_owned());
    bad(&|saved| {
        let attributes = &mut saved.backstores[0].attributes;
        attributes.insert("../enable".to_owned(), "1".to_owned());
    });
    bad(&|saved| saved.targets[0].name = "..".to_owned());
    bad(&|saved| saved.targets[0].groups[0].portals = vec!["../..".to_owned()]);
    bad(&|saved| {
        saved.targets[0].groups[0].acls = vec![Acl {
            initiator: "../../x".to_owned(),
            ..Acl::default()
        }];
    });
}

#[test]
fn other_fabrics_are_named_as_left_out() {
    let machine = machine();
    let lun = machine.target("vhost/naa.5/tpgt_1/lun/lun_0");
    fs::create_dir_all(&lun).expect("folders");
    symlink(machine.target("core/user_0/disk0"), lun.join("x")).expect("linked");
    let taken = machine.tree().capture().expect("captured");
    assert_eq!(taken.saved.targets.len(), 2);
    let [left_out] = &taken.left_out[..] else {
        panic!("{:?}", taken.left_out);
    };
    assert_eq!((left_out.kind, &*left_out.name), ("target", "vhost/naa.5"));

    let mut saved = taken.saved;
    saved.targets.push(Target {
        fabric: "vhost".to_owned(),
        name: "naa.5".to_owned(),
        groups: vec![Group::default()],
        ..Target::default()
    });
    let steps = restore(&machine, &saved);
    assert_eq!(steps.last().expect("steps").outcome, Outcome::Skipped);
}
