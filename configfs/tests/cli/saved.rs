//! `save`, `restore` and `doctor`.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use serde_json::{Value, json};

use crate::machine::Machine;

#[test]
fn what_stands_is_saved_and_found_unchanged() {
    let machine = Machine::new();
    let file = machine.path("etc/tcmu/saveconfig.json");
    let run = machine.run(&["save"]);
    run.expect(0, "1 backstores and 1 LUNs saved to", "");
    let saved: Value = serde_json::from_slice(&fs::read(&file).expect("read")).expect("JSON");
    assert_eq!(
        saved,
        json!({
            "format": "tcmuctl", "version": 1,
            "backstores": [{
                "name": "disk0", "hba": 3, "handler": "file", "config": "/srv/x,y.img",
                "size": 1_048_576, "block_size": 512, "max_sectors": 8192, "serial": "S1",
                "attributes": {"cmd_time_out": "0"},
            }],
            "targets": [{
                "fabric": "loopback", "name": "naa.5001405000000001",
                "groups": [{
                    "tag": 1, "nexus": "naa.5001405000000002",
                    "luns": [{"lun": 0, "backstore": "disk0", "hba": 3}],
                }],
            }],
        })
    );
    let mode = fs::metadata(&file).expect("there").permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    machine.run(&["save"]).expect(0, "unchanged in", "");
    let steps = machine.run(&["restore", "--json"]).expect(0, "", "").json();
    assert_eq!(steps["dry_run"], false);
    for step in steps["steps"].as_array().expect("a list") {
        assert_eq!(step["outcome"], "unchanged", "{step}");
    }
    machine.run(&["restore"]).expect(
        0,
        "0 made, 3 unchanged, 0 different, 0 failed, 0 skipped",
        "",
    );
}

#[test]
fn differences_end_with_1() {
    let machine = Machine::new();
    machine.run(&["save"]).expect(0, "", "");
    machine.write(
        "sys/kernel/config/target/core/user_3/disk0/attrib/dev_size",
        "2097152\n",
    );
    let run = machine.run(&["restore"]);
    run.expect(1, "its size is 2097152, not 1048576", "");
    let run = machine
        .run(&["restore", "--dry-run", "--json"])
        .expect(1, "", "");
    assert_eq!(run.json()["steps"][0]["outcome"], "differs");
}

#[test]
fn a_dry_run_says_what_is_missing() {
    let machine = Machine::new();
    machine.write(
        "x.json",
        r#"{"storage_objects": [
            {"plugin": "user", "name": "new", "config": "ram/x", "size": 4096},
            {"plugin": "fileio", "name": "other", "size": 4096}], "targets": []}"#,
    );
    let file = machine.path("x.json");
    let file = file.to_str().expect("text");
    let run = machine.run(&["restore", "--dry-run", file]);
    let run = run.expect(
        0,
        "1 would be made, 0 unchanged, 0 different, 0 failed, 1 skipped",
        "",
    );
    assert!(run.stdout.contains("missing  backstore new"), "{run:?}");
    assert!(run.stdout.contains("targetcli restores it"), "{run:?}");
    assert!(
        !machine
            .path("sys/kernel/config/target/core/user_0")
            .exists()
    );
    fs::remove_dir_all(machine.path("proc/7")).expect("removed");
    let run = machine.run(&["restore", file]);
    run.expect(1, "", "no TCMU daemon is running");
}

#[test]
fn a_file_that_is_not_understood_changes_nothing() {
    let machine = Machine::new();
    let file = machine.path("x.json");
    let restore = || machine.run(&["restore", file.to_str().expect("text")]);
    restore().expect(1, "", "No such file");
    for (text, words) in [
        (
            r#"{"format":"tcmuctl","version":99,"backstores":[]}"#,
            "version 99",
        ),
        (
            r#"{"format":"tcmuctl","version":1,"backstores":[{}]}"#,
            "missing field",
        ),
        ("not JSON", "line 1 column"),
        ("{}", "neither"),
    ] {
        machine.write("x.json", text);
        restore().expect(1, "", words);
    }
    machine.run(&["restore"]).expect(1, "", "saveconfig.json");
}

#[test]
fn the_doctor_says_what_is_broken() {
    let machine = Machine::new();
    machine.write("proc/sys/kernel/osrelease", "5.4.0\n");
    let run = machine.run(&["doctor"]);
    let run = run.expect(1, "broken  kernel: Linux 5.4.0", "");
    assert!(run.stdout.contains("mend: "), "{run:?}");
    let value = machine.run(&["doctor", "--json"]).expect(1, "", "").json();
    assert_eq!(value["worst"], "broken");
    let kernel = &value["findings"][0];
    assert_eq!(
        (&kernel["check"], &kernel["severity"]),
        (&json!("kernel"), &json!("broken"))
    );
}
