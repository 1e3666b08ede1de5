//! `tcmuctl save`, `restore` and `doctor` as their users meet them. The tree is one of plain folders:
//! see `cli.rs`.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::process::{Command, Output};

use serde_json::{Value, json};
use tempfile::TempDir;

/// A machine of plain folders with one backstore, `disk0`, exposed on loopback.
struct Machine(TempDir);

impl Machine {
    fn new() -> Self {
        let machine = Machine(tempfile::tempdir().expect("a folder"));
        let core = "sys/kernel/config/target/core/user_3/disk0";
        let group = "sys/kernel/config/target/loopback/naa.5001405000000001/tpgt_1";
        for (path, text) in [
            ("proc/7/comm", "tcmu-runner"),
            (
                "sys/module/target_core_user/parameters/block_netlink",
                "unblocked",
            ),
            (&format!("{core}/enable"), "1"),
            (&format!("{core}/info"), "Status: ACTIVATED  Max Queue"),
            (&format!("{core}/attrib/dev_config"), "file//srv/x,y.img"),
            (&format!("{core}/attrib/dev_size"), "1048576"),
            (&format!("{core}/attrib/hw_block_size"), "512"),
            (&format!("{core}/attrib/hw_max_sectors"), "8192"),
            (&format!("{core}/attrib/cmd_time_out"), "0"),
            (
                &format!("{core}/wwn/vpd_unit_serial"),
                "T10 VPD Unit Serial Number: S1",
            ),
            (&format!("{group}/nexus"), "naa.5001405000000002"),
            (&format!("{group}/address"), "2:0:1"),
        ] {
            machine.write(path, &format!("{text}\n"));
        }
        let lun = machine.path(group).join("lun/lun_0");
        fs::create_dir_all(&lun).expect("a folder");
        symlink(machine.path(core), lun.join("storage")).expect("a link");
        machine
    }

    fn path(&self, path: &str) -> std::path::PathBuf {
        self.0.path().join(path)
    }

    fn write(&self, path: &str, text: &str) {
        let path = self.path(path);
        fs::create_dir_all(path.parent().expect("below the folder")).expect("folders");
        fs::write(path, text).expect("written");
    }

    fn run(&self, arguments: &[&str]) -> Run {
        let output = Command::new(env!("CARGO_BIN_EXE_tcmuctl"))
            .args(arguments)
            .env("TCMUCTL_ROOT", self.0.path())
            .env_remove("COLUMNS")
            .output();
        let Output {
            status,
            stdout,
            stderr,
        } = output.expect("it runs");
        let text = |bytes| String::from_utf8(bytes).expect("text");
        Run {
            status: status.code(),
            stdout: text(stdout),
            stderr: text(stderr),
        }
    }
}

#[derive(Debug)]
struct Run {
    status: Option<i32>,
    stdout: String,
    stderr: String,
}

impl Run {
    #[track_caller]
    fn expect(self, status: i32, out: &str, err: &str) -> Self {
        assert_eq!(self.status, Some(status), "{self:?}");
        assert!(self.stdout.contains(out), "{out}: {self:?}");
        assert!(self.stderr.contains(err), "{err}: {self:?}");
        assert!(!self.stderr.contains("panicked"), "{self:?}");
        self
    }

    #[track_caller]
    fn json(&self) -> Value {
        serde_json::from_str(&self.stdout).expect("JSON")
    }
}

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
