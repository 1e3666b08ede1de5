//! A stand-in for the kernel's side of the tree, for unit tests: plain folders below a temporary
//! one, with the files and refusals that the tests depend on.

use std::collections::{BTreeSet, VecDeque};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use tempfile::TempDir;

use crate::change::{Change, Kernel};
use crate::roots::Roots;
use crate::tree::Tree;

/// What the daemon behind the fake kernel answers to `enable` or a new `dev_size`.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Answer {
    Errno(i32),
    /// Never: the write waits until netlink is reset.
    None,
}

#[derive(Debug)]
pub(crate) struct FakeKernel {
    roots: Roots,
    /// Folders that were made by mkdir, as opposed to those that came with them.
    made: Mutex<BTreeSet<PathBuf>>,
    log: Mutex<Vec<String>>,
    count: AtomicUsize,
    fail_at: Mutex<Option<usize>>,
    answers: Mutex<VecDeque<Answer>>,
    /// Whether linking a loopback LUN finds a disk.
    disks: Mutex<bool>,
    /// Whether unlinking a LUN waits until its ring is reset.
    stuck: Mutex<bool>,
    resets: Mutex<usize>,
    reset: Condvar,
}

/// A machine with LIO loaded and a daemon running.
pub(crate) struct Machine {
    pub(crate) folder: TempDir,
    pub(crate) kernel: Arc<FakeKernel>,
    pub(crate) roots: Roots,
}

impl Machine {
    pub(crate) fn new() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let roots = Roots::under(folder.path());
        for path in [
            &roots.core(),
            &roots.tcmu_parameter(""),
            &roots.dev,
            &roots.proc.join("7"),
        ] {
            fs::create_dir_all(path).expect("a folder");
        }
        fs::write(roots.proc.join("7/comm"), "tcmu-runner\n").expect("a daemon");
        fs::write(roots.tcmu_parameter("block_netlink"), "unblocked\n").expect("a parameter");
        fs::write(roots.tcmu_parameter("reset_netlink"), "").expect("a parameter");
        let kernel = Arc::new(FakeKernel {
            roots: roots.clone(),
            made: Mutex::default(),
            log: Mutex::default(),
            count: AtomicUsize::new(0),
            fail_at: Mutex::new(None),
            answers: Mutex::default(),
            disks: Mutex::new(true),
            stuck: Mutex::new(false),
            resets: Mutex::new(0),
            reset: Condvar::new(),
        });
        Machine {
            folder,
            kernel,
            roots,
        }
    }

    pub(crate) fn tree(&self) -> Tree {
        Tree::at(self.roots.clone())
            .with_kernel(self.kernel.clone())
            .with_time_limit(Duration::from_secs(20))
    }

    pub(crate) fn target(&self, path: &str) -> PathBuf {
        self.roots.configfs.join("target").join(path)
    }

    pub(crate) fn read(&self, path: &str) -> String {
        fs::read_to_string(self.target(path))
            .expect(path)
            .trim_end()
            .to_owned()
    }

    pub(crate) fn write(&self, path: impl AsRef<Path>, text: &str) {
        let path = self.folder.path().join(path);
        fs::create_dir_all(path.parent().expect("not the root")).expect("folders");
        fs::write(path, text).expect("written");
    }

    pub(crate) fn stop_daemon(&self) {
        fs::remove_dir_all(self.roots.proc.join("7")).expect("removed");
    }
}

impl FakeKernel {
    /// The changes seen so far.
    pub(crate) fn log(&self) -> Vec<String> {
        self.log.lock().expect("no panic").clone()
    }

    /// How many changes were seen so far.
    pub(crate) fn count(&self) -> usize {
        self.count.load(Ordering::SeqCst)
    }

    /// Fails the change that has this number, from 0, with EIO.
    pub(crate) fn fail_at(&self, number: usize) {
        *self.fail_at.lock().expect("no panic") = Some(number);
    }

    pub(crate) fn answer(&self, answers: &[Answer]) {
        self.answers.lock().expect("no panic").extend(answers);
    }

    pub(crate) fn without_disks(&self) {
        *self.disks.lock().expect("no panic") = false;
    }

    /// The LUNs' commands end only when their rings are reset.
    pub(crate) fn with_stuck_commands(&self) {
        *self.stuck.lock().expect("no panic") = true;
    }

    /// What was made and is still there, apart from the fabrics themselves.
    pub(crate) fn remains(&self) -> Vec<PathBuf> {
        let target = self.roots.configfs.join("target");
        let made = self.made.lock().expect("no panic");
        made.iter()
            .filter(|path| path.parent() != Some(target.as_path()))
            .cloned()
            .collect()
    }

    fn apply_unless_failing(&self, change: &Change) -> io::Result<()> {
        match change {
            Change::Write(path, value) => self.write(path, value),
            Change::MakeDir(path) => self.make_dir(path),
            Change::RemoveDir(path) => self.remove_dir(path),
            Change::Link(backstore, link) => self.link(backstore, link),
            Change::Unlink(link) => self.unlink(link),
        }
    }

    /// The path's parts below `target`.
    fn parts<'a>(&self, path: &'a Path) -> Vec<&'a str> {
        let Ok(rest) = path.strip_prefix(self.roots.configfs.join("target")) else {
            return Vec::new();
        };
        rest.iter().filter_map(|part| part.to_str()).collect()
    }

    fn daemon_answers(&self) -> io::Result<()> {
        let answer = self.answers.lock().expect("no panic").pop_front();
        match answer {
            None => Ok(()),
            Some(Answer::Errno(errno)) => Err(io::Error::from_raw_os_error(errno)),
            Some(Answer::None) => {
                let resets = self.resets.lock().expect("no panic");
                let before = *resets;
                drop(
                    self.reset
                        .wait_while(resets, |now| *now == before)
                        .expect("no panic"),
                );
                Err(io::Error::from_raw_os_error(
                    rustix::io::Errno::INTR.raw_os_error(),
                ))
            }
        }
    }

    fn write(&self, path: &Path, value: &str) -> io::Result<()> {
        if !path.is_file() {
            return Err(io::ErrorKind::NotFound.into());
        }
        let store = |path: &Path, value: &str| fs::write(path, format!("{value}\n"));
        match self.parts(path)[..] {
            ["core", _, _, "control"] => {
                let (key, value) = value.split_once('=').expect("key=value");
                store(&path.with_file_name("attrib").join(key), value)
            }
            ["core", _, _, "enable"] => {
                self.daemon_answers()?;
                store(path, value)
            }
            ["core", _, _, "attrib", "dev_size"] => {
                self.daemon_answers()?;
                store(path, value)
            }
            ["core", _, _, "wwn", "vpd_unit_serial"] => {
                store(path, &format!("T10 VPD Unit Serial Number: {value}"))
            }
            _ if path == self.roots.tcmu_parameter("block_netlink") => {
                store(path, if value == "1" { "blocked" } else { "unblocked" })
            }
            ["core", _, _, "action", "reset_ring"] => {
                *self.stuck.lock().expect("no panic") = false;
                Ok(())
            }
            _ if path == self.roots.tcmu_parameter("reset_netlink") => {
                *self.resets.lock().expect("no panic") += 1;
                self.reset.notify_all();
                Ok(())
            }
            _ if path.ends_with("device/rescan") => {
                let backstore = fs::read_to_string(path.with_file_name("backstore"))?;
                let size = fs::read_to_string(Path::new(&backstore).join("attrib/dev_size"))?;
                self.set_disk_size(size.trim().parse().expect("a number"))
            }
            _ => store(path, value),
        }
    }

    fn set_disk_size(&self, bytes: u64) -> io::Result<()> {
        fs::write(
            self.roots.sysfs.join("class/block/sda/size"),
            format!("{}\n", bytes / 512),
        )
    }

    fn make_dir(&self, path: &Path) -> io::Result<()> {
        fs::create_dir(path)?;
        self.made.lock().expect("no panic").insert(path.to_owned());
        let files: &[(&str, &str)] = match self.parts(path)[..] {
            ["core", _, _] => &[
                ("control", ""),
                ("enable", "0"),
                ("info", "Status: DEACTIVATED  Max Queue Depth: 0"),
                ("wwn/vpd_unit_serial", "T10 VPD Unit Serial Number: "),
                ("action/reset_ring", ""),
                ("attrib/dev_config", ""),
                ("attrib/dev_size", "0"),
                ("attrib/hw_block_size", "0"),
                ("attrib/hw_max_sectors", "128"),
                ("attrib/max_data_area_mb", "1024"),
                ("attrib/cmd_ring_size_mb", "8"),
                ("attrib/cmd_time_out", "30"),
                ("attrib/emulate_write_cache", "0"),
                ("statistics/scsi_lu/num_cmds", "0"),
            ],
            ["loopback", _, _] => &[("nexus", ""), ("address", "2:0:1")],
            ["iscsi", _, _, "acls", _] => &[
                ("auth/userid", ""),
                ("auth/password", ""),
                ("auth/userid_mutual", "NULL"),
                ("cmdsn_depth", "64"),
            ],
            ["iscsi", _, _, "acls", _, _] => &[("write_protect", "0")],
            ["iscsi", _, _] => &[
                ("enable", "0"),
                ("dynamic_sessions", ""),
                ("attrib/authentication", "1"),
                ("attrib/generate_node_acls", "0"),
                ("attrib/demo_mode_write_protect", "1"),
                ("attrib/cache_dynamic_acls", "0"),
            ],
            _ => &[],
        };
        for (name, text) in files {
            let file = path.join(name);
            fs::create_dir_all(file.parent().expect("below the folder"))?;
            fs::write(file, format!("{text}\n"))?;
        }
        if path
            .file_name()
            .is_some_and(|name| name.to_string_lossy().starts_with("tpgt_"))
        {
            for group in ["lun", "acls", "np"] {
                fs::create_dir(path.join(group))?;
            }
        }
        Ok(())
    }

    fn remove_dir(&self, path: &Path) -> io::Result<()> {
        let mut made = self.made.lock().expect("no panic");
        if made
            .iter()
            .any(|other| other != path && other.starts_with(path))
            || has_link(path)
        {
            return Err(io::ErrorKind::DirectoryNotEmpty.into());
        }
        fs::remove_dir_all(path)?;
        made.remove(path);
        Ok(())
    }

    fn link(&self, backstore: &Path, link: &Path) -> io::Result<()> {
        if self.parts(link).contains(&"acls") {
            return std::os::unix::fs::symlink(backstore, link);
        }
        if fs::read_to_string(backstore.join("enable"))?.trim() != "1" {
            return Err(io::Error::from_raw_os_error(
                rustix::io::Errno::NODEV.raw_os_error(),
            ));
        }
        std::os::unix::fs::symlink(backstore, link)?;
        fs::write(
            backstore.join("info"),
            "Status: ACTIVATED  Max Queue Depth: 0\n",
        )?;
        if self.parts(link).first() == Some(&"loopback") && *self.disks.lock().expect("no panic") {
            let device = self.roots.sysfs.join("class/scsi_device/2:0:1:0/device");
            fs::create_dir_all(device.join("block/sda"))?;
            fs::write(device.join("rescan"), "")?;
            fs::write(
                device.join("backstore"),
                backstore.to_string_lossy().as_bytes(),
            )?;
            let disk = self.roots.sysfs.join("class/block/sda");
            fs::create_dir_all(disk.join("holders"))?;
            fs::write(disk.join("dev"), "8:0\n")?;
            fs::write(self.roots.dev.join("sda"), "")?;
            let size = fs::read_to_string(backstore.join("attrib/dev_size"))?;
            self.set_disk_size(size.trim().parse().expect("a number"))?;
        }
        Ok(())
    }

    fn unlink(&self, link: &Path) -> io::Result<()> {
        while *self.stuck.lock().expect("no panic") {
            std::thread::sleep(Duration::from_millis(5));
        }
        fs::remove_file(link)?;
        if self.parts(link).first() == Some(&"loopback") {
            for gone in ["class/scsi_device/2:0:1:0", "class/block/sda"] {
                // Absent where linking found no disk.
                let _ = fs::remove_dir_all(self.roots.sysfs.join(gone));
            }
            let _ = fs::remove_file(self.roots.dev.join("sda"));
        }
        Ok(())
    }
}

impl Kernel for FakeKernel {
    fn apply(&self, change: &Change) -> io::Result<()> {
        self.log.lock().expect("no panic").push(change.to_string());
        let number = self.count.fetch_add(1, Ordering::SeqCst);
        if *self.fail_at.lock().expect("no panic") == Some(number) {
            return Err(io::Error::from_raw_os_error(
                rustix::io::Errno::IO.raw_os_error(),
            ));
        }
        self.apply_unless_failing(change)
    }
}

fn has_link(folder: &Path) -> bool {
    fs::read_dir(folder)
        .into_iter()
        .flatten()
        .flatten()
        .any(|entry| entry.path().is_symlink())
}
