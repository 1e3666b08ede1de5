//! What the steps do again and again.

use std::fs;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};

use super::UNIT;
use crate::print;

/// How long anything may take. Generous: a hang should run into it.
const PATIENCE: Duration = Duration::from_secs(90);

/// The name that the daemon owns on the bus.
const BUS_NAME: &str = "org.kernel.TCMUService1";

/// A call to the daemon.
pub(super) const CALL: &str = "dbus-send --system --print-reply --dest=org.kernel.TCMUService1 \
     /org/kernel/TCMUService1 org.freedesktop.DBus.ObjectManager.GetManagedObjects";

/// A handler in another process would begin so.
pub(super) const REGISTER: &str = "dbus-send --system --print-reply --dest=org.freedesktop.DBus \
     /org/freedesktop/DBus org.freedesktop.DBus.RequestName \
     string:org.kernel.TCMUService1.HandlerManager1.other uint32:4";

/// Runs what follows as somebody without rights.
pub(super) const AS_NOBODY: &str = "setpriv --reuid=65534 --regid=65534 --clear-groups";

/// The guest, and what the host has put into the folder that they share.
pub(super) struct Guest {
    pub(super) packages: PathBuf,
}

impl Guest {
    pub(super) fn package(&self, name: &str) -> String {
        self.packages.join(name).display().to_string()
    }

    /// Runs a line of shell, which must succeed, and shows it.
    pub(super) fn sh(&self, line: &str) -> anyhow::Result<()> {
        print::command(line);
        let status = shell(line).status().context("cannot run sh")?;
        ensure!(status.success(), "`{line}` failed ({status})");
        Ok(())
    }

    pub(super) fn output(&self, line: &str) -> anyhow::Result<String> {
        let output = shell(line).output().context("cannot run sh")?;
        ensure!(
            output.status.success(),
            "`{line}` failed ({})",
            output.status
        );
        String::from_utf8(output.stdout).with_context(|| format!("`{line}` printed no text"))
    }

    pub(super) fn wait_for(
        &self,
        what: &str,
        mut is_so: impl FnMut(&Self) -> anyhow::Result<bool>,
    ) -> anyhow::Result<()> {
        let deadline = Instant::now() + PATIENCE;
        while !is_so(self)? {
            ensure!(Instant::now() < deadline, "waited in vain: {what}");
            thread::sleep(Duration::from_millis(100));
        }
        print::note(what);
        Ok(())
    }

    /// The bus knows the daemon under its name, and keeps everybody but root away from it by itself.
    pub(super) fn bus_is_closed(&self) -> anyhow::Result<()> {
        let pid = self.main_pid()?;
        self.sh(&format!(
            "busctl --no-pager status {BUS_NAME} | grep -x PID={pid}"
        ))?;
        self.sh(&format!("{CALL} | grep -c 'object path'"))?;
        self.sh(&format!(
            "{AS_NOBODY} {CALL} 2>&1 | grep 'Rejected send message'"
        ))?;
        self.sh(&format!(
            "{AS_NOBODY} {REGISTER} 2>&1 | grep 'not allowed to own'"
        ))
    }

    pub(super) fn main_pid(&self) -> anyhow::Result<u32> {
        let pid = self.output(&format!("systemctl show {UNIT} --property MainPID --value"))?;
        pid.trim()
            .parse()
            .with_context(|| format!("no process id: {pid}"))
    }

    /// Whether a unit is active.
    pub(super) fn is_active(&self, unit: &str) -> anyhow::Result<bool> {
        let shown = self.output(&format!("systemctl show {unit} --property ActiveState"))?;
        Ok(shown.trim() == "ActiveState=active")
    }

    /// Whether systemd has restarted the service by itself so often since it was started.
    pub(super) fn has_restarted(&self, times: u32) -> anyhow::Result<bool> {
        let shown = self.output(&format!(
            "systemctl show {UNIT} --property NRestarts,ActiveState"
        ))?;
        Ok(shown.contains(&format!("NRestarts={times}\n")) && shown.contains("ActiveState=active"))
    }

    /// Creates the LUN with this program and these options, and returns its disk.
    pub(super) fn create_disk(&self, tool: &str, options: &str) -> anyhow::Result<String> {
        let line = format!("{tool} create disk {options} --loopback");
        print::command(&line);
        let printed = self.output(&line)?;
        print!("{printed}");
        let disk = printed.lines().find(|line| line.starts_with("/dev/"));
        disk.map(str::to_owned).context("tcmuctl named no disk")
    }

    /// The LUN's disk.
    pub(super) fn disk(&self) -> anyhow::Result<String> {
        let disk = self.output("tcmuctl show disk --json | grep -o '/dev/sd[a-z]*' | head -n 1")?;
        ensure!(!disk.is_empty(), "the LUN has no disk");
        Ok(disk.trim().to_owned())
    }

    /// Starts writes that are verified, on a disk.
    pub(super) fn start_load(&self, disk: &str) -> anyhow::Result<Load> {
        let line = format!(
            "exec fio --name=load --filename={disk} --direct=1 --ioengine=libaio --rw=randwrite \
             --bs=4k --iodepth=16 --size=64M --time_based --runtime=6 --rate_iops=1500 \
             --verify=crc32c --verify_fatal=1 --verify_backlog=256 --verify_state_save=0 \
             --output=/run/load.log --eta=never"
        );
        print::command(&line);
        let child = shell(&line).spawn().context("cannot run fio")?;
        Ok(Load(child))
    }
}

/// I/O that goes on.
pub(super) struct Load(Child);

impl Load {
    /// Waits for its end; it must not have met an error.
    pub(super) fn finish(mut self) -> anyhow::Result<()> {
        let status = self.0.wait().context("cannot wait for fio")?;
        let log = fs::read_to_string("/run/load.log").unwrap_or_default();
        ensure!(status.success(), "fio ended with {status}: {log}");
        let figures = log.lines().filter(|line| line.contains("IOPS="));
        for line in figures {
            print::note(line.trim());
        }
        Ok(())
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

pub(super) fn shell(line: &str) -> Command {
    let mut command = Command::new("sh");
    command
        .args(["-c", line])
        .env("DEBIAN_FRONTEND", "noninteractive")
        .env("SYSTEMD_COLORS", "0")
        .stdin(Stdio::null());
    command
}
