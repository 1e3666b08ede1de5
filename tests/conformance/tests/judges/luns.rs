//! The LUNs that are judged, and the ways to them.

use std::fs;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use tcmu_guest_tests::lun::{Disk, image, leftovers, tcmuctl};
use tcmu_guest_tests::sh;

/// The handler `file`, `ram`, a LUN that cannot be written to, or the one of slow-runner.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Kind {
    File,
    Ram,
    ReadOnly,
    Slow,
}

impl Kind {
    /// As in the manifests' names.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Kind::File => "file",
            Kind::Ram => "ram",
            Kind::ReadOnly => "readonly",
            Kind::Slow => "slow",
        }
    }

    /// Handler, configuration and size for `tcmuctl create`.
    fn options(self, bytes: u64) -> anyhow::Result<[String; 6]> {
        let (handler, config) = match self {
            Kind::File => ("file", image(self.name(), bytes)?),
            Kind::Ram => ("ram", self.name().to_owned()),
            Kind::Slow => ("slow", self.name().to_owned()),
            Kind::ReadOnly => (
                "file",
                format!("{};readonly=on", image(self.name(), bytes)?),
            ),
        };
        let size = bytes.to_string();
        Ok(["--handler", handler, "--config", &config, "--size", &size].map(str::to_owned))
    }

    /// A disk of the guest, and the path of its sg device.
    pub(crate) fn disk(self, bytes: u64) -> anyhow::Result<(Disk, String)> {
        let options = self.options(bytes)?;
        let [_, handler, _, config, size @ ..] = &options;
        let size: Vec<&str> = size.iter().map(String::as_str).collect();
        let disk = Disk::create(self.name(), handler, config, &size)?;
        let block = Path::new(disk.path()).file_name().context("no disk")?;
        let device = Path::new("/sys/class/block").join(block).join("device");
        let sg = sg_of(&device)?;
        Ok((disk, sg))
    }
}

/// The sg device of a SCSI device in sysfs.
fn sg_of(device: &Path) -> anyhow::Result<String> {
    let dir = device.join("scsi_generic");
    let entry = fs::read_dir(&dir)
        .with_context(|| format!("cannot read {}", dir.display()))?
        .next()
        .context("the disk has no sg device")??;
    Ok(format!("/dev/{}", entry.file_name().to_string_lossy()))
}

/// A second way to a disk: another loopback target with the same backstore.
#[derive(Debug)]
pub(crate) struct SecondPath {
    target: PathBuf,
    /// Its sg device.
    pub(crate) sg: String,
}

impl SecondPath {
    const TARGET: &str = "naa.5001405000000002";
    const INITIATOR: &str = "naa.5001405000000003";

    pub(crate) fn to(disk: &Disk) -> anyhow::Result<Self> {
        let root = Path::new("/sys/kernel/config/target");
        let backstore = backstore(disk.name())?;
        let target = root.join("loopback").join(Self::TARGET);
        let group = target.join("tpgt_1");
        fs::create_dir_all(&group)?;
        fs::write(group.join("nexus"), Self::INITIATOR)?;
        let lun = group.join("lun/lun_0");
        fs::create_dir(&lun)?;
        std::os::unix::fs::symlink(&backstore, lun.join("storage"))?;
        let address = fs::read_to_string(group.join("address"))?;
        let device = format!("/sys/bus/scsi/devices/{}:0", address.trim());
        sh::run(&["udevadm", "settle"]).ok();
        let sg = sg_of(Path::new(&device))?;
        Ok(SecondPath { target, sg })
    }

    /// Takes it down again.
    pub(crate) fn remove(self) -> anyhow::Result<()> {
        let group = self.target.join("tpgt_1");
        let lun = group.join("lun/lun_0");
        fs::remove_file(lun.join("storage"))?;
        for dir in [&lun, &group, &self.target] {
            fs::remove_dir(dir).with_context(|| format!("cannot remove {}", dir.display()))?;
        }
        Ok(())
    }
}

/// A backstore's folder in configfs.
pub(crate) fn backstore(name: &str) -> anyhow::Result<PathBuf> {
    let core = Path::new("/sys/kernel/config/target/core");
    for hba in fs::read_dir(core)?.flatten() {
        let dir = hba.path().join(name);
        if dir.is_dir() {
            return Ok(dir);
        }
    }
    anyhow::bail!("there is no backstore {name}")
}

fn iqn(name: &str) -> String {
    format!("iqn.2026-11.com.example:{name}")
}

/// A LUN of an iSCSI target on the loopback network.
#[derive(Debug)]
pub(crate) struct IscsiLun {
    name: &'static str,
    /// For libiscsi's tools.
    pub(crate) url: String,
}

impl IscsiLun {
    pub(crate) fn new(kind: Kind, bytes: u64) -> anyhow::Result<Self> {
        let iqn = iqn(kind.name());
        let options = kind.options(bytes)?;
        // The judge writes 32 MiB by one command.
        let large = ["--max-sectors", "65536"];
        let mut command = vec!["create", kind.name(), "--iscsi", &iqn];
        command.extend(large);
        command.extend(options.iter().map(String::as_str));
        tcmuctl(&command)?;
        Ok(IscsiLun {
            name: kind.name(),
            url: format!("iscsi://127.0.0.1:3260/{iqn}/0"),
        })
    }

    /// Waits until the kernel has seen the end of every session, which gives back what it had
    /// reserved.
    pub(crate) fn await_logouts(&self) -> anyhow::Result<()> {
        let root = Path::new("/sys/kernel/config/target/iscsi");
        let sessions = root.join(iqn(self.name)).join("tpgt_1/dynamic_sessions");
        let deadline = Instant::now() + Duration::from_secs(30);
        loop {
            let left = fs::read_to_string(&sessions)?;
            if left.trim_matches(['\0', '\n']).is_empty() {
                return Ok(());
            }
            ensure!(Instant::now() < deadline, "still logged in: {left}");
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// Deletes it; by force, since libiscsi's tools may leave sessions behind.
    pub(crate) fn delete(self) -> anyhow::Result<()> {
        tcmuctl(&["delete", "--force", self.name])?;
        let left = leftovers()?;
        ensure!(left.is_empty(), "left in configfs: {left:?}");
        Ok(())
    }
}
