//! The host's side: boots the guest and gathers its report.

pub mod peers;

use std::fs::{self, File};
use std::io::BufReader;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use tcmu_rig::{Guest, Kernel};

use crate::crash::{self, CrashPlan, Ending};
use crate::plan::Plan;
use crate::record::{Machine, Record};

/// The guest's CPUs: one for fio, one for the daemon.
const CPUS: u32 = 2;

/// What the guest has beside the image.
const MEMORY_MIB: u64 = 1024;

/// Boots `kernel` and measures `plan` in it; the guest's lines and logs go to `results`.
///
/// # Errors
/// A guest that cannot be started. One that dies midway yields an incomplete record.
pub fn measure(plan: &Plan, kernel: Kernel, results: &Path) -> Result<Record> {
    check_programs()?;
    if plan.has_qcow() {
        require("qemu-nbd", "qemu-utils")?;
        require("mkfs.ext4", "e2fsprogs")?;
    }
    fs::create_dir_all(results).with_context(|| results.display().to_string())?;
    let results = results.canonicalize().context("the results folder")?;
    let plan_file = results.join("plan.json");
    let lines = results.join("lines.jsonl");
    let text = serde_json::to_string_pretty(plan).context("the plan")?;
    fs::write(&plan_file, text).context("the plan")?;
    // Lines of an earlier guest must not count as this one's.
    if lines.exists() {
        fs::remove_file(&lines).context("the lines of an earlier run")?;
    }

    println!(
        "{} fio runs, more than {:.0} minutes",
        runs(plan),
        runs(plan) as f64 * (plan.runtime_ms as f64 / 1000.0 + 0.5) / 60.0
    );
    let load_before = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let outcome = Guest::builder(std::env::current_exe().context("this program's path")?)
        .arg("guest")
        .arg(plan_file.display().to_string())
        .arg(lines.display().to_string())
        .kernel(kernel)
        .cpus(CPUS)
        .memory_mb(
            u32::try_from(MEMORY_MIB + plan.image_mib + plan.storage_mib())
                .context("the image is too large")?,
        )
        .timeout(time_limit(plan))
        .results_dir(&results)
        .on_line(|line| println!("{line}"))
        .run()?;
    println!("guest: {outcome}");
    for complaint in &outcome.kernel_complaints {
        println!("the guest's kernel said: {complaint}");
    }
    let machine = Machine {
        processor: processor(),
        host_kernel: rustix::system::uname()
            .release()
            .to_string_lossy()
            .into_owned(),
        load_before: load_before.split(' ').next().unwrap_or_default().to_owned(),
        rig_kernel: kernel.to_string(),
        ..Machine::default()
    };
    let file = File::open(&lines).with_context(|| format!("the guest left no lines: {outcome}"))?;
    Record::gather(machine, plan.clone(), BufReader::new(file))
}

/// Boots `kernel`, has the daemons of `plan` end in it, and returns the report in Markdown; the
/// guest's lines and logs go to `results`.
///
/// # Errors
/// A guest that cannot be started.
pub fn crash(plan: &CrashPlan, kernel: Kernel, results: &Path) -> Result<(String, bool)> {
    check_programs()?;
    fs::create_dir_all(results).with_context(|| results.display().to_string())?;
    let results = results.canonicalize().context("the results folder")?;
    let (plan_file, lines) = (results.join("plan.json"), results.join("lines.jsonl"));
    fs::write(&plan_file, serde_json::to_string_pretty(plan)?).context("the plan")?;
    if lines.exists() {
        fs::remove_file(&lines).context("the lines of an earlier run")?;
    }
    let ends = plan.times * 2 * Ending::ALL.len() as u32;
    let outcome = Guest::builder(std::env::current_exe().context("this program's path")?)
        .arg("crash-guest")
        .arg(plan_file.display().to_string())
        .arg(lines.display().to_string())
        .kernel(kernel)
        .cpus(CPUS)
        .memory_mb(2048)
        .timeout(Duration::from_secs(600 + 20 * u64::from(ends)))
        .results_dir(&results)
        .on_line(|line| println!("{line}"))
        .run()?;
    println!("guest: {outcome}");
    for complaint in &outcome.kernel_complaints {
        println!("the guest's kernel said: {complaint}");
    }
    let file = File::open(&lines).with_context(|| format!("the guest left no lines: {outcome}"))?;
    let lines = crash::gather(BufReader::new(file))?;
    let place = format!("`{kernel}` with {CPUS} CPUs on {}", processor());
    let complete = lines.contains(&crash::Line::Done);
    Ok((crash::markdown(plan, &lines, &place), complete))
}

fn check_programs() -> Result<()> {
    for (program, package) in [
        ("fio", "fio"),
        ("dbus-daemon", "dbus"),
        ("taskset", "util-linux"),
    ] {
        require(program, package)?;
    }
    Ok(())
}

/// How often fio is started.
fn runs(plan: &Plan) -> usize {
    (0..plan.rounds)
        .map(|round| plan.round(round, &plan.candidates).len())
        .sum()
}

/// Ample time for all runs: the start of fio alone takes seconds in a slow guest.
fn time_limit(plan: &Plan) -> Duration {
    let run = Duration::from_millis(plan.runtime_ms) + Duration::from_secs(15);
    run * u32::try_from(runs(plan)).unwrap_or(u32::MAX) + Duration::from_secs(900)
}

/// Says which package a program is missing from.
pub(crate) fn require(program: &str, package: &str) -> Result<()> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    if !std::env::split_paths(&path).any(|folder| folder.join(program).is_file()) {
        bail!("{program} is missing: apt-get install {package}");
    }
    Ok(())
}

fn processor() -> String {
    let info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = info
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split_once(':'))
        .map_or("an unnamed processor", |(_, name)| name.trim());
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    format!("{model} ({cpus} CPUs)")
}
