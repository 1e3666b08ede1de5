//! Each candidate brought to life: its daemon, its LUN, its block device.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};

use super::bus::{ADDRESS_VAR, Bus};
use super::lio;
use super::peer;
use super::process::{Daemon, bounded, output, wait_for};
use crate::plan::{Candidate, HW_MAX_SECTORS, Plan};

const LIMIT: Duration = Duration::from_secs(60);

/// The daemons and block devices of a guest.
#[derive(Debug)]
pub(super) struct Bench<'a> {
    plan: &'a Plan,
    /// The tmpfs with the image and the daemons' logs.
    folder: &'a Path,
    image: PathBuf,
    bus: Option<Bus>,
    peer: Option<Daemon>,
    ours: Option<Daemon>,
}

impl<'a> Bench<'a> {
    /// A bench whose candidates all serve `image`; logs and sockets go to `folder`.
    #[must_use]
    pub(super) fn new(plan: &'a Plan, folder: &'a Path, image: PathBuf) -> Self {
        Self {
            plan,
            folder,
            image,
            bus: None,
            peer: None,
            ours: None,
        }
    }

    /// Sets a candidate up and returns its block device.
    ///
    /// # Errors
    /// Whatever keeps it from serving.
    pub(super) fn serve(&mut self, candidate: Candidate) -> Result<PathBuf> {
        let device = match candidate {
            Candidate::TcmuRunner => self.serve_peer()?,
            Candidate::Fileio => self.serve_fileio()?,
            Candidate::Nullio => self.serve_nullio()?,
            Candidate::Loop => self.serve_loop()?,
            Candidate::File => {
                let image = self.image.display().to_string();
                self.serve_ours("file", &image)?
            }
            Candidate::Null => self.serve_ours("null", "bench;fill=off")?,
        };
        lio::allow_large_requests(&device)?;
        Ok(device)
    }

    /// The process that serves a candidate.
    #[must_use]
    pub(super) fn daemon(&self, candidate: Candidate) -> Option<u32> {
        match candidate {
            Candidate::TcmuRunner => self.peer.as_ref(),
            Candidate::File | Candidate::Null => self.ours.as_ref(),
            Candidate::Fileio | Candidate::Nullio | Candidate::Loop => None,
        }
        .map(Daemon::pid)
    }

    /// Whether the candidate's daemon still runs.
    ///
    /// # Errors
    /// It has ended.
    pub(super) fn check_alive(&mut self, candidate: Candidate) -> Result<()> {
        let daemon = match candidate {
            Candidate::TcmuRunner => self.peer.as_mut(),
            Candidate::File | Candidate::Null => self.ours.as_mut(),
            Candidate::Fileio | Candidate::Nullio | Candidate::Loop => None,
        };
        daemon.map_or(Ok(()), Daemon::check_alive)
    }

    /// Asks our daemon to end, so that its closing lines reach its log.
    ///
    /// # Errors
    /// It does not end.
    pub(super) fn stop_ours(&mut self) -> Result<()> {
        self.ours.take().map_or(Ok(()), Daemon::stop)
    }

    fn size(&self) -> u64 {
        self.plan.image_mib << 20
    }

    fn serve_fileio(&self) -> Result<PathBuf> {
        let backstore = lio::backstore(
            "fileio_0",
            "bench",
            &[format!(
                "fd_dev_name={},fd_dev_size={},fd_buffered_io=1",
                self.image.display(),
                self.size()
            )],
        )?;
        fs::write(backstore.join("attrib/emulate_write_cache"), "1")
            .context("switching the write cache on")?;
        lio::expose(&backstore, "naa.5001405000000001")
    }

    fn serve_nullio(&self) -> Result<PathBuf> {
        let pages = self.size() / rustix::param::page_size() as u64;
        let backstore = lio::backstore(
            "rd_mcp_0",
            "bench",
            &[format!("rd_pages={pages},rd_nullio=1")],
        )?;
        lio::expose(&backstore, "naa.5001405000000002")
    }

    fn serve_loop(&self) -> Result<PathBuf> {
        let device = output(
            Command::new("losetup")
                .args(["--find", "--show"])
                .arg(&self.image),
            LIMIT,
        )?;
        Ok(PathBuf::from(device.trim()))
    }

    fn serve_peer(&mut self) -> Result<PathBuf> {
        self.start_peer()?;
        let backstore = lio::backstore(
            "user_0",
            "bench-peer",
            &[
                format!("dev_config=qcow/{}", self.image.display()),
                format!("dev_size={}", self.size()),
                "hw_block_size=512".to_owned(),
                format!("hw_max_sectors={HW_MAX_SECTORS}"),
            ],
        )?;
        lio::expose(&backstore, "naa.5001405000000003")
    }

    /// Starts Debian's tcmu-runner with a system bus of its own, and waits until it owns its name
    /// there: only then does it answer the kernel.
    fn start_peer(&mut self) -> Result<()> {
        let peer = self.plan.peer.as_ref().context("not fetched")?;
        peer::prepare(peer)?;
        let bus = Bus::start(self.folder)?;
        let mut command = peer::command(peer, &peer.program(), self.folder)?;
        command.env(ADDRESS_VAR, bus.address());
        self.bus = Some(bus);
        let mut daemon = Daemon::start("tcmu-runner-c", &mut command, self.folder)?;
        let ready = self
            .bus
            .as_ref()
            .map_or(Ok(()), |bus| bus.await_service(LIMIT));
        daemon.check_alive()?;
        ready.with_context(|| daemon.last_words())?;
        self.peer = Some(daemon);
        Ok(())
    }

    /// Our daemon leaves LUNs of `qcow` to the C runner.
    fn serve_ours(&mut self, handler: &str, config: &str) -> Result<PathBuf> {
        let programs = self.plan.ours.as_ref().context("not built")?;
        if self.ours.is_none() {
            let config = self.folder.join("ours.conf");
            fs::write(&config, "[handlers.qcow]\nenabled = false\n").context("configuration")?;
            let mut command = Command::new(programs.join("tcmu-runner"));
            command.args(["--no-dbus", "--log-level", "info", "--config"]);
            command.arg(config);
            self.ours = Some(Daemon::start("ours", &mut command, self.folder)?);
        }
        let daemon = self.ours.as_mut().context("just started")?;
        let mut command = Command::new(programs.join("tcmuctl"));
        command
            .arg("create")
            .arg(format!("bench-{handler}"))
            .args(["--handler", handler, "--config", config, "--loopback"])
            .args(["--size", &(self.plan.image_mib << 20).to_string()])
            .args(["--max-sectors", &HW_MAX_SECTORS.to_string()]);
        let said = bounded("tcmuctl create", LIMIT, move || {
            // It refuses while the daemon is not yet listening.
            wait_for("create", LIMIT / 3, || {
                output(&mut command, LIMIT / 2).map(Some)
            })
        });
        daemon.check_alive()?;
        let said = said.with_context(|| daemon.last_words())?;
        said.split_ascii_whitespace()
            .find(|word| word.starts_with("/dev/"))
            .map(PathBuf::from)
            .with_context(|| format!("tcmuctl names no block device: {said:?}"))
    }
}
