//! What SPC says of every SCSI device, seen by sg3_utils and the kernel's initiator.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context as _, ensure};
use tcmu_guest_tests::daemon::Daemon;
use tcmu_guest_tests::lun::{self, Disk, MIB};
use tcmu_guest_tests::sh::{self, SG_ILLEGAL_REQUEST, SG_UNIT_ATTENTION};
use tcmu_guest_tests::{TestResult, guest_test};

fn folder(disk: &Disk) -> anyhow::Result<PathBuf> {
    lun::folder(disk.name())
}

/// An attribute of a LUN, without whitespace around it.
fn attribute(disk: &Disk, name: &str) -> anyhow::Result<String> {
    let path = folder(disk)?.join(name);
    let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    Ok(text.trim().to_owned())
}

fn set(disk: &Disk, name: &str, value: &str) -> anyhow::Result<()> {
    let path = folder(disk)?.join(name);
    fs::write(&path, value).with_context(|| path.display().to_string())
}

/// The folder of the LUN that exposes a disk on loopback.
fn port_of(disk: &Disk) -> anyhow::Result<PathBuf> {
    let backstore = folder(disk)?;
    for target in fs::read_dir("/sys/kernel/config/target/loopback")? {
        let lun = target?.path().join("tpgt_1/lun/lun_0");
        let leads_here =
            |link: &PathBuf| fs::canonicalize(link).is_ok_and(|goal| goal == backstore);
        if leads_here(&lun.join("storage")) {
            return Ok(lun);
        }
    }
    anyhow::bail!("{} is not exposed on loopback", disk.name())
}

guest_test!(every_page_is_decoded);
fn every_page_is_decoded() -> TestResult {
    let daemon = Daemon::start()?;
    let disk = Disk::create(
        "pages",
        "ram",
        "pages",
        &["--size", "16M", "--serial", "abc1"],
    )?;
    // sg_vpd and sg_modes exit with an error where a page does not decode.
    for page in [
        "0x0", "0x80", "0x83", "0x86", "0x87", "0x8f", "0xb0", "0xb1", "0xb2",
    ] {
        let text = sh::run(&["sg_vpd", &format!("--page={page}"), disk.path()])?;
        ensure!(
            !text.contains("malformed") && !text.contains("too short"),
            "page {page}: {text}"
        );
    }
    let identification = sh::run(&["sg_vpd", "--page=0x83", disk.path()])?;
    for designator in [
        "Target port group: 0x0",
        "Relative target port: 0x",
        "0x6001405abc1",
    ] {
        ensure!(
            identification.contains(designator),
            "no `{designator}` in {identification}"
        );
    }
    for control in ["0", "1", "2"] {
        let control = format!("--control={control}");
        let text = sh::run(&["sg_modes", "-a", "-a", &control, disk.path()])?;
        ensure!(text.contains("Control extension"), "{text}");
    }
    for page in ["0x0", "0x0,0xff", "0x2f"] {
        sh::run(&["sg_logs", &format!("--page={page}"), disk.path()])?;
    }
    sh::run(&["sg_requests", disk.path()])?;
    sh::run(&["sg_requests", "--desc", disk.path()])?;
    sh::run(&["sg_senddiag", "--test", disk.path()])?;
    sh::run(&["sg_senddiag", "--selftest=5", disk.path()])?;
    sh::run_code(
        &["sg_senddiag", "--selftest=1", disk.path()],
        SG_ILLEGAL_REQUEST,
    )?;
    sh::run(&["sg_senddiag", "--list", disk.path()])?;
    let functions = sh::run(&["sg_opcodes", "--tmf", disk.path()])?;
    ensure!(
        functions.contains("Abort task") && functions.contains("Logical unit reset"),
        "{functions}"
    );
    let timeouts = sh::run(&["sg_opcodes", "--rctd", disk.path()])?;
    ensure!(timeouts.contains("Recommended"), "{timeouts}");
    disk.delete()?;
    daemon.stop()
}

guest_test!(a_thin_disk_counts_its_storage);
fn a_thin_disk_counts_its_storage() -> TestResult {
    let daemon = Daemon::start()?;
    let disk = Disk::of_image("thin", 64 * MIB)?;
    let used = || -> anyhow::Result<u32> {
        let text = sh::run(&["sg_logs", "--page=0xc", disk.path()])?;
        let line = text.lines().find(|line| line.contains("Used"));
        let count = line.and_then(|line| line.split_whitespace().find_map(|w| w.parse().ok()));
        count.with_context(|| format!("no count of what is used: {text}"))
    };
    let before = used()?;
    let target = format!("of={}", disk.path());
    sh::run(&[
        "dd",
        "if=/dev/urandom",
        &target,
        "bs=1M",
        "count=16",
        "oflag=direct",
    ])?;
    ensure!(used()? == before + 16, "16 MiB were written");
    let mode = sh::run(&["sg_modes", "--page=0x1c,2", disk.path()])?;
    ensure!(mode.contains("provisioning"), "{mode}");
    disk.delete()?;
    daemon.stop()
}

guest_test!(the_write_cache_is_one_with_configfs);
fn the_write_cache_is_one_with_configfs() -> TestResult {
    let daemon = Daemon::start()?;
    let disk = Disk::of_image("cache", 16 * MIB)?;
    let wce_is = |on: bool| -> anyhow::Result<bool> {
        let text = sh::run(&["sg_modes", "--page=8", "-H", disk.path()])?;
        // The page begins with `08 12`, and WCE is bit 2 of the next byte.
        let bytes: Vec<&str> = text.split_whitespace().collect();
        let at = bytes.windows(2).position(|pair| pair == ["08", "12"]);
        let at = at.with_context(|| format!("no caching page in {text}"))?;
        Ok((bytes[at + 2] == "04") == on)
    };
    let switch = |value| -> TestResult {
        set(&disk, "attrib/emulate_write_cache", value)?;
        sh::run_code(&["sg_turs", disk.path()], SG_UNIT_ATTENTION).map(drop)
    };
    switch("0")?;
    ensure!(wce_is(false)?, "WCE does not follow the attribute");
    // From an initiator.
    let cache_type = sh::run(&["sh", "-c", "echo /sys/class/scsi_disk/*/cache_type"])?;
    fs::write(cache_type.trim(), "write back")?;
    ensure!(wce_is(true)?, "WCE was not set");
    ensure!(attribute(&disk, "attrib/emulate_write_cache")? == "1");
    // From the administrator.
    switch("0")?;
    ensure!(wce_is(false)?, "WCE does not follow the attribute again");
    switch("1")?;
    daemon.stop()?;
    let daemon = Daemon::start()?;
    ensure!(wce_is(true)?, "WCE did not survive the daemon");
    disk.delete()?;
    daemon.stop()
}

guest_test!(target_port_groups_are_those_of_configfs);
fn target_port_groups_are_those_of_configfs() -> TestResult {
    let daemon = Daemon::start()?;
    let disk = Disk::create("alua", "ram", "alua", &["--size", "16M"])?;
    let inquiry = sh::run(&["sg_inq", disk.path()])?;
    ensure!(inquiry.contains("TPGS=3"), "{inquiry}");
    let groups = sh::run(&["sg_rtpg", "--decode", disk.path()])?;
    ensure!(groups.contains("active/optimized"), "{groups}");
    sh::run(&["sg_rtpg", "--extended", "--decode", disk.path()])?;

    let default = "alua/default_tg_pt_gp/alua_access_state";
    // Active/non-optimized, by an initiator.
    sh::run(&["sg_stpg", "--active", disk.path()])?;
    ensure!(
        attribute(&disk, default)? == "1",
        "the kernel did not hear of it"
    );
    ensure!(
        attribute(&disk, "alua/default_tg_pt_gp/alua_access_status")? == "Altered by Explicit STPG"
    );
    // The kernel reports the change to every initiator.
    sh::run_code(&["sg_turs", disk.path()], SG_UNIT_ATTENTION)?;
    let groups = sh::run(&["sg_rtpg", "--decode", disk.path()])?;
    ensure!(groups.contains("active/non optimized"), "{groups}");
    disk.write(0, 7)?;
    // By the administrator, who the initiators hear of as well.
    set(&disk, default, "0")?;
    sh::run_code(&["sg_turs", disk.path()], SG_UNIT_ATTENTION)?;
    let groups = sh::run(&["sg_rtpg", "--decode", disk.path()])?;
    ensure!(
        groups.contains("active/optimized") && groups.contains("implicit"),
        "{groups}"
    );

    // Another group, which the LUN's port goes to.
    let slow = folder(&disk)?.join("alua/slow");
    fs::create_dir(&slow)?;
    set(&disk, "alua/slow/tg_pt_gp_id", "16")?;
    set(&disk, "alua/slow/alua_access_state", "2")?;
    set(&disk, "alua/slow/preferred", "1")?;
    let port = port_of(&disk)?.join("alua_tg_pt_gp");
    fs::write(&port, "slow")?;
    // Its identification has changed, which the next command after one that shows it reports.
    sh::run(&["sg_inq", disk.path()])?;
    sh::run_code(&["sg_turs", disk.path()], SG_UNIT_ATTENTION)?;
    let groups = sh::run(&["sg_rtpg", "--decode", disk.path()])?;
    ensure!(
        groups.contains("target port group id : 0x10 , Pref=1") && groups.contains("standby"),
        "{groups}"
    );
    let identification = sh::run(&["sg_vpd", "--page=0x83", disk.path()])?;
    ensure!(
        identification.contains("Target port group: 0x10"),
        "{identification}"
    );
    fs::write(&port, "default_tg_pt_gp")?;
    fs::remove_dir(&slow)?;

    // Where the kernel keeps no groups, none are claimed.
    set(&disk, "alua/default_tg_pt_gp/alua_access_type", "0")?;
    let inquiry = sh::run(&["sg_inq", disk.path()])?;
    ensure!(inquiry.contains("TPGS=0"), "{inquiry}");
    disk.delete()?;
    daemon.stop()
}

guest_test!(reservations_are_claimed_where_the_kernel_serves_them);
fn reservations_are_claimed_where_the_kernel_serves_them() -> TestResult {
    let daemon = Daemon::start()?;
    let disk = Disk::create("keys", "ram", "keys", &["--size", "16M"])?;
    let lists = |what: &str| -> anyhow::Result<bool> {
        Ok(sh::run(&["sg_opcodes", disk.path()])?.contains(what))
    };
    ensure!(lists("Persistent reserve in")?);
    set(&disk, "attrib/emulate_pr", "0")?;
    ensure!(!lists("Persistent reserve in")?, "claimed, and not served");
    disk.delete()?;
    daemon.stop()
}
