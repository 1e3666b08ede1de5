//! The guest's side of [`crate::crash`]: has each candidate's daemon end again and again under load.

mod iscsi;
mod load;
mod resets;

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rustix::process::Signal;

use super::bus::{ADDRESS_VAR, Bus};
use super::process::{Daemon, output};
use super::{FOLDER, keep_logs, lio, peer};
use crate::crash::{CrashPlan, Ending, Line, Seen};
use crate::plan::{Candidate, HW_MAX_SECTORS};
use iscsi::Reads;
use load::Load;
use resets::Resets;

const LIMIT: Duration = Duration::from_secs(60);
/// The size of each LUN in MiB.
const SIZE_MIB: u64 = 64;
/// How many raw commands end between two ends of a daemon, at least.
const COMMANDS: u64 = 100;

/// Ours goes first: the C tcmu-runner answers the kernel's netlink events for LUNs that are not its
/// own.
const CANDIDATES: [Candidate; 2] = [Candidate::File, Candidate::TcmuRunner];

/// Carries `plan` out and writes the lines to `report`; the daemons' logs go beside it.
///
/// # Errors
/// A guest that is not fit for it. A candidate that fails is a line of the report instead.
pub fn run(plan: &CrashPlan, report: &Path) -> Result<()> {
    let lines = File::create(report).with_context(|| report.display().to_string())?;
    let write = |line: &Line| -> Result<()> {
        use std::io::Write;
        let mut text = serde_json::to_string(line).context("cannot write a line")?;
        text.push('\n');
        (&lines).write_all(text.as_bytes()).context("the report")
    };
    let modules = [
        "sd_mod",
        "sg",
        "target_core_user",
        "tcm_loop",
        "iscsi_target_mod",
    ];
    for module in modules {
        // Built in, or missing: whoever needs it says so.
        let _ = output(
            Command::new("modprobe").arg("--quiet").arg(module),
            Duration::from_secs(60),
        );
    }
    let folder = Path::new(FOLDER);
    fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
    let bus = Bus::start(folder)?;
    for candidate in CANDIDATES {
        let tried = Site::new(plan, candidate, &bus).and_then(|site| {
            site.try_endings(|seen| {
                println!("{seen:?}");
                write(&Line::Seen(seen))
            })
        });
        if let Err(error) = tried {
            let reason = format!("{error:#}");
            println!("{candidate} failed: {reason}");
            write(&Line::Failed { candidate, reason })?;
        }
    }
    keep_logs(folder, report);
    write(&Line::Done)
}

/// A candidate with its LUNs.
struct Site<'a> {
    plan: &'a CrashPlan,
    candidate: Candidate,
    bus: &'a Bus,
    /// The program, and a copy of it that an upgrade installs.
    programs: [PathBuf; 2],
    /// Numbers the daemons, whose logs must not overwrite each other.
    started: std::cell::Cell<u32>,
}

impl<'a> Site<'a> {
    fn new(plan: &'a CrashPlan, candidate: Candidate, bus: &'a Bus) -> Result<Self> {
        let program = if candidate.is_ours() {
            let folder = plan.ours.as_ref().context("not built")?;
            folder.join("tcmu-runner")
        } else {
            let peer = plan.peer.as_ref().context("not fetched")?;
            peer::prepare(peer)?;
            peer.program()
        };
        let copy = Path::new(FOLDER).join(format!("tcmu-runner-{candidate}"));
        fs::copy(&program, &copy).context("copying the program")?;
        Ok(Self {
            plan,
            candidate,
            bus,
            programs: [program, copy],
            started: std::cell::Cell::new(0),
        })
    }

    /// Starts the daemon and waits until it owns its name on the bus.
    fn start(&self, program: &Path) -> Result<Daemon> {
        let folder = Path::new(FOLDER);
        let mut command = match &self.plan.peer {
            Some(peer) if !self.candidate.is_ours() => peer::command(peer, program, folder)?,
            _ => Command::new(program),
        };
        command.env(ADDRESS_VAR, self.bus.address());
        let number = self.started.replace(self.started.get() + 1);
        let name = format!("{}-{number}", self.candidate);
        let mut daemon = Daemon::start(&name, &mut command, folder)?;
        let ready = self.bus.await_service(LIMIT);
        daemon.check_alive()?;
        ready.with_context(|| daemon.last_words())?;
        Ok(daemon)
    }

    /// The handler, and the number of the HBA of a LUN.
    fn names(&self, number: u32) -> (&'static str, u32) {
        match self.candidate {
            Candidate::TcmuRunner => ("qcow", 20 + number),
            _ => ("file", 10 + number),
        }
    }

    /// Makes a LUN on an image of its own; returns its backstore and its disk.
    fn make_lun(&self, number: u32) -> Result<(PathBuf, PathBuf)> {
        let backstore = self.make_backstore(number)?;
        let (_, hba) = self.names(number);
        let disk = lio::expose(&backstore, &format!("naa.50014050000000{hba}"))?;
        Ok((backstore, disk))
    }

    fn make_backstore(&self, number: u32) -> Result<PathBuf> {
        let (handler, hba) = self.names(number);
        let image = Path::new(FOLDER).join(format!("{}-{number}.img", self.candidate));
        let file = File::create(&image).context("the image")?;
        file.set_len(SIZE_MIB << 20).context("the image")?;
        lio::backstore(
            &format!("user_{hba}"),
            &format!("crash{hba}"),
            &[
                format!("dev_config={handler}/{}", image.display()),
                format!("dev_size={}", SIZE_MIB << 20),
                "hw_block_size=512".to_owned(),
                format!("hw_max_sectors={HW_MAX_SECTORS}"),
            ],
        )
    }

    fn try_endings(&self, mut tell: impl FnMut(Seen) -> Result<()>) -> Result<()> {
        let mut daemon = self.start(&self.programs[0])?;
        let luns = [self.make_lun(0)?, self.make_lun(1)?];
        let far = self.make_backstore(2)?;
        let iqn = format!("iqn.2026-11.com.example:{}", self.candidate);
        let url = lio::export(&far, &iqn)?;
        let mut resets = Resets::watch(luns.iter().map(|(backstore, _)| backstore.as_path()))?;
        for ending in Ending::ALL {
            let load = Load::start(&luns[0].1, &luns[1].1)?;
            let name = format!("{}-{ending:?}-iscsi-perf", self.candidate);
            let mut reads = Reads::start(&name, &url, Path::new(FOLDER))?;
            let (mut downtimes_ms, mut pauses_ms, mut reset) = (Vec::new(), Vec::new(), 0);
            for time in 0..self.plan.times {
                load.go_on(COMMANDS, LIMIT)?;
                load.take_longest();
                let begun = Instant::now();
                let signal = match ending {
                    Ending::Crash => Signal::KILL,
                    Ending::Restart | Ending::Upgrade => Signal::TERM,
                };
                daemon.end(signal, LIMIT)?;
                let other = ending == Ending::Upgrade && time % 2 == 0;
                daemon = self.start(&self.programs[usize::from(other)])?;
                downtimes_ms.push(begun.elapsed().as_secs_f64() * 1000.0);
                load.go_on(COMMANDS, LIMIT)?;
                reads.go_on()?;
                pauses_ms.push(load.take_longest().as_secs_f64() * 1000.0);
                reset += u32::from(resets.happened()?);
            }
            let iscsi = reads.finish()?;
            let (raw, fio) = load.finish()?;
            tell(Seen {
                candidate: self.candidate,
                ending,
                downtimes_ms,
                pauses_ms,
                resets: reset,
                raw,
                fio,
                iscsi,
            })?;
        }
        daemon.stop()
    }
}
