//! A machine of plain folders, and `tcmuctl` on it.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;
use tempfile::TempDir;

/// A machine with a daemon, and one backstore, `disk0`, exposed on loopback as /dev/sda.
pub(crate) struct Machine(TempDir);

impl Machine {
    pub(crate) fn new() -> Self {
        let machine = Machine(tempfile::tempdir().expect("a folder"));
        let core = "sys/kernel/config/target/core/user_3/disk0";
        let group = "sys/kernel/config/target/loopback/naa.5001405000000001/tpgt_1";
        for (path, text) in [
            ("proc/7/comm", "tcmu-runner"),
            (
                "sys/module/target_core_user/parameters/block_netlink",
                "unblocked",
            ),
            (
                "sys/class/uio/uio3/name",
                "tcm-user/3/disk0/file//srv/x,y.img",
            ),
            (
                "sys/class/scsi_device/2:0:1:0/device/block/sda/size",
                "2048",
            ),
            ("sys/class/block/sda/size", "2048"),
            ("dev/sda", ""),
            (&format!("{core}/enable"), "1"),
            (
                &format!("{core}/info"),
                "Status: ACTIVATED  Max Queue Depth: 0",
            ),
            (&format!("{core}/attrib/dev_config"), "file//srv/x,y.img"),
            (&format!("{core}/attrib/dev_size"), "1048576"),
            (&format!("{core}/attrib/hw_block_size"), "512"),
            (&format!("{core}/attrib/hw_max_sectors"), "8192"),
            (&format!("{core}/attrib/cmd_time_out"), "0"),
            (&format!("{core}/statistics/scsi_lu/num_cmds"), "17"),
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

    /// The folder that stands for its root.
    pub(crate) fn root(&self) -> &Path {
        self.0.path()
    }

    /// Where a path of the machine's is.
    pub(crate) fn path(&self, path: &str) -> PathBuf {
        self.root().join(path)
    }

    pub(crate) fn write(&self, path: &str, text: &str) {
        let path = self.path(path);
        fs::create_dir_all(path.parent().expect("below the folder")).expect("folders");
        fs::write(path, text).expect("written");
    }

    /// Runs `tcmuctl` on it.
    pub(crate) fn run(&self, arguments: &[&str]) -> Run {
        Run::of(arguments, Some(self.root()))
    }
}

/// How `tcmuctl` has ended, and what it said.
#[derive(Debug)]
pub(crate) struct Run {
    status: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Run {
    /// Runs `tcmuctl` on the machine with this root, or on this one.
    pub(crate) fn of(arguments: &[&str], root: Option<&Path>) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_tcmuctl"));
        command
            .args(arguments)
            .env_remove("TCMUCTL_ROOT")
            .env_remove("COLUMNS");
        if let Some(root) = root {
            command.env("TCMUCTL_ROOT", root);
        }
        let Output {
            status,
            stdout,
            stderr,
        } = command.output().expect("it runs");
        let text = |bytes| String::from_utf8(bytes).expect("text");
        Run {
            status: status.code(),
            stdout: text(stdout),
            stderr: text(stderr),
        }
    }

    /// It has to have ended with this status, and said these words on its two outputs.
    #[track_caller]
    pub(crate) fn expect(self, status: i32, out: &str, err: &str) -> Self {
        assert_eq!(self.status, Some(status), "{self:?}");
        assert!(self.stdout.contains(out), "{out}: {self:?}");
        assert!(self.stderr.contains(err), "{err}: {self:?}");
        assert!(!self.stderr.contains("panicked"), "{self:?}");
        self
    }

    /// The JSON that it printed.
    #[track_caller]
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.stdout).expect("JSON")
    }
}
