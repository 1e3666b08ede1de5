//! Each candidate brought to life: its daemon, its LUN, its block device.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::bus::{ADDRESS_VAR, Bus};
use super::lio;
use super::nbd::Export;
use super::peer;
use super::process::{Daemon, bounded, output, wait_for};
use super::qcow2;
use crate::plan::{Candidate, EMPTY_FILE_SYSTEM_MIB, EMPTY_MIB, HW_MAX_SECTORS, Image, Plan};

const LIMIT: Duration = Duration::from_secs(60);

/// Where the C tcmu-runner's backstores are, and their names with their WWNs.
const PEER_HBA: &str = "user_0";
const PEER_RAW: (&str, &str) = ("bench-peer", "naa.5001405000000003");
const PEER_QCOW: (&str, &str) = ("bench-peer-qcow", "naa.5001405000000004");
const PEER_EMPTY: (&str, &str) = ("bench-peer-empty", "naa.5001405000000005");
/// The folder of the images without data.
const EMPTY: &str = "empty";

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
    /// qemu-nbd on the full image, and while there is one, on the empty image.
    nbd: Vec<Export>,
    /// LUNs of ours on images without data, each for one run.
    empty: Vec<PathBuf>,
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
            nbd: Vec::new(),
            empty: Vec::new(),
        }
    }

    /// Sets a candidate up and returns its block device, or what fio is to work on instead.
    ///
    /// # Errors
    /// Whatever keeps it from serving.
    pub(super) fn serve(&mut self, candidate: Candidate) -> Result<PathBuf> {
        let device = match candidate {
            Candidate::TcmuRunner => {
                let image = self.image.clone();
                self.serve_peer_on(PEER_RAW, &image, self.plan.image_mib)?
            }
            Candidate::Fileio => self.serve_fileio()?,
            Candidate::Nullio => self.serve_nullio()?,
            Candidate::Loop => self.serve_loop()?,
            Candidate::Bare => return Ok(self.image.clone()),
            Candidate::File => {
                let image = self.image.display().to_string();
                self.serve_ours("bench-file", "file", &image, self.plan.image_mib)?
            }
            Candidate::Null => {
                let size = self.plan.image_mib;
                self.serve_ours("bench-null", "null", "bench;fill=off", size)?
            }
            Candidate::Qcow => {
                let image = self.full_qcow(candidate)?.display().to_string();
                self.prepare_empty()?;
                self.serve_ours("bench-qcow", "qcow2", &image, self.plan.image_mib)?
            }
            Candidate::TcmuRunnerQcow => {
                let image = self.full_qcow(candidate)?;
                self.serve_peer_on(PEER_QCOW, &image, self.plan.image_mib)?
            }
            Candidate::QemuNbd => {
                let image = self.full_qcow(candidate)?;
                self.serve_nbd(&image)?
            }
        };
        lio::allow_large_requests(&device)?;
        Ok(device)
    }

    /// Has a candidate serve a new image without data.
    ///
    /// # Errors
    /// Whatever keeps it from serving.
    pub(super) fn serve_empty(&mut self, candidate: Candidate) -> Result<PathBuf> {
        self.make_empty_folder()?;
        let image = self.empty_image(candidate, 0);
        let device = match candidate {
            Candidate::Qcow => return self.empty.pop().context("no image is left"),
            Candidate::TcmuRunnerQcow => {
                qcow2::empty(&image, EMPTY_MIB)?;
                self.serve_peer_on(PEER_EMPTY, &image, EMPTY_MIB)?
            }
            Candidate::QemuNbd => {
                qcow2::empty(&image, EMPTY_MIB)?;
                self.serve_nbd(&image)?
            }
            other => bail!("{other} serves no qcow2 image"),
        };
        lio::allow_large_requests(&device)?;
        Ok(device)
    }

    /// Takes the image without data away again, whatever was written to it.
    ///
    /// # Errors
    /// Whatever keeps the candidate from letting go of it.
    pub(super) fn drop_empty(&mut self, candidate: Candidate) -> Result<()> {
        match candidate {
            Candidate::TcmuRunnerQcow => {
                let (name, wwn) = PEER_EMPTY;
                lio::remove(&lio::place(PEER_HBA, name), wwn)?;
            }
            Candidate::QemuNbd => self.nbd.pop().context("nothing is served")?.stop()?,
            _ => return Ok(()),
        }
        fs::remove_file(self.empty_image(candidate, 0)).context("the empty image")
    }

    /// All images without data that our daemon will need, each with its LUN: once the C tcmu-runner
    /// runs, it answers for LUNs that are not its own.
    fn prepare_empty(&mut self) -> Result<()> {
        let jobs = &self.plan.jobs;
        let jobs = jobs.iter().filter(|job| job.image == Image::Empty).count();
        let placements = Candidate::Qcow.placements().len();
        for number in 0..jobs * placements * self.plan.rounds as usize {
            self.make_empty_folder()?;
            let image = self.empty_image(Candidate::Qcow, number);
            qcow2::empty(&image, EMPTY_MIB)?;
            let name = format!("bench-empty-{number}");
            let config = image.display().to_string();
            let device = self.serve_ours(&name, "qcow2", &config, EMPTY_MIB)?;
            lio::allow_large_requests(&device)?;
            self.empty.push(device);
        }
        Ok(())
    }

    fn make_empty_folder(&self) -> Result<()> {
        let folder = self.folder.join(EMPTY);
        if folder.exists() {
            return Ok(());
        }
        qcow2::file_system(&folder, EMPTY_FILE_SYSTEM_MIB)
    }

    fn empty_image(&self, candidate: Candidate, number: usize) -> PathBuf {
        let name = format!("{candidate}-{number}.qcow2");
        self.folder.join(EMPTY).join(name)
    }

    /// A qcow2 image of the candidate's own with the bytes of the raw image.
    fn full_qcow(&self, candidate: Candidate) -> Result<PathBuf> {
        let image = self.folder.join(format!("{candidate}.qcow2"));
        qcow2::full(&self.image, &image)?;
        Ok(image)
    }

    fn serve_nbd(&mut self, image: &Path) -> Result<PathBuf> {
        let number = u32::try_from(self.nbd.len()).context("so many NBD devices")?;
        let export = Export::start(number, image, self.folder)?;
        let device = export.device.clone();
        self.nbd.push(export);
        Ok(device)
    }

    /// The process that serves a candidate.
    #[must_use]
    pub(super) fn daemon(&self, candidate: Candidate) -> Option<u32> {
        match candidate {
            Candidate::TcmuRunner | Candidate::TcmuRunnerQcow => self.peer.as_ref(),
            Candidate::File | Candidate::Null | Candidate::Qcow => self.ours.as_ref(),
            Candidate::QemuNbd => self.nbd.last().map(|export| &export.daemon),
            Candidate::Fileio | Candidate::Nullio | Candidate::Loop | Candidate::Bare => None,
        }
        .map(Daemon::pid)
    }

    /// Whether the candidate's daemon still runs.
    ///
    /// # Errors
    /// It has ended.
    pub(super) fn check_alive(&mut self, candidate: Candidate) -> Result<()> {
        let daemon = match candidate {
            Candidate::TcmuRunner | Candidate::TcmuRunnerQcow => self.peer.as_mut(),
            Candidate::File | Candidate::Null | Candidate::Qcow => self.ours.as_mut(),
            Candidate::QemuNbd => self.nbd.last_mut().map(|export| &mut export.daemon),
            Candidate::Fileio | Candidate::Nullio | Candidate::Loop | Candidate::Bare => None,
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

    /// Has the C tcmu-runner's qcow handler serve an image, as a backstore of this name under this
    /// WWN.
    fn serve_peer_on(
        &mut self,
        (name, wwn): (&str, &str),
        image: &Path,
        size_mib: u64,
    ) -> Result<PathBuf> {
        if self.peer.is_none() {
            self.start_peer()?;
        }
        let backstore = lio::backstore(
            PEER_HBA,
            name,
            &[
                format!("dev_config=qcow/{}", image.display()),
                format!("dev_size={}", size_mib << 20),
                "hw_block_size=512".to_owned(),
                format!("hw_max_sectors={HW_MAX_SECTORS}"),
            ],
        )?;
        lio::expose(&backstore, wwn)
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

    /// Our daemon leaves LUNs of `qcow` to the C runner, and has `qcow2`.
    fn serve_ours(
        &mut self,
        name: &str,
        handler: &str,
        config: &str,
        size_mib: u64,
    ) -> Result<PathBuf> {
        let programs = self.plan.ours.as_ref().context("not built")?;
        if self.ours.is_none() {
            let config = self.folder.join("ours.conf");
            let mut command = Command::new(programs.join(Candidate::runner(&self.plan.candidates)));
            let without_qcow = match self.plan.candidates.contains(&Candidate::Qcow) {
                true => "",
                false => "[handlers.qcow]\nenabled = false\n",
            };
            fs::write(&config, without_qcow).context("configuration")?;
            command.args(["--no-dbus", "--log-level", "info", "--config"]);
            command.arg(config);
            self.ours = Some(Daemon::start("ours", &mut command, self.folder)?);
        }
        let daemon = self.ours.as_mut().context("just started")?;
        let mut command = Command::new(programs.join("tcmuctl"));
        command
            .args(["create", name])
            .args(["--handler", handler, "--config", config, "--loopback"])
            .args(["--size", &(size_mib << 20).to_string()])
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
