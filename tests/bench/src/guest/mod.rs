//! The program that runs inside the guest: sets the candidates up, measures them in turn, and
//! writes one line per fact.

mod bus;
mod cpu;
mod crash;
mod lio;
mod nbd;
mod peer;
mod process;
mod qcow2;
mod served;
mod syscalls;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::fio;
use crate::plan::{Candidate, Image, Plan, Run};
use crate::record::{Line, Sample, SyscallCount};
pub use crash::run as run_crash;
use served::Bench;

/// Where the image, the logs and the sockets live: a tmpfs of the guest's own.
const FOLDER: &str = "/run/tcmu-bench";

/// Set-up order. Our daemon attaches its LUNs before the C tcmu-runner starts, since the latter
/// answers the kernel's netlink events for LUNs that are not its own.
const SET_UP: [Candidate; 10] = [
    Candidate::File,
    Candidate::Null,
    Candidate::Qcow,
    Candidate::TcmuRunner,
    Candidate::TcmuRunnerQcow,
    Candidate::QemuNbd,
    Candidate::Fileio,
    Candidate::Nullio,
    Candidate::Loop,
    Candidate::Bare,
];

/// Measures `plan` and writes the lines to `report`; the daemons' logs go beside it.
///
/// # Errors
/// A guest that is not fit for it. A candidate that fails is a line of the report instead.
pub fn run(plan: &Plan, report: &Path) -> Result<()> {
    let mut lines = Lines(File::create(report).with_context(|| report.display().to_string())?);
    lines.write(&guest()?)?;
    let folder = Path::new(FOLDER);
    let image = prepare(plan, folder)?;
    let mut bench = Bench::new(plan, folder, image);

    let mut devices = BTreeMap::new();
    for candidate in SET_UP.into_iter().filter(|c| plan.candidates.contains(c)) {
        match bench.serve(candidate) {
            Ok(device) => {
                println!("{candidate}: {}", device.display());
                devices.insert(candidate, device);
            }
            Err(error) => lines.failed(candidate, &error)?,
        }
    }

    for round in 0..plan.rounds {
        println!("round {} of {}", round + 1, plan.rounds);
        let live: Vec<Candidate> = devices.keys().copied().collect();
        for run in plan.round(round, &live) {
            let Some(device) = devices.get(&run.candidate) else {
                continue;
            };
            match measure(plan, &mut bench, run, round, device) {
                Ok(sample) => lines.write(&Line::Sample(sample))?,
                Err(error) => {
                    devices.remove(&run.candidate);
                    lines.failed(run.candidate, &error.context(format!("{run}")))?;
                }
            }
        }
    }

    if plan.syscalls {
        count_syscalls(plan, &mut bench, &devices, &mut lines)?;
    }
    if let Err(error) = bench.stop_ours() {
        println!("our daemon: {error:#}");
    }
    keep_logs(folder, report);
    lines.write(&Line::Done)
}

/// The report's lines, each written at once.
struct Lines(File);

impl Lines {
    fn write(&mut self, line: &Line) -> Result<()> {
        let mut text = serde_json::to_string(line).context("cannot write a line")?;
        text.push('\n');
        self.0.write_all(text.as_bytes()).context("the report")
    }

    fn failed(&mut self, candidate: Candidate, error: &anyhow::Error) -> Result<()> {
        let reason = format!("{error:#}");
        println!("{candidate} failed: {reason}");
        self.write(&Line::Failed { candidate, reason })
    }
}

fn guest() -> Result<Line> {
    let meminfo = fs::read_to_string("/proc/meminfo").context("/proc/meminfo")?;
    let total = meminfo
        .lines()
        .find_map(|line| line.strip_prefix("MemTotal:")?.trim().strip_suffix(" kB"))
        .and_then(|kib| kib.trim().parse::<u64>().ok())
        .context("/proc/meminfo names no MemTotal")?;
    let fio = process::output(
        Command::new("fio").arg("--version"),
        Duration::from_secs(30),
    )?;
    Ok(Line::Guest {
        kernel: rustix::system::uname()
            .release()
            .to_string_lossy()
            .into_owned(),
        cpus: cpu::cpus()?,
        memory_mib: total / 1024,
        fio: fio.trim().to_owned(),
    })
}

/// Loads what may be a module, mounts the tmpfs and fills the image, so that no candidate measures
/// holes.
fn prepare(plan: &Plan, folder: &Path) -> Result<PathBuf> {
    if cpu::cpus()? < 2 {
        bail!("the guest has one CPU: fio and the daemon need one each");
    }
    for module in [
        "sd_mod",
        "loop",
        "target_core_user",
        "target_core_file",
        "tcm_loop",
        "nbd",
    ] {
        // Built in, or missing: whoever needs it says so.
        let _ = process::output(
            Command::new("modprobe").arg("--quiet").arg(module),
            Duration::from_secs(60),
        );
    }
    fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
    process::output(
        Command::new("mount")
            .args(["-t", "tmpfs", "-o"])
            .arg(format!("size={}m,mode=0755", plan.storage_mib()))
            .arg("tcmu-bench")
            .arg(folder),
        Duration::from_secs(30),
    )?;
    let path = folder.join("image");
    let mut image = File::create(&path).context("the image")?;
    let mut block = vec![0u8; 1 << 20];
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    for byte in &mut block {
        // Marsaglia's xorshift: any bytes that are not all the same will do.
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        *byte = state as u8;
    }
    for _ in 0..plan.image_mib {
        image.write_all(&block).context("filling the image")?;
    }
    Ok(path)
}

fn measure(
    plan: &Plan,
    bench: &mut Bench<'_>,
    run: Run,
    round: u32,
    device: &Path,
) -> Result<Sample> {
    bench.check_alive(run.candidate)?;
    if run.job.image == Image::Empty {
        let device = bench.serve_empty(run.candidate)?;
        let sample = sample(plan, bench, run, round, &device);
        bench.drop_empty(run.candidate)?;
        return sample;
    }
    sample(plan, bench, run, round, device)
}

fn sample(plan: &Plan, bench: &Bench<'_>, run: Run, round: u32, device: &Path) -> Result<Sample> {
    let daemon = bench.daemon(run.candidate);
    if let Some(pid) = daemon {
        cpu::bind(pid, run.placement.daemon_cpu())?;
    }
    let before = cpu::CpuTimes::now(daemon)?;
    let fio = run_fio(plan, run, device)?;
    let (daemon_cpu, kernel_cpu) = cpu::CpuTimes::now(daemon)?.since(&before);
    Ok(Sample {
        run,
        round,
        iops: fio.iops,
        bytes_per_s: fio.bytes_per_s,
        p50_us: fio.p50_us,
        p99_us: fio.p99_us,
        commands: fio.commands,
        bytes: fio.bytes,
        daemon_cpu_s: daemon_cpu.as_secs_f64(),
        kernel_cpu_s: kernel_cpu.as_secs_f64(),
        fio_cpu_s: fio.cpu_s,
    })
}

fn run_fio(plan: &Plan, run: Run, device: &Path) -> Result<fio::Outcome> {
    let json = Path::new(FOLDER).join("fio.json");
    let mut command = match run.placement.fio_cpu() {
        Some(cpu) => {
            let mut command = Command::new("taskset");
            command.args(["--cpu-list", &cpu.to_string(), "fio"]);
            command
        }
        None => Command::new("fio"),
    };
    command
        .args(fio::arguments(run, device, plan.runtime_ms, &json))
        .current_dir(FOLDER);
    let limit = Duration::from_millis(plan.runtime_ms) + Duration::from_secs(45);
    process::output(&mut command, limit)?;
    fio::parse(&fs::read_to_string(&json).context("fio's output")?, run.job)
}

/// A pass of its own over the deep 4k jobs, since counting costs time.
fn count_syscalls(
    plan: &Plan,
    bench: &mut Bench<'_>,
    devices: &BTreeMap<Candidate, PathBuf>,
    lines: &mut Lines,
) -> Result<()> {
    for (&candidate, device) in devices {
        let Some(pid) = bench.daemon(candidate) else {
            continue;
        };
        for &job in plan
            .jobs
            .iter()
            .filter(|job| job.block_kib == 4 && job.depth > 1)
        {
            for &placement in candidate.placements() {
                let run = Run {
                    candidate,
                    placement,
                    job,
                };
                let counter = match syscalls::Counter::start(pid, Path::new(FOLDER)) {
                    Ok(counter) => counter,
                    Err(error) => return lines.write(&Line::NoSyscalls(format!("{error:#}"))),
                };
                let method = counter.method();
                let outcome = cpu::bind(pid, placement.daemon_cpu())
                    .and_then(|()| run_fio(plan, run, device));
                let calls = counter.stop()?;
                match outcome {
                    Ok(fio) => lines.write(&Line::Syscalls(SyscallCount {
                        run,
                        calls,
                        commands: fio.commands,
                        method,
                    }))?,
                    Err(error) => lines.failed(candidate, &error.context(format!("{run}")))?,
                }
            }
        }
    }
    Ok(())
}

/// Copies the daemons' logs beside the report; a log that cannot be copied is no reason to lose the
/// figures.
fn keep_logs(folder: &Path, report: &Path) {
    let (Ok(entries), Some(to)) = (fs::read_dir(folder), report.parent()) else {
        return;
    };
    let logs = entries
        .flatten()
        .filter(|entry| entry.path().extension().is_some_and(|e| e == "log"));
    for log in logs {
        if let Err(error) = fs::copy(log.path(), to.join(log.file_name())) {
            println!("{}: {error}", log.path().display());
        }
    }
}
