//! The program around the daemon: its command line and its exit code.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{CommandFactory, Parser};
use clap_complete::Shell;

use crate::config::Settings;
use crate::daemon::Daemon;
use crate::guardian;
use crate::registry::Registry;

/// Serves LUNs of Linux's SCSI target from user space.
///
/// Runs in the foreground until SIGTERM or SIGINT, which finish what is in flight; commands that
/// come later wait in the kernel for the next start. Serves the devices that exist already and those
/// that are created while it runs, of the handlers it was built with. LUNs are set up by tcmuctl or
/// targetcli.
///
/// Settings are read from /etc/tcmu/tcmu.conf, which need not be there, and again on SIGHUP and
/// whenever the file changes. The sample that comes with the package describes the keys. An error in
/// it leaves the old settings in force, and is logged with its line and key.
#[derive(Debug, Parser)]
#[command(name = "tcmu-runner", version, max_term_width = 100)]
struct Arguments {
    /// Read settings from this TOML file, which must be there, instead of /etc/tcmu/tcmu.conf
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,

    /// How much to log: error, warn, info, debug, trace, or a filter such as "info,tcmu_runner::reactor=trace"
    #[arg(long, value_name = "LEVEL")]
    log_level: Option<String>,

    /// Do not offer the D-Bus interface that targetcli uses
    #[arg(long)]
    no_dbus: bool,

    /// Answer for LUNs instead of serving them: all that is in flight, and all that comes, ends with
    /// NOT READY until SIGTERM or SIGINT. For when tcmu-runner itself cannot run: initiators get errors
    /// instead of waiting for ever, and LUNs can be deleted. New LUNs are refused. A mistake in the
    /// settings does not keep it from starting
    #[arg(long)]
    offline: bool,

    /// List the handlers and what their configuration strings look like, and exit
    #[arg(long)]
    handlers: bool,

    /// Be the guardian of the tcmu-runner with this process id, which has started it
    #[arg(long, value_name = "PID", hide = true)]
    guard: Option<i32>,

    /// Write the completion script of a shell, and exit
    #[arg(long, value_name = "SHELL", hide = true)]
    completions: Option<Shell>,

    /// Write the manual page, and exit
    #[arg(long, hide = true)]
    man: bool,
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
    let result = if let Some(shell) = arguments.completions {
        let mut command = Arguments::command();
        let name = command.get_name().to_owned();
        clap_complete::generate(shell, &mut command, name, &mut std::io::stdout());
        Ok(())
    } else if arguments.man {
        let manual = clap_mangen::Man::new(Arguments::command()).section("8");
        manual.render(&mut std::io::stdout()).map_err(Into::into)
    } else if let Some(daemon) = arguments.guard {
        guardian::run(daemon)
    } else {
        run(handlers, arguments)
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("tcmu-runner: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(handlers: Registry, arguments: Arguments) -> anyhow::Result<()> {
    // A mistake in the file may be why tcmu-runner itself cannot run.
    let load = if arguments.offline {
        Settings::load_if_sound
    } else {
        Settings::load
    };
    let settings = load(arguments.config, arguments.log_level.as_deref())?;
    Daemon::start(handlers, settings, arguments.offline)?.run(!arguments.no_dbus)
}
