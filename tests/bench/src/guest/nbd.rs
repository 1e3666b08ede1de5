//! qemu-nbd behind the kernel's own NBD client: the block device that a user of qemu's programs gets.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};

use super::process::{Daemon, output, wait_for};

const LIMIT: Duration = Duration::from_secs(30);

/// An image that qemu-nbd serves.
#[derive(Debug)]
pub(super) struct Export {
    pub(super) daemon: Daemon,
    pub(super) device: PathBuf,
}

impl Export {
    /// Serves a qcow2 image as /dev/nbd`number`, as fast as qemu-nbd can: through the page cache, as
    /// the others, and with io_uring.
    ///
    /// # Errors
    /// A kernel without NBD, and whatever qemu-nbd says.
    pub(super) fn start(number: u32, image: &Path, logs: &Path) -> Result<Self> {
        let name = format!("nbd{number}");
        let device = Path::new("/dev").join(&name);
        let mut command = Command::new("qemu-nbd");
        command
            .args(["--format=qcow2", "--cache=writeback", "--aio=io_uring"])
            // It stays in the foreground if it is to say what it does.
            .args(["--discard=unmap", "--verbose", "--connect"])
            .args([&device, image]);
        let mut daemon = Daemon::start(&format!("qemu-{name}"), &mut command, logs)?;
        let size = Path::new("/sys/block").join(&name).join("size");
        wait_for("the size of the NBD device", LIMIT, || {
            daemon.check_alive()?;
            let size = fs::read_to_string(&size).context("the kernel has no NBD devices")?;
            Ok((size.trim() != "0").then_some(()))
        })?;
        Ok(Self { daemon, device })
    }

    /// Takes the device back, and waits until the image is closed.
    ///
    /// # Errors
    /// It does not come to its end.
    pub(super) fn stop(self) -> Result<()> {
        output(
            Command::new("qemu-nbd")
                .arg("--disconnect")
                .arg(&self.device),
            LIMIT,
        )?;
        self.daemon.ended(LIMIT)
    }
}
