//! LUNs, as a test makes them with `tcmuctl`.

use std::ffi::OsString;
use std::fs::{self, File};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use anyhow::{Context as _, ensure};
use tcmu::discovery::Sysfs;

use crate::daemon::program;
use crate::sh;

/// One MiB, in bytes.
pub const MIB: u64 = 1 << 20;

/// Runs `tcmuctl` with these arguments, which must succeed, and returns what it printed.
///
/// # Errors
/// If it fails.
pub fn tcmuctl(args: &[&str]) -> anyhow::Result<String> {
    sh::run(&words(args)?)
}

/// Runs `tcmuctl` with these arguments, which must fail (exit code 1, or 2 for wrong usage), and
/// returns its message.
///
/// # Errors
/// If it succeeds, or ends in any other way.
pub fn tcmuctl_fails(args: &[&str]) -> anyhow::Result<String> {
    let words = words(args)?;
    let output = sh::run_any(&words)?;
    ensure!(
        matches!(output.status.code(), Some(1 | 2)),
        "`{}` should have failed, and ended with {}",
        sh::line(&words),
        output.status
    );
    Ok(String::from_utf8_lossy(&output.stderr).into_owned())
}

fn words(args: &[&str]) -> anyhow::Result<Vec<OsString>> {
    let program = program("tcmuctl")?.into_os_string();
    Ok(std::iter::once(program)
        .chain(args.iter().map(OsString::from))
        .collect())
}

/// Makes a sparse image of so many bytes in the guest's memory and returns its path.
///
/// # Errors
/// If it cannot be made.
pub fn image(name: &str, bytes: u64) -> anyhow::Result<String> {
    let path = format!("/run/{name}.img");
    let file = File::create(&path).with_context(|| format!("cannot make {path}"))?;
    file.set_len(bytes)
        .with_context(|| format!("cannot make {path} {bytes} bytes long"))?;
    Ok(path)
}

/// A LUN that is a disk of the guest; deleted by [`delete`](Disk::delete), or by force when
/// dropped.
#[derive(Debug)]
pub struct Disk {
    name: String,
    path: PathBuf,
    deleted: bool,
}

impl Disk {
    /// Creates a LUN of a handler and configuration, with any further options of
    /// `tcmuctl create`, on loopback.
    ///
    /// # Errors
    /// If `tcmuctl` fails or prints no disk.
    pub fn create(
        name: &str,
        handler: &str,
        config: &str,
        options: &[&str],
    ) -> anyhow::Result<Self> {
        let fixed = [
            "create",
            name,
            "--handler",
            handler,
            "--config",
            config,
            "--loopback",
        ];
        let printed = tcmuctl(&[&fixed, options].concat())?;
        let path = printed.lines().find(|l| l.starts_with("/dev/"));
        let path = path.with_context(|| format!("tcmuctl named no disk: {printed}"))?;
        Ok(Disk {
            name: name.to_owned(),
            path: path.into(),
            deleted: false,
        })
    }

    /// A disk of the file handler on a new sparse image of so many bytes.
    ///
    /// # Errors
    /// As [`create`](Self::create).
    pub fn of_image(name: &str, bytes: u64) -> anyhow::Result<Self> {
        Self::create(name, "file", &image(name, bytes)?, &[])
    }

    /// The LUN's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The disk's path, as an argument of commands.
    pub fn path(&self) -> &str {
        self.path.to_str().unwrap_or_default()
    }

    /// The uio device that it is served through, such as `/dev/uio3`.
    ///
    /// # Errors
    /// If there is none.
    pub fn uio(&self) -> anyhow::Result<String> {
        let devices = Sysfs::system().scan()?;
        let device = devices.iter().find(|device| device.name.name == self.name);
        let device = device.with_context(|| format!("{} has no uio device", self.name))?;
        Ok(format!("/dev/uio{}", device.minor))
    }

    /// How many commands the initiator has sent that have not been answered.
    ///
    /// # Errors
    /// If the disk is gone.
    pub fn in_flight(&self) -> anyhow::Result<u64> {
        let name = self.path.file_name().context("no disk name")?;
        let folder = Path::new("/sys/class/block").join(name).join("device");
        let count = |attribute: &str| -> anyhow::Result<u64> {
            let text = fs::read_to_string(folder.join(attribute))?;
            let digits = text.trim().trim_start_matches("0x");
            u64::from_str_radix(digits, 16).with_context(|| format!("{attribute}: {text}"))
        };
        // The answers first: what is sent in between must not look like one too many.
        let done = count("iodone_cnt")?;
        Ok(count("iorequest_cnt")?.saturating_sub(done))
    }

    /// Its size in bytes, as the block layer has it.
    ///
    /// # Errors
    /// If it is gone.
    pub fn size(&self) -> anyhow::Result<u64> {
        let name = self.path.file_name().context("no disk name")?;
        let path = Path::new("/sys/class/block").join(name).join("size");
        let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
        let sectors: u64 = text.trim().parse().context("no size")?;
        // Whatever the disk's own blocks are.
        Ok(sectors * 512)
    }

    /// Writes a block of one byte value at an offset, past the page cache's delay.
    ///
    /// # Errors
    /// If the write or the flush fails.
    pub fn write(&self, offset: u64, value: u8) -> anyhow::Result<()> {
        write(&self.path, offset, value)
    }

    /// Whether the block at an offset holds this byte value throughout, asking the LUN, not the
    /// page cache.
    ///
    /// # Errors
    /// If the read fails.
    pub fn holds(&self, offset: u64, value: u8) -> anyhow::Result<bool> {
        holds(&self.path, offset, value)
    }

    /// Deletes the LUN; the disk must be gone then.
    ///
    /// # Errors
    /// If `tcmuctl` fails or leaves the disk.
    pub fn delete(mut self) -> anyhow::Result<()> {
        tcmuctl(&["delete", &self.name])?;
        self.deleted = true;
        self.is_gone()
    }

    /// Deletes LUNs by one command; their disks must be gone then.
    ///
    /// # Errors
    /// As [`delete`](Self::delete).
    pub fn delete_all(mut disks: Vec<Self>) -> anyhow::Result<()> {
        let names = disks.iter().map(|disk| &*disk.name);
        tcmuctl(&std::iter::once("delete").chain(names).collect::<Vec<_>>())?;
        for disk in &mut disks {
            disk.deleted = true;
        }
        disks.iter().try_for_each(Self::is_gone)
    }

    fn is_gone(&self) -> anyhow::Result<()> {
        let entry = Path::new("/sys/class/block").join(self.path.file_name().unwrap_or_default());
        ensure!(!entry.exists(), "{} is still there", entry.display());
        Ok(())
    }
}

/// Creates a LUN of the file handler on a new sparse image of so many bytes, as the target `iqn`;
/// returns what `tcmuctl` printed.
///
/// # Errors
/// If it fails.
pub fn export(name: &str, bytes: u64, iqn: &str) -> anyhow::Result<String> {
    let image = image(name, bytes)?;
    let create = ["create", name, "--handler", "file", "--config", &image];
    tcmuctl(&[&create[..], &["--iscsi", iqn]].concat())
}

/// What [`write`] writes and [`holds`] reads, in bytes.
const BLOCK: usize = 4096;

/// As [`Disk::write`], on any disk.
///
/// # Errors
/// If the write or the flush fails.
pub fn write(disk: &Path, offset: u64, value: u8) -> anyhow::Result<()> {
    let file = File::options()
        .write(true)
        .open(disk)
        .with_context(|| disk.display().to_string())?;
    file.write_all_at(&[value; BLOCK], offset)
        .context("write")?;
    file.sync_all().context("flush")
}

/// As [`Disk::holds`], on any disk.
///
/// # Errors
/// If the read fails.
pub fn holds(disk: &Path, offset: u64, value: u8) -> anyhow::Result<bool> {
    sh::run(&[
        "blockdev".as_ref(),
        "--flushbufs".as_ref(),
        disk.as_os_str(),
    ])?;
    let file = File::open(disk).with_context(|| disk.display().to_string())?;
    let mut block = [!value; BLOCK];
    file.read_exact_at(&mut block, offset).context("read")?;
    Ok(block.iter().all(|&b| b == value))
}

impl Drop for Disk {
    fn drop(&mut self) {
        if !self.deleted {
            let _ = tcmuctl(&["delete", "--force", &self.name]);
        }
    }
}

/// The names of all LUNs that `tcmuctl list` knows.
///
/// # Errors
/// If it fails or prints no JSON.
pub fn names() -> anyhow::Result<Vec<String>> {
    let text = tcmuctl(&["list", "--json"])?;
    let list: serde_json::Value = serde_json::from_str(&text).context("tcmuctl list --json")?;
    let entries = list.as_array().context("tcmuctl list --json is no list")?;
    Ok(entries
        .iter()
        .filter_map(|e| e["name"].as_str())
        .map(str::to_owned)
        .collect())
}

/// The folder of a LUN in configfs.
///
/// # Errors
/// If there is no such LUN.
pub fn folder(name: &str) -> anyhow::Result<PathBuf> {
    for hba in fs::read_dir("/sys/kernel/config/target/core")? {
        let folder = hba?.path().join(name);
        if folder.is_dir() {
            return Ok(folder);
        }
    }
    anyhow::bail!("{name} is not in configfs")
}

/// The path of the disk that a LUN is.
///
/// # Errors
/// If it is none.
pub fn disk_of(name: &str) -> anyhow::Result<String> {
    let text = tcmuctl(&["show", name, "--json"])?;
    let lun: serde_json::Value = serde_json::from_str(&text).context("tcmuctl show --json")?;
    let exports = lun["exports"].as_array().into_iter().flatten();
    let disk = exports
        .filter_map(|export| export["block_device"].as_str())
        .next();
    disk.map(str::to_owned)
        .with_context(|| format!("{name} is no disk"))
}

/// What stood there when this test began.
static BEFORE: OnceLock<Vec<String>> = OnceLock::new();

/// Notes what other tests have left, which the present one does not answer for.
pub(crate) fn begin() {
    BEFORE.get_or_init(|| present().unwrap_or_default());
}

/// What this test has left in LIO's tree of user backstores and fabrics; empty when it is nothing.
///
/// # Errors
/// If configfs is not there.
pub fn leftovers() -> anyhow::Result<Vec<String>> {
    let before = BEFORE.get();
    let is_new = |entry: &String| before.is_none_or(|before| !before.contains(entry));
    Ok(present()?.into_iter().filter(is_new).collect())
}

fn present() -> anyhow::Result<Vec<String>> {
    let target = Path::new("/sys/kernel/config/target");
    let mut left = Vec::new();
    for entry in fs::read_dir(target.join("core"))?.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.starts_with("user_") {
            for device in fs::read_dir(entry.path()).into_iter().flatten().flatten() {
                if device.path().is_dir() {
                    left.push(format!("core/{name}/{}", device.file_name().display()));
                }
            }
            left.push(format!("core/{name}"));
        }
    }
    for fabric in ["loopback", "iscsi"] {
        let Ok(entries) = fs::read_dir(target.join(fabric)) else {
            continue;
        };
        for entry in entries.flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            if name.starts_with("naa.") || name.starts_with("iqn.") {
                left.push(format!("{fabric}/{name}"));
            }
        }
    }
    Ok(left)
}
