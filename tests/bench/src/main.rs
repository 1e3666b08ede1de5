//! `tcmu-bench`: the benchmark's command line, and the program that the guest runs.
#![forbid(unsafe_code)]

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::{Args, Parser, Subcommand};
use serde::de::DeserializeOwned;
use tcmu_bench::crash::CrashPlan;
use tcmu_bench::plan::{Candidate, JobSet, Plan};
use tcmu_bench::record::Record;
use tcmu_bench::stats::Summaries;
use tcmu_bench::{engine, guest, host, report, targets};
use tcmu_rig::Kernel;

/// Measures our runner beside what a user would pick instead, in a guest kernel.
#[derive(Debug, Parser)]
#[command(version, about)]
struct Cli {
    #[command(subcommand)]
    command: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Boots a guest, measures, and reports.
    Run(RunOptions),
    /// Reports again from saved figures.
    Report {
        /// What `run --json` saved.
        json: PathBuf,
        #[command(flatten)]
        output: Output,
    },
    /// Boots a guest and shows what initiators see when daemons crash, are restarted or replaced.
    Crash(CrashOptions),
    /// The part of `crash` that runs inside the guest.
    #[command(hide = true)]
    CrashGuest {
        /// The plan, as JSON.
        plan: PathBuf,
        /// Where the lines go.
        lines: PathBuf,
    },
    /// Measures the qcow handler beside `qemu-img bench` on this machine, without a guest.
    Engine {
        /// The folder for the images [default: the one for temporary files]
        #[arg(long)]
        folder: Option<PathBuf>,
        /// How often everything is measured.
        #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
        rounds: u32,
    },
    /// The part that runs inside the guest.
    #[command(hide = true)]
    Guest {
        /// The plan, as JSON.
        plan: PathBuf,
        /// Where the lines go.
        lines: PathBuf,
    },
}

#[derive(Debug, Args)]
struct RunOptions {
    /// The guest's kernel.
    #[arg(long, default_value = "uml-built")]
    kernel: Kernel,
    /// How often everything is measured.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// Seconds that fio runs each time.
    #[arg(long, default_value_t = 1.0)]
    runtime: f64,
    /// Who is measured.
    /// [default: all that serve what the jobs are about]
    #[arg(long, value_enum, value_delimiter = ',')]
    candidates: Vec<Candidate>,
    /// What fio does.
    #[arg(long, value_enum, default_value_t = JobSet::All)]
    jobs: JobSet,
    /// The image's size in MiB.
    #[arg(long, default_value_t = 256)]
    image: u64,
    /// A smoke test: one short round of few jobs.
    #[arg(long, conflicts_with_all = ["rounds", "runtime", "jobs"])]
    quick: bool,
    /// The folder of tcmu-runner and tcmuctl [default: this program's own]
    #[arg(long)]
    programs: Option<PathBuf>,
    /// The folder for the guest's lines, console and logs [default: a temporary one]
    #[arg(long)]
    results: Option<PathBuf>,
    /// Where the figures are saved.
    #[arg(long)]
    json: Option<PathBuf>,
    #[command(flatten)]
    output: Output,
}

#[derive(Debug, Args)]
struct CrashOptions {
    /// The guest's kernel.
    #[arg(long, default_value = "uml-built")]
    kernel: Kernel,
    /// How often each daemon ends in each way.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=1000))]
    times: u32,
    /// The folder of tcmu-runner and tcmuctl [default: this program's own]
    #[arg(long)]
    programs: Option<PathBuf>,
    /// The folder for the guest's lines, console and logs [default: a temporary one]
    #[arg(long)]
    results: Option<PathBuf>,
    /// Where the Markdown report goes [default: standard output]
    #[arg(long)]
    markdown: Option<PathBuf>,
}

#[derive(Debug, Args)]
struct Output {
    /// Where the Markdown report goes [default: standard output]
    #[arg(long)]
    markdown: Option<PathBuf>,
    /// The folder for the plots [default: none are drawn]
    #[arg(long)]
    svg: Option<PathBuf>,
}

fn main() -> Result<()> {
    // In a guest this same program is the first process.
    tcmu_rig::enter();
    match Cli::parse().command {
        Action::Run(options) => run(&options),
        Action::Report { json, output } => {
            let text = fs::read_to_string(&json).with_context(|| json.display().to_string())?;
            let record = serde_json::from_str(&text)
                .with_context(|| format!("{} holds no saved figures", json.display()))?;
            publish(&record, &output)
        }
        Action::Guest { plan, lines } => guest::run(&read_plan(&plan)?, &lines),
        Action::Crash(options) => crash(&options),
        Action::CrashGuest { plan, lines } => guest::run_crash(&read_plan(&plan)?, &lines),
        Action::Engine { folder, rounds } => {
            let folder = folder.unwrap_or_else(std::env::temp_dir);
            print!("{}", engine::compare(&folder, rounds)?);
            Ok(())
        }
    }
}

fn read_plan<P: DeserializeOwned>(path: &Path) -> Result<P> {
    let text = fs::read_to_string(path).with_context(|| path.display().to_string())?;
    serde_json::from_str(&text).context("the plan is not understood")
}

fn crash(options: &CrashOptions) -> Result<()> {
    let plan = CrashPlan {
        times: options.times,
        peer: Some(host::peers::fetch().context("cannot fetch Debian's tcmu-runner")?),
        ours: Some(programs(options.programs.as_deref(), &[])?),
    };
    let temporary = tempfile::tempdir().context("temporary folder")?;
    let results = options.results.as_deref().unwrap_or(temporary.path());
    let (text, complete) = host::crash(&plan, options.kernel, results)?;
    match &options.markdown {
        Some(path) => fs::write(path, text).with_context(|| path.display().to_string())?,
        None => print!("{text}"),
    }
    if !complete {
        bail!("the guest did not come to its end");
    }
    Ok(())
}

fn run(options: &RunOptions) -> Result<()> {
    let plan = plan(options)?;
    let temporary = tempfile::tempdir().context("temporary folder")?;
    let results = options.results.as_deref().unwrap_or(temporary.path());
    let record = host::measure(&plan, options.kernel, results)?;
    if let Some(path) = &options.json {
        let text = serde_json::to_string(&record).context("the figures")?;
        fs::write(path, text).with_context(|| path.display().to_string())?;
    }
    publish(&record, &options.output)?;
    if !record.complete {
        bail!("the guest did not come to its end");
    }
    Ok(())
}

fn plan(options: &RunOptions) -> Result<Plan> {
    if !(0.1..=3600.0).contains(&options.runtime) {
        bail!("--runtime takes 0.1 to 3600 seconds");
    }
    if !(16..=16384).contains(&options.image) {
        bail!("--image takes 16 to 16384 MiB");
    }
    let (rounds, runtime, jobs) = if options.quick {
        (1, 0.5, JobSet::Few)
    } else {
        (options.rounds, options.runtime, options.jobs)
    };
    let candidates = if options.candidates.is_empty() {
        jobs.candidates()
    } else {
        options.candidates.clone()
    };
    let peer = candidates
        .iter()
        .any(|candidate| candidate.is_peers())
        .then(host::peers::fetch)
        .transpose()
        .context("cannot fetch Debian's tcmu-runner")?;
    let ours = candidates
        .iter()
        .any(|candidate| candidate.is_ours())
        .then(|| programs(options.programs.as_deref(), &candidates))
        .transpose()?;
    Ok(Plan {
        candidates,
        jobs: jobs.jobs(),
        rounds,
        runtime_ms: (runtime * 1000.0) as u64,
        image_mib: options.image,
        peer,
        ours,
        syscalls: jobs.counts_syscalls(),
    })
}

fn programs(folder: Option<&Path>, candidates: &[Candidate]) -> Result<PathBuf> {
    let folder = match folder {
        Some(folder) => folder.canonicalize(),
        None => std::env::current_exe().map(|mut path| {
            path.pop();
            path
        }),
    }
    .context("the folder of our programs")?;
    for program in [Candidate::runner(candidates), "tcmuctl"] {
        if !folder.join(program).is_file() {
            bail!(
                "no {program} in {}: build it with cargo build --release, name its folder with \
                 --programs, or measure only --candidates tcmu-runner,fileio,nullio,loop",
                folder.display()
            );
        }
    }
    Ok(folder)
}

fn publish(record: &Record, output: &Output) -> Result<()> {
    let summaries = Summaries::of(record);
    let verdicts = targets::judge(record, &summaries);
    let text = report::markdown(record, &summaries, &verdicts);
    match &output.markdown {
        Some(path) => fs::write(path, text).with_context(|| path.display().to_string())?,
        None => print!("{text}"),
    }
    if let Some(folder) = &output.svg {
        for path in report::plots(record, &summaries, folder)? {
            println!("{}", path.display());
        }
    }
    Ok(())
}
