//! All commands but `save`, `restore` and `doctor`.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};

use serde_json::json;

use crate::machine::{Machine, Run};

/// The arguments that create a LUN of 1 MiB.
fn create<'a>(name: &'a str, handler: &'a str, config: &'a str) -> [&'a str; 8] {
    [
        "create",
        name,
        "--handler",
        handler,
        "--config",
        config,
        "--size",
        "1M",
    ]
}

#[test]
fn wrong_usage_ends_with_2() {
    let machine = Machine::new();
    let with = |more: &[&'static str]| [&create("d", "file", "/x")[..], more].concat();
    for (arguments, words) in [
        (vec![], "Usage"),
        (vec!["explode"], "unrecognized subcommand"),
        (vec!["create", "d", "--config", "/x"], "--handler"),
        (vec!["create", "d", "--handler", "file"], "--config"),
        (create("a/b", "file", "/x").to_vec(), "bad name"),
        (create("a b", "file", "/x").to_vec(), "bad name"),
        (create("d", "a/b", "/x").to_vec(), "bad handler"),
        (
            vec!["create", "d", "--handler", "rbd", "--config", "p/i"],
            "say the LUN's --size",
        ),
        (with(&["--size", "2M"]), "cannot be used multiple times"),
        (with(&["--block-size", "513"]), "bad block size"),
        (
            with(&["--block-size", "4096", "--ring-mb", "9"]),
            "bad command ring",
        ),
        (with(&["--data-area-mb", "0"]), "bad data area"),
        (with(&["--max-sectors", "1"]), "blocks per command"),
        (with(&["--cmd-timeout", "4000000"]), "bad command timeout"),
        (with(&["--serial", " "]), "bad serial"),
        (with(&["--iscsi", "disk"]), "bad iSCSI name"),
        (with(&["--portal", "127.0.0.1"]), "--iscsi"),
        (
            with(&["--iscsi", "iqn.2026-11.a:b", "--portal", "host"]),
            "bad portal",
        ),
        (
            with(&["--iscsi", "iqn.2026-11.a:b", "--lun", "70000"]),
            "70000",
        ),
        (with(&["--timeout", "0"]), "at least 1"),
        (vec!["resize", "disk0", "1.5G"], "bad size"),
        (
            vec!["resize", "disk0", "1000"],
            "not a multiple of the block size 512",
        ),
        (vec!["resize", "disk0", "512K"], "--shrink"),
        (vec!["completions", "tcsh"], "tcsh"),
        (vec!["top", "--interval", "0"], "from 0.1 to 3600"),
        (vec!["top", "--count", "0"], "0"),
        (vec!["drain"], "<NAME>"),
        (vec!["delete"], "<NAME>"),
        (vec!["drain", "a", "--all"], "cannot be used with"),
        (
            vec!["drain", "a", "--hold", "--", "true"],
            "cannot be used with",
        ),
        (vec!["drain", "a", "--limit", "0"], "1..=3600"),
        (vec!["log-level", "info", "--reset"], "cannot be used with"),
    ] {
        machine.run(&arguments).expect(2, "", words);
    }
    let config = "x".repeat(251);
    let run = machine.run(&["create", "d", "--handler", "file", "--config", &config]);
    run.expect(2, "", "255");
}

#[test]
fn the_size_has_to_be_whole_blocks() {
    let machine = Machine::new();
    machine.write("image", "1000 bytes, or so");
    let image = machine.path("image");
    let image = image.to_str().expect("text");
    let run = machine.run(&["create", "d", "--handler", "file", "--config", image]);
    run.expect(2, "", "not a multiple of the block size");
}

#[test]
fn failures_end_with_1_and_say_why() {
    let machine = Machine::new();
    let create = |name| create(name, "ram", "x");
    machine
        .run(&create("disk0"))
        .expect(1, "", "disk0 exists already (user_3)");
    machine
        .run(&["show", "none"])
        .expect(1, "", "no backstore named none");
    machine
        .run(&["delete", "none"])
        .expect(1, "", "no backstore named none");
    let run = machine.run(&["delete", "none", "neither", "none", "--json"]);
    let run = run.expect(1, "", "no backstore named none;");
    assert_eq!(run.json(), json!({"deleted": []}));
    assert_eq!(run.stderr.lines().count(), 2, "{}", run.stderr);
    assert!(run.stderr.contains("named neither"), "{}", run.stderr);
    machine
        .run(&["resize", "none", "1M"])
        .expect(1, "", "no backstore named none");
    fs::remove_dir_all(machine.path("proc/7")).expect("removed");
    machine
        .run(&create("new"))
        .expect(1, "", "no TCMU daemon is running");
    machine
        .run(&["resize", "disk0", "8M"])
        .expect(1, "", "no TCMU daemon is running");
    fs::remove_dir_all(machine.path("sys/module")).expect("removed");
    machine
        .run(&create("new"))
        .expect(1, "", "module target_core_user is missing");
}

#[test]
fn a_creation_that_fails_leaves_nothing() {
    let machine = Machine::new();
    let run = machine.run(&create("new", "ram", "x"));
    run.expect(1, "", "user_0/new/attrib/dev_config");
    assert!(
        !machine
            .path("sys/kernel/config/target/core/user_0")
            .exists()
    );
}

#[test]
fn a_mounted_disk_is_not_deleted() {
    let machine = Machine::new();
    machine.write("sys/class/block/sda/dev", "8:0\n");
    machine.write(
        "proc/self/mountinfo",
        "20 1 8:0 / /srv rw - ext4 /dev/sda rw\n",
    );
    machine
        .run(&["delete", "disk0"])
        .expect(1, "", "is mounted on /srv");
}

#[test]
fn the_list_is_a_table() {
    let machine = Machine::new();
    let run = machine.run(&["list"]).expect(0, "", "");
    let rows: Vec<Vec<&str>> = run
        .stdout
        .lines()
        .map(|line| line.split_whitespace().collect())
        .collect();
    assert_eq!(
        rows[0].join(" "),
        "NAME HANDLER CONFIG SIZE BLOCK STATE DAEMON EXPOSED AS"
    );
    let disk = machine.path("dev/sda").display().to_string();
    assert_eq!(
        rows[1],
        [
            "disk0",
            "file",
            "/srv/x,y.img",
            "1.0",
            "MiB",
            "512",
            "activated",
            "silent",
            "loopback",
            &disk
        ]
    );
    assert_eq!(rows.len(), 2);
    // It goes on without a daemon.
    fs::remove_dir_all(machine.path("proc/7")).expect("removed");
    machine
        .run(&["list"])
        .expect(0, "activated  none    loopback", "");
    machine
        .run(&["show", "disk0"])
        .expect(0, "none: no daemon runs", "");
}

#[test]
fn the_list_is_json() {
    let machine = Machine::new();
    let value = machine.run(&["list", "--json"]).expect(0, "", "").json();
    assert_eq!(
        value,
        json!([{
            "name": "disk0", "hba": 3, "handler": "file", "config": "/srv/x,y.img",
            "size": 1_048_576, "block_size": 512, "max_sectors": 8192, "state": "activated",
            "serial": "S1", "uio": machine.path("dev/uio3"),
            "daemon": {"state": "silent", "reason": "there is no bus (process 7)", "since": null},
            "exports": [{
                "fabric": "loopback", "target": "naa.5001405000000001", "tpg": 1, "lun": 0,
                "portals": [], "initiators": [], "scsi_address": "2:0:1:0",
                "block_device": machine.path("dev/sda"),
            }],
        }])
    );
    let empty = tempfile::tempdir().expect("a folder");
    assert_eq!(
        Run::of(&["--json", "list"], Some(empty.path()))
            .expect(0, "", "")
            .json(),
        json!([])
    );
}

#[test]
fn show_tells_everything() {
    let machine = Machine::new();
    let value = machine
        .run(&["show", "disk0", "--json"])
        .expect(0, "", "")
        .json();
    assert_eq!(value["name"], "disk0");
    assert_eq!(value["attributes"]["dev_config"], "file//srv/x,y.img");
    assert_eq!(value["statistics"]["scsi_lu/num_cmds"], "17");
    let text = machine.run(&["show", "disk0"]).expect(0, "", "").stdout;
    for words in [
        "1048576 (1.0 MiB)",
        "8192 blocks (4.0 MiB)",
        "S1",
        "uio3",
        "num_cmds",
        "silent: there is no bus",
    ] {
        assert!(text.contains(words), "{words}: {text}");
    }
}

#[test]
fn a_reader_that_had_enough_is_no_error() {
    let machine = Machine::new();
    let mut child = Command::new(env!("CARGO_BIN_EXE_tcmuctl"))
        .arg("list")
        .env("TCMUCTL_ROOT", machine.root())
        .stdout({
            let (reader, writer) = std::io::pipe().expect("a pipe");
            drop(reader);
            writer
        })
        .spawn()
        .expect("it runs");
    assert!(child.wait().expect("it ends").success());
}

#[test]
fn completions_and_manual_pages_cover_all_commands() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let run = Run::of(&["completions", shell], None).expect(0, "", "");
        assert!(run.stdout.contains("data-area-mb"), "{shell}");
        assert!(
            !run.stdout.contains("TCMUCTL_ROOT"),
            "{shell}: a hidden option"
        );
    }
    assert!(
        Run::of(&["man"], None)
            .expect(0, "", "")
            .stdout
            .contains(".SH")
    );
    let folder = tempfile::tempdir().expect("a folder");
    let pages = folder.path().join("man1");
    Run::of(&["man", pages.to_str().expect("text")], None).expect(0, "", "");
    for page in [
        "",
        "-create",
        "-list",
        "-show",
        "-delete",
        "-resize",
        "-status",
        "-stats",
        "-top",
        "-events",
        "-log-level",
        "-drain",
    ] {
        assert!(pages.join(format!("tcmuctl{page}.1")).is_file(), "{page}");
    }
}

#[test]
fn without_a_bus_the_daemon_cannot_be_asked() {
    for command in ["status", "stats", "top", "events", "log-level"] {
        let output = Command::new(env!("CARGO_BIN_EXE_tcmuctl"))
            .arg(command)
            .env("DBUS_SYSTEM_BUS_ADDRESS", "unix:path=/nonexistent")
            .output()
            .expect("it runs");
        assert_eq!(output.status.code(), Some(1), "{command}");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(
            said.contains("system bus cannot be reached"),
            "{command}: {said}"
        );
        assert!(output.stdout.is_empty(), "{command}");
    }
}

#[test]
fn the_helper_reports_the_errno() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("new");
    let path = path.to_str().expect("text");
    let mut helper = Command::new(env!("CARGO_BIN_EXE_tcmuctl"))
        .arg("__apply-change")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("it runs");
    let mut requests = helper.stdin.take().expect("its input");
    let mut answers = BufReader::new(helper.stdout.take().expect("its output"));
    let mut ask = |words: &[&str]| {
        let mut request = vec![words.len() as u8];
        for word in words {
            request.extend((word.len() as u32).to_ne_bytes());
            request.extend(word.as_bytes());
        }
        requests.write_all(&request).expect("it listens");
        let mut answer = String::new();
        answers.read_line(&mut answer).expect("it answers");
        answer.trim().to_owned()
    };
    assert_eq!(ask(&["mkdir", path]), "done");
    assert_eq!(ask(&["mkdir", path]), "errno 17");
    assert_eq!(ask(&["write", path, "1"]), "errno 21");
    assert_eq!(ask(&["rmdir", path]), "done");
    assert_eq!(ask(&["rmdir", path]), "errno 2");
    // What it does not understand ends it.
    assert_eq!(ask(&["format", path]), "");
    assert!(helper.wait().expect("it ends").success());
}

#[test]
fn an_ordinary_user_is_told_to_be_root() {
    if !rustix::process::geteuid().is_root() {
        let run = Run::of(&create("d", "ram", "x"), None);
        run.expect(1, "", "must be run as root");
    } else {
        eprintln!("skipped: this user is root");
    }
}
