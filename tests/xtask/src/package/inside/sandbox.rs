//! Whether the unit's sandbox is in force.

use std::fs;
use std::path::Path;

use anyhow::ensure;

use super::UNIT;
use super::guest::Guest;

pub(super) fn is_in_force(guest: &Guest) -> anyhow::Result<()> {
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

    // As the daemon's control group lets devices through; what it does not list, root may open elsewhere.
    guest.sh(&format!(
        "systemctl show {UNIT} --property DevicePolicy,DeviceAllow"
    ))?;
    let group = "/sys/fs/cgroup/system.slice/tcmu-runner.service";
    ensure!(
        Path::new(group).join("cgroup.controllers").exists(),
        "no control group of the second version says which devices the daemon may open"
    );
    let open = |device: &str| format!(": < {device}");
    let within = |line: &str| format!("sh -c 'echo $$ > {group}/cgroup.procs; {line}'");
    guest.sh(&open("/dev/kmsg"))?;
    guest.sh(&within(&open("/dev/zero")))?;
    guest.sh(&format!(
        "{} 2>&1 | grep 'Operation not permitted'",
        within(&open("/dev/kmsg"))
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
