//! Trying the package out: what happens in the guest, as a service of its systemd.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};

use crate::print;

/// The packages, in the folder that the host and the guest share.
pub(super) const FIRST: &str = "first.deb";
pub(super) const NEXT: &str = "next.deb";

const UNIT: &str = "tcmu-runner.service";
const CONFIG: &str = "/etc/tcmu/tcmu.conf";
const IMAGE: &str = "/srv/disk.img";
const DROP_IN: &str = "/run/systemd/system/tcmu-runner.service.d/watchdog.conf";

/// How long anything may take. Generous: a hang should run into it.
const PATIENCE: Duration = Duration::from_secs(90);

type Step = fn(&Guest) -> anyhow::Result<()>;

/// The steps, which build on each other.
const STEPS: &[(&str, Step)] = &[
    ("systemd has come up", systemd_is_up),
    ("the package installs and the service starts", installs),
    ("what belongs to it is there", is_complete),
    ("the sandbox is in force", is_confined),
    ("a LUN is served", serves),
    ("the log is in the journal, with fields", logs),
    ("settings are read again", reloads),
    ("a restart under I/O costs no I/O", restarts),
    ("a crash under I/O costs no I/O", crashes),
    ("the watchdog ends a daemon that does not turn", is_watched),
    ("an upgrade under I/O keeps the settings", upgrades),
    ("it can be removed and purged", is_removed),
];

/// Runs the steps until one fails.
pub(crate) fn run() -> anyhow::Result<ExitCode> {
    let results = std::env::var_os("TCMU_RIG_RESULTS").context("this runs in the guest")?;
    let guest = Guest {
        packages: results.into(),
    };
    let mut passed = 0;
    for (name, step) in STEPS {
        print::heading(name);
        match step(&guest) {
            Ok(()) => passed += 1,
            Err(e) => {
                println!("FAILED: {e:?}");
                // What there is to say about it.
                let log = format!("journalctl --no-pager --boot --lines 200 --unit {UNIT}");
                let _ = guest.sh(&log);
                let left = STEPS.len() - passed;
                println!("test result: FAILED. {passed} passed; {left} failed; 0 ignored");
                return Ok(ExitCode::FAILURE);
            }
        }
    }
    println!("test result: ok. {passed} passed; 0 failed; 0 ignored");
    Ok(ExitCode::SUCCESS)
}

struct Guest {
    packages: PathBuf,
}

fn systemd_is_up(guest: &Guest) -> anyhow::Result<()> {
    ensure!(fs::read_to_string("/proc/1/comm")?.trim() == "systemd");
    guest.sh("systemctl --version | head -n 1; uname -sr; . /etc/os-release; echo $PRETTY_NAME")?;
    // The test itself is a job of the boot, so the boot never seems to have ended.
    guest.sh("systemctl is-active multi-user.target dbus.service")
}

fn installs(guest: &Guest) -> anyhow::Result<()> {
    guest.sh(&format!("dpkg --install {}", guest.package(FIRST)))?;
    guest.sh(&format!(
        "systemctl is-active {UNIT} && systemctl is-enabled {UNIT}"
    ))?;
    guest.sh(&format!(
        "systemctl show {UNIT} --property Type,WatchdogUSec,StatusText,NRestarts"
    ))
}

fn is_complete(guest: &Guest) -> anyhow::Result<()> {
    guest.sh("dpkg --listfiles tcmu-runner-rs | grep -v '/tcmuctl-'")?;
    guest.sh("dpkg-query --show --showformat '${Conffiles}\\n' tcmu-runner-rs | grep tcmu.conf")?;
    guest.sh("dpkg --verify tcmu-runner-rs")?;
    guest.sh("test -d /run/tcmu-runner && tcmu-runner --version && tcmuctl --version")?;
    guest.sh(
        "dbus-send --system --print-reply --dest=org.kernel.TCMUService1 \
              /org/kernel/TCMUService1 org.freedesktop.DBus.ObjectManager.GetManagedObjects \
              | grep -c 'object path'",
    )
}

fn is_confined(guest: &Guest) -> anyhow::Result<()> {
    let pid = guest.main_pid()?;
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        line.map(str::trim).unwrap_or_default().to_owned()
    };
    // CAP_DAC_OVERRIDE is number 1, CAP_NET_ADMIN number 12.
    let capabilities = u64::from_str_radix(&field("CapBnd:"), 16)?;
    ensure!(capabilities == 1 << 1 | 1 << 12, "{capabilities:#x}");
    ensure!(field("Seccomp:") == "2", "no system call filter");
    ensure!(field("NoNewPrivs:") == "1");

    // As the daemon sees the file systems.
    let inside = |line: &str| format!("nsenter --target {pid} --mount sh -c '{line}'");
    for folder in ["/usr", "/etc", "/boot"] {
        let touch = inside(&format!("touch {folder}/x 2>&1"));
        guest.sh(&format!("{touch} | grep 'Read-only file system'"))?;
    }
    // Nobody can make files there.
    let mounts = fs::read_to_string(format!("/proc/{pid}/mountinfo"))?;
    for (mount_point, access) in [
        ("/proc/sys", "ro,"),
        ("/sys", "ro,"),
        ("/sys/fs/cgroup", "ro,"),
        ("/sys/kernel/config", "rw,"),
    ] {
        // The mount point is the fifth field, its options are the sixth; the last mount hides others.
        let fields = mounts.lines().map(|line| line.split(' ').skip(4));
        let options = fields
            .filter_map(|mut fields| (fields.next()? == mount_point).then(|| fields.next()))
            .next_back()
            .flatten();
        ensure!(
            options.is_some_and(|options| options.starts_with(access)),
            "{mount_point} is {options:?} for the daemon, not {access}"
        );
    }
    for folder in ["/srv", "/run/tcmu-runner", "/home"] {
        guest.sh(&inside(&format!("touch {folder}/x && rm {folder}/x")))?;
    }

    // As the daemon's control group lets devices through.
    let group = "/sys/fs/cgroup/devices/system.slice/tcmu-runner.service";
    ensure!(
        Path::new(group).exists(),
        "no control group says which devices the daemon may open"
    );
    guest.sh(&format!("cat {group}/devices.list"))?;
    let within = |line: &str| format!("(echo 0 > {group}/cgroup.procs; {line})");
    guest.sh(&within("head -c 1 /dev/zero >/dev/null"))?;
    guest.sh(&within(
        "head -c 1 /dev/kmsg 2>&1 | grep 'Operation not permitted'",
    ))?;

    // A file that the daemon may not write to says so to whoever wants it served.
    guest.sh("truncate -s 16M /usr/no.img")?;
    guest.sh(
        "tcmuctl create no --handler file --config /usr/no.img --loopback 2>&1 \
         | grep 'read-only file system' && rm /usr/no.img && \
         journalctl --no-pager --unit tcmu-runner | grep '/usr/no.img can only be read'",
    )?;
    guest.sh(&format!(
        "systemd-analyze security --no-pager {UNIT} | tail -n 25"
    ))
}

fn serves(guest: &Guest) -> anyhow::Result<()> {
    guest.sh(&format!("truncate -s 256M {IMAGE}"))?;
    let disk = guest.create_disk()?;
    guest.sh(&format!(
        "dd if=/dev/urandom of=/run/data bs=1M count=8 status=none && \
         dd if=/run/data of={disk} bs=1M oflag=direct status=none && \
         dd if={disk} bs=1M count=8 iflag=direct status=none | cmp - /run/data && \
         cmp -n 8388608 {IMAGE} /run/data"
    ))?;
    guest.sh("tcmuctl list")?;
    guest.wait_for("the unit's status says 1 LUN", |guest| {
        let status = guest.output(&format!("systemctl show {UNIT} --property StatusText"))?;
        Ok(status.contains("1 LUN"))
    })
}

fn logs(guest: &Guest) -> anyhow::Result<()> {
    guest.sh("journalctl --no-pager --output verbose TCMU_LUN=disk | grep -m 8 -E 'TCMU_|MESSAGE'")
}

fn reloads(guest: &Guest) -> anyhow::Result<()> {
    let text = fs::read_to_string(CONFIG)?;
    let logged = |text: &'static str| {
        move |guest: &Guest| {
            let log = guest.output(&format!("journalctl --no-pager --unit {UNIT}"))?;
            Ok(log.contains(text))
        }
    };
    fs::write(CONFIG, format!("{text}\nreactors = none\n"))?;
    guest.wait_for(
        "the mistake is named",
        logged("the settings stay as they were"),
    )?;
    fs::write(CONFIG, format!("{text}\nlog_level = \"debug\"\n"))?;
    guest.wait_for("the new level holds", logged("log_level is \"debug\""))?;
    guest.sh(&format!(
        "systemctl reload {UNIT} && systemctl is-active {UNIT}"
    ))?;
    guest.sh(&format!(
        "journalctl --no-pager --unit {UNIT} | grep -i settings"
    ))
}

fn restarts(guest: &Guest) -> anyhow::Result<()> {
    let load = guest.start_load()?;
    for _ in 0..3 {
        thread::sleep(Duration::from_secs(1));
        guest.sh(&format!("systemctl restart {UNIT}"))?;
    }
    load.finish()
}

fn crashes(guest: &Guest) -> anyhow::Result<()> {
    let load = guest.start_load()?;
    thread::sleep(Duration::from_secs(1));
    guest.sh(&format!("systemctl kill --signal KILL {UNIT}"))?;
    guest.wait_for("systemd has started it again", |guest| {
        guest.has_restarted(1)
    })?;
    load.finish()?;
    guest.sh(&format!(
        "systemctl show {UNIT} --property NRestarts,StatusText"
    ))
}

fn is_watched(guest: &Guest) -> anyhow::Result<()> {
    fs::create_dir_all(Path::new(DROP_IN).parent().unwrap_or(Path::new("/")))?;
    fs::write(DROP_IN, "[Service]\nWatchdogSec=4\n")?;
    guest.sh(&format!(
        "systemctl daemon-reload && systemctl restart {UNIT}"
    ))?;
    // Idle, it lives on for several times as long as the watchdog waits.
    let pid = guest.main_pid()?;
    thread::sleep(Duration::from_secs(12));
    ensure!(guest.main_pid()? == pid, "a daemon in order was restarted");
    guest.sh(&format!("systemctl kill --signal STOP {UNIT}"))?;
    guest.wait_for("systemd has started it again", |guest| {
        guest.has_restarted(1)
    })?;
    guest.sh(&format!(
        "journalctl --no-pager --unit {UNIT} | grep -i watchdog"
    ))?;
    fs::remove_file(DROP_IN)?;
    guest.sh(&format!(
        "systemctl daemon-reload && systemctl restart {UNIT}"
    ))
}

fn upgrades(guest: &Guest) -> anyhow::Result<()> {
    let pid = guest.main_pid()?;
    let settings = fs::read(CONFIG)?;
    let load = guest.start_load()?;
    guest.sh(&format!("dpkg --install {}", guest.package(NEXT)))?;
    load.finish()?;
    guest.sh("dpkg-query --show tcmu-runner-rs && systemctl is-active tcmu-runner")?;
    ensure!(guest.main_pid()? != pid, "the old daemon still runs");
    ensure!(fs::read(CONFIG)? == settings, "the settings were changed");
    guest.sh("tcmuctl list")
}

fn is_removed(guest: &Guest) -> anyhow::Result<()> {
    guest.sh("dpkg --remove tcmu-runner-rs 2>&1 | tee /run/removal")?;
    guest.sh("grep 'nobody serves these LUNs from now on' /run/removal")?;
    guest.sh(&format!(
        "! systemctl is-active {UNIT}; test ! -e /usr/bin/tcmu-runner"
    ))?;
    guest.sh(&format!("test -e {CONFIG}"))?;
    // Somebody can come back to it.
    guest.sh(&format!("dpkg --install {}", guest.package(NEXT)))?;
    guest.sh("tcmuctl delete disk")?;
    guest.sh("dpkg --purge tcmu-runner-rs")?;
    guest.sh(&format!("test ! -e {CONFIG} && ! systemctl cat {UNIT}"))
}

impl Guest {
    fn package(&self, name: &str) -> String {
        self.packages.join(name).display().to_string()
    }

    /// Runs a line of shell, which must succeed, and shows it.
    fn sh(&self, line: &str) -> anyhow::Result<()> {
        print::command(line);
        let status = shell(line).status().context("cannot run sh")?;
        ensure!(status.success(), "`{line}` failed ({status})");
        Ok(())
    }

    fn output(&self, line: &str) -> anyhow::Result<String> {
        let output = shell(line).output().context("cannot run sh")?;
        ensure!(
            output.status.success(),
            "`{line}` failed ({})",
            output.status
        );
        String::from_utf8(output.stdout).with_context(|| format!("`{line}` printed no text"))
    }

    fn wait_for(
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

    fn main_pid(&self) -> anyhow::Result<u32> {
        let pid = self.output(&format!("systemctl show {UNIT} --property MainPID --value"))?;
        pid.trim()
            .parse()
            .with_context(|| format!("no process id: {pid}"))
    }

    /// Whether systemd has restarted the service by itself so often since it was started.
    fn has_restarted(&self, times: u32) -> anyhow::Result<bool> {
        let shown = self.output(&format!(
            "systemctl show {UNIT} --property NRestarts,ActiveState"
        ))?;
        Ok(shown.contains(&format!("NRestarts={times}\n")) && shown.contains("ActiveState=active"))
    }

    /// Creates the LUN and returns its disk.
    fn create_disk(&self) -> anyhow::Result<String> {
        let line = format!("tcmuctl create disk --handler file --config {IMAGE} --loopback");
        print::command(&line);
        let printed = self.output(&line)?;
        print!("{printed}");
        let disk = printed.lines().find(|line| line.starts_with("/dev/"));
        disk.map(str::to_owned).context("tcmuctl named no disk")
    }

    /// Starts writes that are verified, on the LUN's disk.
    fn start_load(&self) -> anyhow::Result<Load> {
        let disk = self.output("tcmuctl show disk --json | grep -o '/dev/sd[a-z]*' | head -n 1")?;
        let disk = disk.trim();
        ensure!(!disk.is_empty(), "the LUN has no disk");
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
struct Load(Child);

impl Load {
    /// Waits for its end; it must not have met an error.
    fn finish(mut self) -> anyhow::Result<()> {
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

fn shell(line: &str) -> Command {
    let mut command = Command::new("sh");
    command
        .args(["-c", line])
        .env("DEBIAN_FRONTEND", "noninteractive")
        .env("SYSTEMD_COLORS", "0")
        .stdin(Stdio::null());
    command
}
