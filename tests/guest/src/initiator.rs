//! The kernel's own iSCSI initiator.

use std::fs;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};

use crate::{TestResult, sh};

const NAME: &str = "iqn.2026-11.com.example:tester";
const PATIENCE: Duration = Duration::from_secs(30);
const POLL: Duration = Duration::from_millis(20);

/// A session with a target that has one LUN. Dropped, it is logged out.
#[derive(Debug)]
pub struct Session {
    iqn: String,
    portal: String,
    disk: PathBuf,
    over: bool,
}

impl Session {
    /// Logs in, and waits for the disk.
    ///
    /// # Errors
    /// If that fails.
    pub fn login(portal: &str, iqn: &str) -> anyhow::Result<Self> {
        fs::create_dir_all("/etc/iscsi")?;
        fs::write(
            "/etc/iscsi/initiatorname.iscsi",
            format!("InitiatorName={NAME}\n"),
        )?;
        // It may run since another test.
        sh::run_any(&["iscsid"])?;
        sh::run(&[
            "iscsiadm",
            "-m",
            "discovery",
            "-t",
            "sendtargets",
            "-p",
            portal,
        ])?;
        sh::run(&["iscsiadm", "-m", "node", "-T", iqn, "-p", portal, "--login"])?;
        let mut session = Self {
            iqn: iqn.to_owned(),
            portal: portal.to_owned(),
            disk: PathBuf::new(),
            over: false,
        };
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(disk) = disk_of_a_session()? {
                session.disk = disk;
                return Ok(session);
            }
            ensure!(Instant::now() < deadline, "no disk after the login");
            thread::sleep(POLL);
        }
    }

    /// The disk that the LUN is.
    pub fn disk(&self) -> &Path {
        &self.disk
    }

    /// Logs out.
    ///
    /// # Errors
    /// If that fails.
    pub fn logout(mut self) -> TestResult {
        self.over = true;
        self.leave()
    }

    fn leave(&self) -> TestResult {
        sh::run(&[
            "iscsiadm",
            "-m",
            "node",
            "-T",
            &self.iqn,
            "-p",
            &self.portal,
            "--logout",
        ])
        .map(drop)
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        if !self.over {
            let _ = self.leave();
        }
    }
}

/// The first disk that a session has brought, once it can be opened.
fn disk_of_a_session() -> anyhow::Result<Option<PathBuf>> {
    for entry in fs::read_dir("/sys/class/block")?.flatten() {
        let name = entry.file_name();
        let device = fs::canonicalize(entry.path()).context("a disk that is gone")?;
        let is_remote = device
            .components()
            .any(|part| part.as_os_str().to_string_lossy().starts_with("session"));
        let node = Path::new("/dev").join(name);
        if is_remote && fs::File::open(&node).is_ok() {
            return Ok(Some(node));
        }
    }
    Ok(None)
}
