//! Trying the package out: what happens in the guest, as a service of its systemd.

mod contents;
mod debians;
mod guest;
mod offline;
mod sandbox;

use std::fmt;
use std::fs;
use std::path::Path;
use std::process::ExitCode;
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, ensure};

use self::guest::Guest;
use crate::print;

/// What is in the folder that the host and the guest share: the packages, and for the time before they
/// are installed `tcmuctl` and an image.
pub(super) const FIRST: &str = "first.deb";
pub(super) const NEXT: &str = "next.deb";
pub(super) const TOOL: &str = "tcmuctl";
pub(super) const QCOW_IMAGE: &str = "disk.qcow2";

const UNIT: &str = "tcmu-runner.service";
const CONFIG: &str = "/etc/tcmu/tcmu.conf";
const IMAGE: &str = "/srv/disk.img";
const DROP_IN: &str = "/run/systemd/system/tcmu-runner.service.d/watchdog.conf";

type Step = fn(&Guest) -> anyhow::Result<()>;

/// The steps, which build on each other.
const STEPS: &[(&str, Step)] = &[
    ("systemd has come up", systemd_is_up),
    ("the package installs and the service starts", installs),
    ("what belongs to it is there", contents::are_complete),
    (
        "nobody but root reaches it on the bus",
        Guest::bus_is_closed,
    ),
    ("the sandbox is in force", sandbox::is_in_force),
    ("a LUN is served", serves),
    ("the log is in the journal, with fields", logs),
    ("settings are read again", reloads),
    ("a restart under I/O costs no I/O", restarts),
    ("a crash under I/O costs no I/O", crashes),
    ("the watchdog ends a daemon that does not turn", is_watched),
    (
        "a daemon that cannot come back leaves errors, not processes that wait",
        offline::answers_with_errors,
    ),
    ("an upgrade under I/O keeps the settings", upgrades),
    ("it can be removed and purged", is_removed),
    (
        "it takes the place of Debian's tcmu-runner under I/O",
        debians::is_replaced,
    ),
];

/// Why a step was left out.
#[derive(Debug)]
struct Skipped(&'static str);

impl fmt::Display for Skipped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

impl std::error::Error for Skipped {}

/// Runs the steps until one fails.
pub(crate) fn run() -> anyhow::Result<ExitCode> {
    let results = std::env::var_os("TCMU_RIG_RESULTS").context("this runs in the guest")?;
    let guest = Guest {
        packages: results.into(),
    };
    let (mut passed, mut skipped) = (0, 0);
    for (name, step) in STEPS {
        print::heading(name);
        match step(&guest) {
            Ok(()) => passed += 1,
            Err(e) if e.is::<Skipped>() => {
                skipped += 1;
                print::note(&format!("skipped: {e}"));
            }
            Err(e) => {
                println!("FAILED: {e:?}");
                // What there is to say about it.
                let log = format!("journalctl --no-pager --boot --lines 200 --unit {UNIT}");
                let _ = guest.sh(&log);
                let left = STEPS.len() - passed - skipped;
                println!("test result: FAILED. {passed} passed; {left} failed; {skipped} ignored");
                return Ok(ExitCode::FAILURE);
            }
        }
    }
    println!("test result: ok. {passed} passed; 0 failed; {skipped} ignored");
    Ok(ExitCode::SUCCESS)
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

fn serves(guest: &Guest) -> anyhow::Result<()> {
    guest.sh(&format!("truncate -s 256M {IMAGE}"))?;
    let disk = guest.create_disk("tcmuctl", &format!("--handler file --config {IMAGE}"))?;
    guest.sh(&format!(
        "dd if=/dev/urandom of=/run/data bs=1M count=8 status=none && \
         dd if=/run/data of={disk} bs=1M oflag=direct status=none && \
         dd if={disk} bs=1M count=8 iflag=direct status=none | cmp - /run/data && \
         cmp -n 8388608 {IMAGE} /run/data"
    ))?;
    guest.sh("tcmuctl list | grep ' activated  serving '")?;
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
    let load = guest.start_load(&guest.disk()?)?;
    for _ in 0..3 {
        thread::sleep(Duration::from_secs(1));
        guest.sh(&format!("systemctl restart {UNIT}"))?;
    }
    load.finish()
}

fn crashes(guest: &Guest) -> anyhow::Result<()> {
    let load = guest.start_load(&guest.disk()?)?;
    thread::sleep(Duration::from_secs(1));
    guest.sh(&format!(
        "systemctl kill --kill-whom=main --signal KILL {UNIT}"
    ))?;
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
    guest.sh(&format!(
        "systemctl kill --kill-whom=main --signal STOP {UNIT}"
    ))?;
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
    let load = guest.start_load(&guest.disk()?)?;
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
