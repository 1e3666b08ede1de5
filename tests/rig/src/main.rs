//! `tcmu-rig`: runs one command in a guest, from the command line.
#![forbid(unsafe_code)]

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use tcmu_rig::{Error, Guest, Kernel};

/// Boots a real kernel and runs a command in it.
///
/// The command sees the whole tree of this machine at the same paths. What it writes is gone with
/// the guest, except in the results folder ($TCMU_RIG_RESULTS there). Example:
///
///     tcmu-rig --kernel uml -- sh -c 'uname -r; ls /sys/kernel/config/target'
#[derive(Parser, Debug)]
#[command(version, verbatim_doc_comment)]
struct Options {
    /// The kernel; by default uml-built if it has been built, else uml
    #[arg(long, env = tcmu_rig::KERNEL_VAR)]
    kernel: Option<Kernel>,
    /// CPUs of the guest
    #[arg(long, default_value_t = 1)]
    cpus: u32,
    /// Memory of the guest, in MiB
    #[arg(long, default_value_t = 1024)]
    memory: u32,
    /// Seconds after which the guest is ended
    #[arg(long, default_value_t = 600)]
    timeout: u64,
    /// The folder that the command can write to, at the same path
    #[arg(long)]
    results: Option<PathBuf>,
    /// The command and its arguments
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
    command: Vec<String>,
}

fn main() -> ExitCode {
    tcmu_rig::enter();
    match run(Options::parse()) {
        Ok(code) => code,
        Err(e) => {
            eprintln!("tcmu-rig: {e}{}", source(&e));
            ExitCode::FAILURE
        }
    }
}

fn source(e: &Error) -> String {
    std::error::Error::source(e)
        .map(|s| format!(": {s}"))
        .unwrap_or_default()
}

fn run(options: Options) -> Result<ExitCode, Error> {
    // `env` finds the command in the guest's PATH.
    let mut guest = Guest::builder("/usr/bin/env")
        .args(options.command)
        .cpus(options.cpus)
        .memory_mb(options.memory)
        .timeout(Duration::from_secs(options.timeout))
        .on_line(|line| println!("{line}"));
    if let Some(kernel) = options.kernel {
        guest = guest.kernel(kernel);
    }
    if let Some(results) = options.results {
        guest = guest.results_dir(results);
    }
    let outcome = guest.run()?;
    eprintln!("tcmu-rig: {outcome}");
    for complaint in &outcome.kernel_complaints {
        eprintln!("tcmu-rig: the kernel said: {complaint}");
    }
    let code = outcome.exit_code().and_then(|code| u8::try_from(code).ok());
    Ok(code.map_or(ExitCode::FAILURE, ExitCode::from))
}
