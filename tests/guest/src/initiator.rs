//! The kernel's own iSCSI initiator.

use std::fs;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};

use crate::{TestResult, sh};

/// Where targets are found that `tcmuctl` makes without saying where.
pub const PORTAL: &str = "127.0.0.1:3260";

/// The initiator's name.
pub const NAME: &str = "iqn.2026-11.com.example:tester";

/// iscsiadm's exit code where the target does not accept the password.
const NOT_ACCEPTED: i32 = 24;

const PATIENCE: Duration = Duration::from_secs(30);
const POLL: Duration = Duration::from_millis(20);

/// A session with a target at [`PORTAL`] that has one LUN. Dropped, it is logged out.
#[derive(Debug)]
pub struct Session {
    iqn: String,
    disk: PathBuf,
    over: bool,
}

impl Session {
    /// Logs in, and waits for the disk.
    ///
    /// # Errors
    /// If that fails.
    pub fn login(iqn: &str) -> anyhow::Result<Self> {
        discover()?;
        sh::run(&node(iqn, &["--login"]))?;
        Self::await_disk(iqn)
    }

    /// As [`login`](Self::login), with a name and password (CHAP).
    ///
    /// # Errors
    /// If that fails.
    pub fn login_as(iqn: &str, user: &str, password: &str) -> anyhow::Result<Self> {
        discover()?;
        identify(iqn, user, password)?;
        sh::run(&node(iqn, &["--login"]))?;
        Self::await_disk(iqn)
    }

    /// Tries to log in with a name and password that the target must not accept.
    ///
    /// # Errors
    /// If it does, or if something else goes wrong.
    pub fn refused_as(iqn: &str, user: &str, password: &str) -> TestResult {
        discover()?;
        identify(iqn, user, password)?;
        sh::run_code(&node(iqn, &["--login"]), NOT_ACCEPTED).map(drop)
    }

    fn await_disk(iqn: &str) -> anyhow::Result<Self> {
        let mut session = Self {
            iqn: iqn.to_owned(),
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
        sh::run(&node(&self.iqn, &["--logout"])).map(drop)
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        if !self.over {
            let _ = self.leave();
        }
    }
}

/// Starts the initiator, and has it find the portal's targets.
fn discover() -> TestResult {
    fs::create_dir_all("/etc/iscsi")?;
    fs::write(
        "/etc/iscsi/initiatorname.iscsi",
        format!("InitiatorName={NAME}\n"),
    )?;
    // It may run since another test.
    sh::run_any(&["iscsid"])?;
    let find = ["-m", "discovery", "-t", "sendtargets", "-p", PORTAL];
    sh::run(&[&["iscsiadm"], &find[..]].concat()).map(drop)
}

/// A command of iscsiadm's about one target.
fn node<'a>(iqn: &'a str, what: &[&'a str]) -> Vec<&'a str> {
    let node = ["iscsiadm", "-m", "node", "-T", iqn, "-p", PORTAL];
    [&node[..], what].concat()
}

/// Sets the name and password for later logins.
fn identify(iqn: &str, user: &str, password: &str) -> TestResult {
    for (name, value) in [
        ("authmethod", "CHAP"),
        ("username", user),
        ("password", password),
    ] {
        let name = format!("node.session.auth.{name}");
        sh::run(&node(iqn, &["--op", "update", "-n", &name, "-v", value]))?;
    }
    Ok(())
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
