//! The disk that a loopback LUN becomes: waiting for it, its size, and who uses it.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use crate::change::Change;
use crate::error::{Error, Result};
use crate::tree::{Guard, Tree};

impl Tree {
    /// The disk at a SCSI address, once both the kernel and `/dev` have it.
    pub(crate) fn disk_at(&self, address: &str) -> Option<PathBuf> {
        let class = self.roots.sysfs.join("class/scsi_device").join(address);
        let names = self.names(&class.join("device/block")).ok()?;
        let node = self.roots.dev.join(names.first()?);
        node.exists().then_some(node)
    }

    /// Waits until the disk at a SCSI address is there, with a size.
    pub(crate) fn await_disk(&self, address: &str) -> Result<PathBuf> {
        let missing = || Error::NoDisk {
            address: address.to_owned(),
        };
        // Linking the LUN scanned for it: what is not there now does not come.
        if !self
            .roots
            .sysfs
            .join("class/scsi_device")
            .join(address)
            .exists()
        {
            return Err(missing());
        }
        let found = self.poll(&format!("the disk at {address}"), self.time_limit, || {
            let disk = self.disk_at(address);
            Ok(disk.filter(|disk| {
                // The node is there a moment before the kernel lets it be opened.
                self.disk_size(disk).is_some_and(|size| size > 0) && File::open(disk).is_ok()
            }))
        })?;
        found.ok_or_else(missing)
    }

    /// A disk's size in bytes; sysfs counts 512-byte sectors whatever the block size.
    pub(crate) fn disk_size(&self, disk: &Path) -> Option<u64> {
        let text = self.read_if_any(&self.block_folder(disk)?.join("size"))?;
        text.parse::<u64>().ok()?.checked_mul(512)
    }

    /// Makes the kernel read the disk's size again, and waits until it has the new one.
    pub(crate) fn rescan_disk(&self, address: &str, disk: &Path, size: u64) -> Result<()> {
        let rescan = self
            .roots
            .sysfs
            .join("class/scsi_device")
            .join(address)
            .join("device/rescan");
        self.apply_guarded(Change::Write(rescan, "1".to_owned()), &Guard::Bounded)?;
        let reached = self.poll(
            &format!("{} to be resized", disk.display()),
            self.time_limit,
            || Ok((self.disk_size(disk) == Some(size)).then_some(())),
        )?;
        reached.ok_or_else(|| Error::TimedOut {
            what: format!("the resizing of {}", disk.display()),
            seconds: self.time_limit.as_secs(),
            note: format!(
                "the LUN has {size} bytes now, but the disk still shows {}: the daemon reports the \
                 old capacity",
                self.disk_size(disk).unwrap_or(0)
            ),
        })
    }

    /// Who uses a disk or one of its partitions: one phrase each.
    pub(crate) fn disk_users(&self, disk: &Path) -> Result<Vec<String>> {
        let Some(folder) = self.block_folder(disk) else {
            return Ok(Vec::new());
        };
        let name = disk
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        let mut parts = vec![(disk.to_owned(), folder.clone())];
        for part in self.names(&folder)? {
            if part.starts_with(&name) && folder.join(&part).join("partition").exists() {
                parts.push((self.roots.dev.join(&part), folder.join(&part)));
            }
        }
        let mut users = Vec::new();
        for (node, folder) in &parts {
            let number = self.read_if_any(&folder.join("dev")).unwrap_or_default();
            users.extend(self.mounts_of(node, &number));
            for holder in self.names(&folder.join("holders"))? {
                users.push(format!("{holder} is built on {}", node.display()));
            }
        }
        users.extend(self.openers_of(&parts));
        Ok(users)
    }

    fn block_folder(&self, disk: &Path) -> Option<PathBuf> {
        Some(self.roots.sysfs.join("class/block").join(disk.file_name()?))
    }

    /// Where a device is mounted, or that it is swapped to.
    fn mounts_of(&self, node: &Path, number: &str) -> Vec<String> {
        let read = |name: &str| fs::read_to_string(self.roots.proc.join(name)).unwrap_or_default();
        let node = node.to_string_lossy();
        let mut users = Vec::new();
        for line in read("self/mountinfo").lines() {
            // proc_pid_mountinfo(5): id, parent, major:minor, root, mount point, …, -, type, source
            let fields: Vec<&str> = line.split(' ').collect();
            let source = fields
                .iter()
                .position(|f| *f == "-")
                .and_then(|i| fields.get(i + 2));
            let matches = fields.get(2) == Some(&number) || source == Some(&node.as_ref());
            if matches && let Some(point) = fields.get(4) {
                users.push(format!("{node} is mounted on {point}"));
            }
        }
        if read("swaps")
            .lines()
            .any(|line| line.split_whitespace().next() == Some(&node))
        {
            users.push(format!("{node} is used as swap space"));
        }
        users
    }

    /// Processes that have a device open.
    pub(crate) fn openers_of(&self, parts: &[(PathBuf, PathBuf)]) -> Vec<String> {
        let mut users = Vec::new();
        for entry in fs::read_dir(&self.roots.proc)
            .into_iter()
            .flatten()
            .flatten()
        {
            let Some(pid) = entry
                .file_name()
                .to_str()
                .and_then(|n| n.parse::<u32>().ok())
            else {
                continue;
            };
            let files = fs::read_dir(entry.path().join("fd"))
                .into_iter()
                .flatten()
                .flatten();
            let open: Vec<PathBuf> = files
                .filter_map(|file| fs::read_link(file.path()).ok())
                .collect();
            if let Some((node, _)) = parts.iter().find(|(node, _)| open.contains(node)) {
                let comm = self
                    .read_if_any(&entry.path().join("comm"))
                    .unwrap_or_default();
                users.push(format!(
                    "process {pid} ({comm}) has {} open",
                    node.display()
                ));
            }
        }
        users
    }
}
