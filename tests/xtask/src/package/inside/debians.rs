//! Debian's own tcmu-runner, the C implementation, and our package in its place.

use std::fs;
use std::path::Path;

use anyhow::ensure;

use super::guest::{AS_NOBODY, CALL, Guest, REGISTER};
use super::{FIRST, QCOW_IMAGE, Skipped, TOOL, UNIT};
use crate::package::root::DEBIANS;

const IMAGE: &str = "/srv/disk.qcow2";

pub(super) fn is_replaced(guest: &Guest) -> anyhow::Result<()> {
    if fs::read_dir(DEBIANS)?.next().is_none() {
        return Err(Skipped("this release of Debian has no tcmu-runner").into());
    }
    guest.sh(&format!("dpkg --install {DEBIANS}/*.deb 2>&1 | tail -n 12"))?;
    guest.wait_for("Debian's tcmu-runner runs", |guest| guest.is_active(UNIT))?;
    guest.sh("dpkg-query --show tcmu-runner")?;
    // It lets everybody in: what is checked below can fail.
    guest.sh(&format!("{AS_NOBODY} {CALL} | grep -c 'object path'"))?;
    guest.sh(&format!("{AS_NOBODY} {REGISTER} | grep 'uint32 1'"))?;

    guest.sh(&format!("cp {} {IMAGE}", guest.package(QCOW_IMAGE)))?;
    let disk = guest.create_disk(
        &guest.package(TOOL),
        &format!("--handler qcow --config {IMAGE} --size 256M"),
    )?;
    let load = guest.start_load(&disk)?;
    guest.sh(&format!("dpkg --install {}", guest.package(FIRST)))?;
    load.finish()?;
    guest.sh("tcmuctl list | grep ' activated  serving '")?;
    guest.sh("dpkg-query --show --showformat '${Package} ${db:Status-Abbrev}\\n' '*tcmu*'")?;
    is_in_its_place(guest)?;

    // What the other package has left goes, and nothing of ours does.
    guest.sh("dpkg --purge tcmu-runner libtcmu2")?;
    ensure!(!Path::new("/etc/init.d/tcmu-runner").exists());
    is_in_its_place(guest)?;
    guest.sh("tcmuctl delete disk && dpkg --purge tcmu-runner-rs")
}

/// Our daemon runs, and will after the next boot; its settings and the bus's policy are its own.
fn is_in_its_place(guest: &Guest) -> anyhow::Result<()> {
    guest.sh(&format!(
        "systemctl is-active {UNIT} && systemctl is-enabled {UNIT}"
    ))?;
    guest.sh("dpkg --verify tcmu-runner-rs")?;
    guest.sh("systemctl reload dbus")?;
    guest.bus_is_closed()?;
    guest
        .sh("tcmuctl doctor | grep dbus > /run/said; cat /run/said; ! grep 'dbus policy' /run/said")
}
