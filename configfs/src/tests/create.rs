//! Creating backstores: what is written, what is refused, what is undone.

use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rustix::io::Errno;

use crate::fake::{Answer, Machine};
use crate::{BackstoreSpec, Error, IscsiSpec, State};

const IQN: &str = "iqn.2026-11.com.example:disk";

fn spec() -> BackstoreSpec {
    BackstoreSpec::new("disk0", "file", "/srv/a,b.img;x=1").size(1 << 20)
}

fn exposed() -> BackstoreSpec {
    spec().loopback().iscsi(IscsiSpec::new(IQN))
}

#[test]
fn a_backstore_is_configured_enabled_and_exposed() {
    let machine = Machine::new();
    let made = machine
        .tree()
        .create(&exposed().serial("S1"))
        .expect("created");

    assert_eq!((made.hba, made.state), (0, State::Activated));
    assert_eq!(
        (made.handler.as_str(), made.config.as_str()),
        ("file", "/srv/a,b.img;x=1")
    );
    assert_eq!(
        (made.size, made.block_size, made.max_sectors),
        (1 << 20, 512, 8192)
    );
    assert_eq!(made.serial, "S1");
    let disks: Vec<_> = made.block_devices().collect();
    assert_eq!(disks, [machine.roots.dev.join("sda")]);
    assert_eq!(made.portals().collect::<Vec<_>>(), ["127.0.0.1:3260"]);

    let attribute = |name: &str| machine.read(&format!("core/user_0/disk0/attrib/{name}"));
    assert_eq!(attribute("dev_config"), "file//srv/a,b.img;x=1");
    assert_eq!(attribute("max_data_area_mb"), "256");
    assert_eq!(attribute("cmd_ring_size_mb"), "1");
    assert_eq!(attribute("cmd_time_out"), "0");
    assert_eq!(attribute("emulate_write_cache"), "1");
    let target = format!("iscsi/{IQN}/tpgt_1");
    for (name, value) in [
        ("enable", "1"),
        ("attrib/authentication", "0"),
        ("attrib/generate_node_acls", "1"),
        ("attrib/demo_mode_write_protect", "0"),
        ("attrib/cache_dynamic_acls", "1"),
    ] {
        assert_eq!(machine.read(&format!("{target}/{name}")), value, "{name}");
    }
    assert!(machine.target(&target).join("np/127.0.0.1:3260").is_dir());
}

#[test]
fn a_config_with_a_comma_does_not_go_through_control() {
    let machine = Machine::new();
    machine.tree().create(&spec()).expect("created");
    let log = machine.kernel.log();
    assert!(
        !log.iter().any(|line| line.contains("dev_config=")),
        "{log:#?}"
    );
}

#[test]
fn everything_is_set_before_enable_and_exposed_after() {
    let machine = Machine::new();
    machine.tree().create(&exposed()).expect("created");
    let log = machine.kernel.log();
    let at = |what: &str| log.iter().position(|line| line.contains(what)).expect(what);
    let enable = at("user_0/disk0/enable");
    for before in [
        "dev_config",
        "dev_size=",
        "cmd_ring_size_mb=",
        "cmd_time_out",
        "emulate_write_cache",
        "unit_serial",
    ] {
        assert!(at(before) < enable, "{before}");
    }
    assert!(at("link ") > enable);
}

#[test]
fn the_write_cache_can_be_left_off() {
    let machine = Machine::new();
    let spec = spec().write_cache(false);
    machine.tree().create(&spec).expect("created");
    let set = machine.read("core/user_0/disk0/attrib/emulate_write_cache");
    assert_eq!(set, "0");
}

#[test]
fn the_largest_transfer_is_4_mib_for_any_block_size() {
    let machine = Machine::new();
    let made = machine
        .tree()
        .create(&spec().block_size(4096))
        .expect("created");
    assert_eq!((made.block_size, made.max_sectors), (4096, 1024));
}

#[test]
fn the_serial_is_the_same_when_created_again() {
    let machine = Machine::new();
    let tree = machine.tree();
    let first = tree.create(&exposed()).expect("created");
    tree.delete("disk0", &Default::default()).expect("deleted");
    let second = tree.create(&exposed()).expect("created again");
    assert_eq!(first, second);
}

#[test]
fn whatever_step_fails_all_before_it_are_undone() {
    let machine = Machine::new();
    machine.tree().create(&exposed()).expect("created");
    let steps = machine.kernel.count();
    assert!(steps > 20, "{steps}");

    for number in 0..steps {
        let machine = Machine::new();
        machine.kernel.fail_at(number);
        let result = machine.tree().create(&exposed());
        let failed = &machine.kernel.log()[number];
        // A fabric's folder is asked for again after looking for its module.
        if failed.ends_with("target/loopback") || failed.ends_with("target/iscsi") {
            result.expect("the second attempt works");
            continue;
        }
        let error = result.expect_err(failed);
        assert!(
            !matches!(error, Error::Leftovers { .. }),
            "{failed}: {error}"
        );
        assert_eq!(
            error.errno(),
            Some(Errno::IO.raw_os_error()),
            "{failed}: {error}"
        );
        let remains = machine.kernel.remains();
        assert!(remains.is_empty(), "after {failed}: {remains:?}");
        assert!(
            machine.tree().list().expect("listed").is_empty(),
            "after {failed}"
        );
        machine
            .tree()
            .create(&exposed())
            .expect("nothing is in the way of another attempt");
    }
}

#[test]
fn steps_that_cannot_be_undone_are_named() {
    let machine = Machine::new();
    machine
        .kernel
        .answer(&[Answer::Errno(Errno::NOENT.raw_os_error())]);
    let mut count = 0;
    {
        // The change after `enable` is the first that undoes.
        let other = Machine::new();
        other
            .kernel
            .answer(&[Answer::Errno(Errno::NOENT.raw_os_error())]);
        other.tree().create(&spec()).expect_err("refused");
        let log = other.kernel.log();
        count += log
            .iter()
            .position(|line| line.contains("enable"))
            .expect("enabled")
            + 1;
    }
    machine.kernel.fail_at(count);
    let error = machine.tree().create(&spec()).expect_err("refused");
    let Error::Leftovers {
        error: why,
        leftovers,
    } = &error
    else {
        panic!("{error}")
    };
    assert!(matches!(**why, Error::Refused { .. }), "{why}");
    assert!(leftovers[0].contains("user_0/disk0"), "{leftovers:?}");
}

#[test]
fn the_daemons_verdict_is_put_into_words() {
    for (errno, words) in [
        (Errno::NOENT, "finds nothing at /srv/a,b.img"),
        (Errno::ISDIR, "is a directory"),
        (Errno::INVAL, "not valid for the file handler"),
        (Errno::FBIG, "does not offer the 1.0 MiB"),
        (Errno::NOSPC, "no space left"),
        (Errno::BUSY, "in use by somebody else"),
        (Errno::NOMEM, "--ring-mb"),
        (Errno::CONNREFUSED, "onnection refused"),
    ] {
        let machine = Machine::new();
        machine
            .kernel
            .answer(&[Answer::Errno(errno.raw_os_error())]);
        let error = machine.tree().create(&spec()).expect_err("refused");
        assert!(matches!(error, Error::Refused { .. }), "{error}");
        assert_eq!(error.errno(), Some(errno.raw_os_error()));
        let text = error.to_string();
        assert!(
            text.contains(words) && text.contains("journalctl"),
            "{text}"
        );
        assert!(machine.kernel.remains().is_empty());
    }
}

#[test]
fn the_daemons_own_reason_is_given_where_there_is_one() {
    let refused = |notes: &str| {
        let machine = Machine::new();
        machine.write("run/tcmu-runner/refusals", notes);
        machine
            .kernel
            .answer(&[Answer::Errno(Errno::INVAL.raw_os_error())]);
        let error = machine.tree().create(&spec()).expect_err("refused");
        error.to_string()
    };
    let text = refused("99999999999999\tuser_0/disk0\tthe header is damaged\n");
    assert!(
        text.contains("not valid for the file handler")
            && text.ends_with("tcmu-runner says: the header is damaged"),
        "{text}"
    );
    // Of an attempt before this one, and of another LUN.
    let text = refused(
        "1000\tuser_0/disk0\tthe header is damaged\n99999999999999\tuser_1/disk0\tlocked\n",
    );
    assert!(
        text.contains("journalctl") && !text.contains("tcmu-runner says"),
        "{text}"
    );
}

#[test]
fn a_daemon_that_never_answers_is_given_up_on() {
    for before in ["unblocked", "blocked"] {
        let machine = Machine::new();
        fs::write(
            machine.roots.tcmu_parameter("block_netlink"),
            format!("{before}\n"),
        )
        .expect("written");
        machine.kernel.answer(&[Answer::None]);
        let tree = machine.tree().with_time_limit(Duration::from_millis(200));
        let error = tree.create(&spec()).expect_err("nobody answers");
        assert!(matches!(error, Error::TimedOut { .. }), "{error}");
        let text = error.to_string();
        assert!(
            text.contains("withdrawn") && text.contains("a handler file at all?"),
            "{text}"
        );
        assert!(machine.kernel.remains().is_empty());
        // A block that a starting daemon set stays.
        let after = fs::read_to_string(machine.roots.tcmu_parameter("block_netlink"));
        assert_eq!(after.expect("read").trim(), before);
    }
}

#[test]
fn a_daemon_that_is_starting_is_waited_for() {
    let machine = Machine::new();
    let [again, swept] = [Errno::AGAIN, Errno::INTR].map(|e| Answer::Errno(e.raw_os_error()));
    machine.kernel.answer(&[again, again, swept, again]);
    machine.tree().create(&spec()).expect("created at last");

    let machine = Machine::new();
    machine.kernel.answer(&[again; 100]);
    let tree = machine.tree().with_time_limit(Duration::from_millis(300));
    let error = tree.create(&spec()).expect_err("blocked for good");
    assert!(matches!(error, Error::Blocked { .. }), "{error}");
    assert!(machine.kernel.remains().is_empty());
}

#[test]
fn a_uio_number_that_is_just_being_given_back_is_waited_for() {
    let taken = Answer::Errno(Errno::EXIST.raw_os_error());
    let machine = Machine::new();
    machine.kernel.answer(&[taken, taken]);
    machine.tree().create(&spec()).expect("created at last");

    // A verdict that stays is the daemon's own.
    let machine = Machine::new();
    machine.kernel.answer(&[taken; 100]);
    let tree = machine.tree().with_time_limit(Duration::from_millis(300));
    let error = tree.create(&spec()).expect_err("refused for good");
    assert!(matches!(error, Error::Refused { .. }), "{error}");
    assert!(machine.kernel.remains().is_empty());
}

#[test]
fn an_interrupt_undoes_what_was_begun() {
    let machine = Machine::new();
    machine.kernel.answer(&[Answer::None]);
    let flag = Arc::new(AtomicBool::new(false));
    let tree = machine.tree().with_interrupt(flag.clone());
    let error = std::thread::scope(|scope| {
        let create = scope.spawn(|| tree.create(&spec()));
        while !machine
            .kernel
            .log()
            .iter()
            .any(|line| line.contains("enable"))
        {
            std::thread::yield_now();
        }
        flag.store(true, Ordering::Relaxed);
        create.join().expect("no panic").expect_err("interrupted")
    });
    assert!(matches!(error, Error::Interrupted), "{error}");
    assert!(machine.kernel.remains().is_empty());
}

#[test]
fn without_a_daemon_nothing_is_tried() {
    let machine = Machine::new();
    machine.stop_daemon();
    let error = machine.tree().create(&spec()).expect_err("no daemon");
    assert!(matches!(error, Error::NoDaemon), "{error}");
    assert!(machine.kernel.log().is_empty());
    machine
        .tree()
        .without_daemon_check()
        .create(&spec())
        .expect("trusted");
}

#[test]
fn without_a_disk_the_creation_fails_at_once() {
    let machine = Machine::new();
    machine.kernel.without_disks();
    let error = machine.tree().create(&exposed()).expect_err("no disk");
    assert!(
        matches!(&error, Error::NoDisk { address } if address == "2:0:1:0"),
        "{error}"
    );
    assert!(machine.kernel.remains().is_empty());
}

#[test]
fn a_name_is_taken_once() {
    let machine = Machine::new();
    machine.tree().create(&spec()).expect("created");
    let error = machine.tree().create(&spec()).expect_err("taken");
    assert!(matches!(error, Error::Exists { hba: 0, .. }), "{error}");
    assert_eq!(machine.tree().list().expect("listed").len(), 1);
}

#[test]
fn the_lowest_free_hba_is_taken_unless_one_is_given() {
    let machine = Machine::new();
    fs::create_dir(machine.target("core/user_0")).expect("somebody's");
    fs::create_dir(machine.target("core/user_2")).expect("somebody's");
    let tree = machine.tree();
    let hba = |name: &str, hba: Option<u32>| {
        let mut spec = BackstoreSpec::new(name, "ram", "x").size(4096);
        if let Some(hba) = hba {
            spec = spec.hba(hba);
        }
        tree.create(&spec).expect(name).hba
    };
    assert_eq!(hba("a", None), 1);
    assert_eq!(hba("b", None), 3);
    assert_eq!(hba("c", Some(2)), 2);
    tree.delete("c", &Default::default()).expect("deleted");
    tree.delete("a", &Default::default()).expect("deleted");
    assert_eq!(hba("d", None), 1);
}

#[test]
fn the_size_comes_from_the_file_unless_it_is_said() {
    let machine = Machine::new();
    machine.write("image", &"x".repeat(8192));
    let image = machine.folder.path().join("image");
    let tree = machine.tree();
    let file = |name: &str, path: &std::path::Path| {
        BackstoreSpec::new(name, "file", format!("{};direct=on", path.display()))
    };
    assert_eq!(tree.create(&file("a", &image)).expect("created").size, 8192);
    assert_eq!(
        tree.create(&file("b", &image).size(512))
            .expect("created")
            .size,
        512
    );

    for (spec, words) in [
        (file("c", &image.with_file_name("none")), "--size"),
        (file("c", machine.folder.path()), "--size"),
        (BackstoreSpec::new("c", "rbd", "pool/image"), "--size"),
        (
            BackstoreSpec::new("c", "other", image.to_string_lossy()),
            "--size",
        ),
        (file("c", &image).size(1000), "not a multiple"),
        (file("c", &image).size(0), "size 0"),
        (file("c", &image).block_size(513), "block size"),
    ] {
        let error = tree.create(&spec).expect_err(words);
        assert!(
            error.is_usage() && error.to_string().contains(words),
            "{error}"
        );
    }
}

#[test]
fn several_luns_share_an_iscsi_target() {
    let machine = Machine::new();
    let tree = machine.tree();
    let create = |name: &str, iscsi: IscsiSpec| {
        tree.create(&BackstoreSpec::new(name, "ram", "x").size(4096).iscsi(iscsi))
    };
    assert_eq!(
        create("a", IscsiSpec::new(IQN)).expect("created").exports[0].lun,
        0
    );
    assert_eq!(
        create("b", IscsiSpec::new(IQN).lun(7))
            .expect("created")
            .exports[0]
            .lun,
        7
    );
    assert_eq!(
        create("c", IscsiSpec::new(IQN)).expect("created").exports[0].lun,
        1
    );
    let taken = create("d", IscsiSpec::new(IQN).lun(7)).expect_err("taken");
    assert!(
        taken.is_usage() && taken.to_string().contains("LUN 7"),
        "{taken}"
    );
    let second = "192.0.2.1:3260".parse().expect("a portal");
    let made = create("d", IscsiSpec::new(IQN).portal(second)).expect("created");
    assert_eq!(
        made.exports[0].portals,
        ["127.0.0.1:3260", "192.0.2.1:3260"]
    );
}
