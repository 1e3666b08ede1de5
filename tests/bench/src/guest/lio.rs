//! The kernel's own targets through configfs, and every LUN's block device through loopback.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};

use super::process::{bounded, wait_for};

const TARGET: &str = "/sys/kernel/config/target";
const LIMIT: Duration = Duration::from_secs(20);

/// Makes a folder in configfs, which the kernel answers by making an object. Exists already: fine.
fn make(path: &Path) -> Result<()> {
    fs::create_dir_all(path).with_context(|| path.display().to_string())
}

fn write(path: &Path, value: &str) -> Result<()> {
    fs::write(path, value).with_context(|| format!("writing {value:?} to {}", path.display()))
}

/// The folder of the backstore `<hba>/<name>`.
#[must_use]
pub(super) fn place(hba: &str, name: &str) -> PathBuf {
    Path::new(TARGET).join("core").join(hba).join(name)
}

/// Creates and enables the backstore `<hba>/<name>`, giving it `controls` one by one.
///
/// # Errors
/// Whatever the kernel refuses, and an `enable` that does not return.
pub(super) fn backstore(hba: &str, name: &str, controls: &[String]) -> Result<PathBuf> {
    let path = place(hba, name);
    make(&path)?;
    for control in controls {
        write(&path.join("control"), control)?;
    }
    let enable = path.join("enable");
    bounded("enabling the backstore", LIMIT, move || {
        // While a tcmu-runner starts it blocks netlink, and the kernel answers EAGAIN.
        wait_for("enable", LIMIT, || write(&enable, "1").map(Some))
    })?;
    Ok(path)
}

/// Exposes a backstore on loopback under `wwn` and returns its block device.
///
/// # Errors
/// Whatever the kernel refuses, and a block device that does not appear.
pub(super) fn expose(backstore: &Path, wwn: &str) -> Result<PathBuf> {
    let tpg = Path::new(TARGET).join("loopback").join(wwn).join("tpgt_1");
    make(&tpg)?;
    // The nexus needs an initiator's name: any that differs from the target's.
    let initiator = wwn.replacen("naa.5", "naa.6", 1);
    write(&tpg.join("nexus"), &initiator)?;
    let lun = tpg.join("lun").join("lun_0");
    make(&lun)?;
    let (from, to) = (backstore.to_owned(), lun.join("bench"));
    bounded("attaching the LUN", LIMIT, move || {
        symlink(&from, &to).with_context(|| to.display().to_string())
    })?;
    let address = fs::read_to_string(tpg.join("address")).context("the loopback port's address")?;
    let folder = format!("/sys/bus/scsi/devices/{}:0/block", address.trim());
    wait_for("the LUN's block device", LIMIT, || {
        let mut names = fs::read_dir(&folder).with_context(|| folder.clone())?;
        let Some(name) = names.next() else {
            return Ok(None);
        };
        let device = Path::new("/dev").join(name?.file_name());
        Ok(device.exists().then_some(device))
    })
}

/// Exports a backstore over iSCSI, to any initiator of this machine, and returns the LUN's URL.
///
/// # Errors
/// Whatever the kernel refuses.
pub(super) fn export(backstore: &Path, iqn: &str) -> Result<String> {
    const PORTAL: &str = "127.0.0.1:3260";
    let tpg = Path::new(TARGET).join("iscsi").join(iqn).join("tpgt_1");
    make(&tpg)?;
    let lun = tpg.join("lun").join("lun_0");
    make(&lun)?;
    for (attribute, value) in [
        ("authentication", "0"),
        ("generate_node_acls", "1"),
        ("cache_dynamic_acls", "1"),
        ("demo_mode_write_protect", "0"),
    ] {
        write(&tpg.join("attrib").join(attribute), value)?;
    }
    make(&tpg.join("np").join(PORTAL))?;
    let (from, to) = (backstore.to_owned(), lun.join("bench"));
    bounded("attaching the LUN", LIMIT, move || {
        symlink(&from, &to).with_context(|| to.display().to_string())
    })?;
    write(&tpg.join("enable"), "1")?;
    Ok(format!("iscsi://{PORTAL}/{iqn}/0"))
}

/// Takes the LUN of a backstore under `wwn` away, and the backstore itself.
///
/// # Errors
/// Whatever the kernel refuses.
pub(super) fn remove(backstore: &Path, wwn: &str) -> Result<()> {
    let target = Path::new(TARGET).join("loopback").join(wwn);
    let tpg = target.join("tpgt_1");
    let lun = tpg.join("lun").join("lun_0");
    let backstore = backstore.to_owned();
    bounded("removing the LUN", LIMIT, move || {
        let link = lun.join("bench");
        fs::remove_file(&link).with_context(|| link.display().to_string())?;
        for folder in [lun, tpg, target, backstore] {
            fs::remove_dir(&folder).with_context(|| folder.display().to_string())?;
        }
        Ok(())
    })
}

/// Lets a block device's requests be as large as the largest job. Everything else stays as the
/// kernel sets it up, its scheduler too: that is what a user gets.
///
/// # Errors
/// A queue that does not take the values.
pub(super) fn allow_large_requests(device: &Path) -> Result<()> {
    let name = device.file_name().context("a device without a name")?;
    let queue = Path::new("/sys/block").join(name).join("queue");
    // The disk's folder appears before its queue's files do.
    wait_for("the block device's queue", LIMIT, || {
        Ok(queue.join("max_sectors_kb").exists().then_some(()))
    })?;
    let limit = fs::read_to_string(queue.join("max_hw_sectors_kb"))?;
    let limit: u32 = limit.trim().parse().context("max_hw_sectors_kb")?;
    write(
        &queue.join("max_sectors_kb"),
        &limit.min(crate::plan::HW_MAX_SECTORS / 2).to_string(),
    )
}
