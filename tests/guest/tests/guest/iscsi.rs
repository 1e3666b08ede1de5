//! A LUN for other machines.

use std::fs;

use anyhow::{Context as _, ensure};
use tcmu_guest_tests::daemon::Daemon;
use tcmu_guest_tests::initiator::{PORTAL, Session};
use tcmu_guest_tests::lun::{MIB, export, leftovers, tcmuctl};
use tcmu_guest_tests::{TestResult, guest_test, sh};

const IQN: &str = "iqn.2026-11.com.example:guest";

guest_test!(a_portal_answers);
fn a_portal_answers() -> TestResult {
    let daemon = Daemon::start()?;
    let printed = export("net", 48 * MIB, IQN)?;
    ensure!(
        printed.contains(PORTAL) && printed.contains(IQN),
        "{printed}"
    );

    let url = format!("iscsi://{PORTAL}/{IQN}/0");
    let list = sh::run(&["iscsi-ls", "--show-luns", &format!("iscsi://{PORTAL}")])?;
    ensure!(list.contains(IQN), "the target is not listed");
    let inquiry = sh::run(&["iscsi-inq", &url])?;
    ensure!(
        inquiry.contains("Peripheral Device Type:DIRECT_ACCESS"),
        "no disk"
    );
    let capacity = sh::run(&["iscsi-readcapacity16", &url])?;
    ensure!(capacity.contains("Total size:50331648"), "not the size");

    // These tools do not log out.
    tcmuctl(&["delete", "--force", "net"])?;
    ensure!(
        leftovers()? == [""; 0],
        "left in configfs: {:?}",
        leftovers()?
    );
    daemon.stop()
}

guest_test!(the_kernels_initiator_uses_it);
fn the_kernels_initiator_uses_it() -> TestResult {
    let daemon = Daemon::start()?;
    export("initiator", 64 * MIB, IQN)?;

    let session = Session::login(IQN)?;
    let disk = session.disk().to_str().context("no UTF-8")?.to_owned();
    sh::run(&["mkfs.ext4", "-q", "-F", &disk])?;
    sh::run(&["mount", &disk, "/mnt"])?;
    fs::write("/mnt/hello", "through the network")?;
    sh::run(&["umount", "/mnt"])?;
    sh::run(&["mount", "-o", "ro", &disk, "/mnt"])?;
    ensure!(fs::read_to_string("/mnt/hello")? == "through the network");
    sh::run(&["umount", "/mnt"])?;
    session.logout()?;
    tcmuctl(&["delete", "initiator"])?;
    daemon.stop()
}
