//! `cargo xtask demo`: what happens in the guest.

use std::fs::{self, File};
use std::process::{Child, Command, ExitCode, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};

use crate::print;

/// Environment variable with the folder of the daemon and `tcmuctl`.
pub(crate) const PROGRAMS_VAR: &str = "TCMU_DEMO_PROGRAMS";

const IMAGE: &str = "/run/demo.img";
const LOG: &str = "/run/tcmu-runner.log";
const MOUNT_POINT: &str = "/mnt";
const IQN: &str = "iqn.2026-11.com.example:demo";
const PORTAL: &str = "127.0.0.1:3260";

/// How long the daemon may take to start or to stop.
const PATIENCE: Duration = Duration::from_secs(30);

pub(crate) fn run() -> anyhow::Result<ExitCode> {
    let programs = std::env::var(PROGRAMS_VAR).context("this runs in the demo's guest")?;
    let path = std::env::var("PATH").unwrap_or_default();
    let mut shell = Shell {
        path: format!("{programs}:{path}"),
        daemon: None,
    };
    let result = shell.demo();
    if result.is_err() {
        print::heading("The daemon's log");
        println!("{}", fs::read_to_string(LOG).unwrap_or_default());
    }
    shell.stop_daemon()?;
    result.map(|()| ExitCode::SUCCESS)
}

/// Runs commands and shows them.
struct Shell {
    path: String,
    daemon: Option<Child>,
}

impl Shell {
    fn demo(&mut self) -> anyhow::Result<()> {
        print::heading("The kernel and the daemon");
        self.sh("uname -sr")?;
        self.start_daemon()?;

        print::heading("A disk that our daemon serves");
        let create = format!("tcmuctl create demo --handler file --config {IMAGE} --loopback");
        self.sh(&format!("truncate -s 256M {IMAGE}"))?;
        let disk = self.create_disk(&create)?;
        self.sh(&format!("sg_inq {disk}"))?;
        self.sh(&format!("sg_readcap --long {disk}"))?;

        print::heading("A file system on it");
        self.sh(&format!("mkfs.ext4 -q -F {disk}"))?;
        self.sh(&format!("mount {disk} {MOUNT_POINT}"))?;
        self.sh(&format!("cp -a /etc /usr/bin/fio {MOUNT_POINT}/"))?;
        self.sh(&format!(
            "dd if=/dev/urandom of={MOUNT_POINT}/random bs=1M count=32 status=none"
        ))?;
        let sums = format!("cd {MOUNT_POINT} && find . -type f -exec sha256sum {{}} + | sort");
        self.sh(&format!("({sums}) > /run/before"))?;
        self.sh(&format!("df -h {MOUNT_POINT}"))?;
        self.sh(&format!("umount {MOUNT_POINT}"))?;

        print::heading("Detached, attached anew, and compared");
        self.sh("tcmuctl delete demo")?;
        let disk = self.create_disk(&create)?;
        self.sh(&format!("mount -o ro {disk} {MOUNT_POINT}"))?;
        self.sh(&format!("({sums}) > /run/after"))?;
        self.sh("cmp /run/before /run/after && wc -l < /run/after")?;
        print::note(&print::verdict(
            true,
            "every file's checksum is what it was",
        ));
        self.sh(&format!("umount {MOUNT_POINT}"))?;
        self.sh(&format!("fsck.ext4 -f -n {disk}"))?;
        self.sh("tcmuctl delete demo")?;

        print::heading("The same data through iSCSI");
        self.sh(&format!(
            "tcmuctl create demo --handler file --config {IMAGE} --iscsi {IQN}"
        ))?;
        self.sh(&format!("iscsi-ls --show-luns iscsi://{PORTAL}"))?;
        self.sh(&format!("iscsi-inq iscsi://{PORTAL}/{IQN}/0"))?;
        self.sh(&format!("iscsi-readcapacity16 iscsi://{PORTAL}/{IQN}/0"))?;
        // These tools do not log out, and LIO keeps their sessions for a while.
        self.sh("tcmuctl delete --force demo")?;

        print::heading("fio writes with checksums, reads back and verifies");
        let disk = self.create_disk(&create)?;
        self.fio(
            &disk,
            "--rw=randwrite --bs=4k --iodepth=16 --size=64M --io_size=16M --verify=crc32c \
             --do_verify=1 --verify_fatal=1 --verify_state_save=0",
        )?;
        print::note(&print::verdict(
            true,
            "every block that was read back has its checksum",
        ));

        print::heading("Speed (a guest's figures: only ratios mean something)");
        for options in [
            "--rw=randread --bs=4k --iodepth=32",
            "--rw=randwrite --bs=4k --iodepth=32",
            "--rw=read --bs=1M --iodepth=8",
        ] {
            self.fio(&disk, &format!("{options} --time_based --runtime=3"))?;
        }
        self.sh("tcmuctl delete demo")?;

        print::heading("What is there");
        self.create_disk(&format!("{create} --iscsi {IQN}"))?;
        self.sh("tcmuctl list")?;
        self.sh("lsscsi --size --generic")?;
        self.sh("tcmuctl delete demo")?;
        self.sh("tcmuctl list")
    }

    fn sh(&self, line: &str) -> anyhow::Result<()> {
        print::command(line);
        let status = self.shell(line).status().context("cannot run sh")?;
        ensure!(status.success(), "`{line}` failed ({status})");
        Ok(())
    }

    fn output(&self, line: &str) -> anyhow::Result<String> {
        let output = self
            .shell(line)
            .stderr(Stdio::inherit())
            .output()
            .context("cannot run sh")?;
        ensure!(
            output.status.success(),
            "`{line}` failed ({})",
            output.status
        );
        String::from_utf8(output.stdout).with_context(|| format!("`{line}` printed no text"))
    }

    fn shell(&self, line: &str) -> Command {
        let mut command = Command::new("sh");
        command
            .args(["-c", line])
            .env("PATH", &self.path)
            .stdin(Stdio::null());
        command
    }

    fn start_daemon(&mut self) -> anyhow::Result<()> {
        print::command("tcmu-runner --no-dbus &");
        let log = File::create(LOG).context("cannot create the daemon's log")?;
        let mut command = Command::new("sh");
        command
            .args(["-c", "exec tcmu-runner --no-dbus"])
            .env("PATH", &self.path);
        command
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log);
        let daemon = self
            .daemon
            .insert(command.spawn().context("cannot start the daemon")?);
        let deadline = Instant::now() + PATIENCE;
        while !fs::read_to_string(LOG)?.contains("ready") {
            if let Some(status) = daemon.try_wait()? {
                bail!("the daemon ended at its start with {status}");
            }
            ensure!(Instant::now() < deadline, "the daemon does not get ready");
            thread::sleep(Duration::from_millis(20));
        }
        self.sh(&format!("cat {LOG}"))
    }

    fn stop_daemon(&mut self) -> anyhow::Result<()> {
        let Some(mut daemon) = self.daemon.take() else {
            return Ok(());
        };
        let pid = i32::try_from(daemon.id())
            .ok()
            .and_then(rustix::process::Pid::from_raw);
        if let Some(pid) = pid {
            // It may have ended by itself, which the wait below tells.
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        }
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline {
            if let Some(status) = daemon.try_wait()? {
                ensure!(status.success(), "the daemon ended with {status}");
                return Ok(());
            }
            thread::sleep(Duration::from_millis(20));
        }
        bail!("the daemon does not stop")
    }

    /// Runs a `tcmuctl create` and returns the disk that it prints.
    fn create_disk(&self, line: &str) -> anyhow::Result<String> {
        print::command(line);
        let printed = self.output(line)?;
        print!("{printed}");
        let disk = printed.lines().find(|l| l.starts_with("/dev/"));
        disk.map(str::to_owned)
            .with_context(|| format!("`{line}` named no disk"))
    }

    /// Runs fio and prints its figures, one line for reads and one for writes.
    fn fio(&self, disk: &str, options: &str) -> anyhow::Result<()> {
        let line = format!(
            "fio --name=demo --filename={disk} --direct=1 --ioengine=libaio {options} \
             --output-format=json"
        );
        print::command(&line);
        let report = self.output(&line)?;
        // fio may put notes before its JSON.
        let json = report.find('{').map_or("", |at| &report[at..]);
        let report: serde_json::Value = serde_json::from_str(json).context("fio's report")?;
        let number = |value: &serde_json::Value| value.as_f64().unwrap_or(f64::NAN);
        for side in ["read", "write"] {
            let figures = &report["jobs"][0][side];
            if number(&figures["total_ios"]) > 0.0 {
                print::note(&format!(
                    "{side:5} {:>6.1} MB, {:>7.0} IOPS, {:>6.0} MB/s, 99 % within {:.2} ms",
                    number(&figures["io_bytes"]) / 1e6,
                    number(&figures["iops"]),
                    number(&figures["bw_bytes"]) / 1e6,
                    number(&figures["clat_ns"]["percentile"]["99.000000"]) / 1e6,
                ));
            }
        }
        Ok(())
    }
}
