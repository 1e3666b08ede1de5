//! The program around the daemon: its command line and its exit code.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;

use crate::config::Config;
use crate::daemon::Daemon;
use crate::log;
use crate::registry::Registry;

/// Serves LUNs of Linux's SCSI target from user space.
///
/// Runs in the foreground until SIGTERM or SIGINT, which finish what is in flight; commands that
/// come later wait in the kernel for the next start. Serves the devices that exist already and those
/// that are created while it runs, of the handlers it was built with. LUNs are set up by tcmuctl or
/// targetcli.
#[derive(Debug, Parser)]
#[command(name = "tcmu-runner", version, max_term_width = 100)]
struct Arguments {
    /// Read settings from this TOML file
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,

    /// How much to log: error, warn, info, debug, trace, or a filter such as "info,tcmu_runner::reactor=trace"
    #[arg(long, value_name = "LEVEL")]
    log_level: Option<String>,

    /// Do not offer the D-Bus interface that targetcli uses
    #[arg(long)]
    no_dbus: bool,

    /// List the handlers and what their configuration strings look like, and exit
    #[arg(long)]
    handlers: bool,
}

/// Runs the daemon with these handlers, as the command line says.
///
/// Exit codes: 0 stopped by a signal, 1 failed (the log says why), 2 bad usage.
pub fn main(handlers: Registry) -> ExitCode {
    let arguments = Arguments::parse();
    if arguments.handlers {
        for (subtype, help) in handlers.help() {
            println!(
                "{subtype}\n    {}\n",
                help.trim_end().replace('\n', "\n    ")
            );
        }
        return ExitCode::SUCCESS;
    }
    match run(handlers, &arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("tcmu-runner: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(handlers: Registry, arguments: &Arguments) -> anyhow::Result<()> {
    let config = match &arguments.config {
        Some(path) => Config::read(path)?,
        None => Config::default(),
    };
    let level = arguments
        .log_level
        .as_deref()
        .or(config.log_level.as_deref())
        .unwrap_or("info");
    log::start(level)?;
    Daemon::start(handlers, &config)?.run(!arguments.no_dbus)
}
