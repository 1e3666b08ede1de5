//! `tcmuctl` sets up LUNs that a user-space daemon serves.

mod args;
mod delete;
mod doctor;
mod output;
mod runner;
mod saved;

use std::env;
use std::io::{self, Write};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use clap::{CommandFactory, Parser};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use tcmu_configfs::{BackstoreSpec, Error, HELPER_ARGUMENT, IscsiSpec, ResizeOptions, Roots, Tree};

use args::{Cli, Command, Common, Create, Switch};
use runner::View;

const FAILED: u8 = 1;
const USAGE: u8 = 2;

fn main() -> ExitCode {
    if env::args_os()
        .nth(1)
        .is_some_and(|first| first == HELPER_ARGUMENT)
    {
        tcmu_configfs::helper();
        return ExitCode::SUCCESS;
    }
    let cli = Cli::parse();
    match run(cli) {
        Ok(()) => ExitCode::SUCCESS,
        // The reader of our output has gone: it had enough.
        Err(Failure::Io(error)) if error.kind() == io::ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Err(Failure::Io(error)) => {
            complain(&error.to_string());
            ExitCode::from(FAILED)
        }
        Err(Failure::Runner(runner::Error::Io(error)))
            if error.kind() == io::ErrorKind::BrokenPipe =>
        {
            ExitCode::SUCCESS
        }
        Err(Failure::Runner(error)) => {
            complain(&error.to_string());
            ExitCode::from(match error {
                runner::Error::Command(code) => code,
                runner::Error::Usage(_) => USAGE,
                _ => FAILED,
            })
        }
        Err(Failure::Told) => ExitCode::from(FAILED),
        Err(Failure::Tree(error)) => {
            complain(&error.to_string());
            ExitCode::from(if error.is_usage() { USAGE } else { FAILED })
        }
    }
}

/// Why a command did not do what it should.
enum Failure {
    Tree(Error),
    Runner(runner::Error),
    Io(io::Error),
    /// What was printed says it.
    Told,
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Failure::Tree(error)
    }
}

impl From<runner::Error> for Failure {
    fn from(error: runner::Error) -> Self {
        Failure::Runner(error)
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Failure::Io(error)
    }
}

/// Says something on standard error; that it may be closed is no reason to stop.
fn complain(text: &str) {
    let _ = writeln!(io::stderr(), "tcmuctl: {text}");
}

fn run(cli: Cli) -> Result<(), Failure> {
    let as_json = cli.common.json;
    match cli.command {
        Command::Create(create) => {
            let mut tree = tree(&cli.common)?;
            if create.no_daemon_check {
                tree = tree.without_daemon_check();
            }
            let backstore = tree.create(&spec(create))?;
            if as_json {
                output::json(&backstore)?
            } else {
                output::places(&backstore)?
            }
        }
        Command::List => {
            let backstores = tree(&cli.common)?.list()?;
            let view = view(&cli.common);
            let seen: Vec<_> = backstores.iter().map(|lun| view.on(lun, lun)).collect();
            if as_json {
                output::json(&seen)?
            } else {
                output::list(&seen)?
            }
        }
        Command::Show(select) => {
            let details = tree(&cli.common)?.show(&select.name, select.hba)?;
            let seen = view(&cli.common).on(&details.backstore, &details);
            if as_json {
                output::json(&seen)?
            } else {
                output::show(&seen)?
            }
        }
        Command::Delete(delete) => delete::run(&cli.common, delete)?,
        Command::Resize(resize) => {
            let mut tree = tree(&cli.common)?;
            if resize.no_daemon_check {
                tree = tree.without_daemon_check();
            }
            let options = ResizeOptions {
                shrink: resize.shrink,
                hba: resize.select.hba,
            };
            let backstore = tree.resize(&resize.select.name, resize.size, &options)?;
            if as_json {
                output::json(&backstore)?;
            } else {
                writeln!(
                    io::stdout(),
                    "{} has {} bytes",
                    backstore.name,
                    backstore.size
                )?;
            }
        }
        Command::Runner(command) => runner::run(command, as_json, cli.common.timeout)?,
        Command::Save(save) => saved::save(&cli.common, save)?,
        Command::Restore(restore) => saved::restore(&cli.common, restore)?,
        Command::Doctor => doctor::examine(&cli.common)?,
        Command::Completions { shell } => {
            clap_complete::generate(shell, &mut Cli::command(), "tcmuctl", &mut io::stdout());
        }
        Command::Man {
            folder: Some(folder),
        } => {
            std::fs::create_dir_all(&folder)?;
            clap_mangen::generate_to(Cli::command(), &folder)?;
        }
        Command::Man { folder: None } => {
            clap_mangen::Man::new(Cli::command()).render(&mut io::stdout())?;
        }
    }
    Ok(())
}

/// The tree that the common options describe.
fn tree(common: &Common) -> Result<Tree, Failure> {
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM, SIGHUP] {
        signal_hook::flag::register(signal, Arc::clone(&stop))?;
    }
    Ok(Tree::at(roots(common))
        .with_time_limit(common.timeout)
        .with_progress(complain)
        .with_interrupt(stop)
        .in_processes(env::current_exe()?))
}

/// The places that the common options mean.
fn roots(common: &Common) -> Roots {
    common
        .root
        .as_deref()
        .map_or_else(Roots::system, Roots::under)
}

/// What the daemon knows of the LUNs there.
fn view(common: &Common) -> View {
    match common.root {
        None => View::take(),
        Some(_) => View::without_bus(&roots(common)),
    }
}

fn spec(create: Create) -> BackstoreSpec {
    let mut spec = BackstoreSpec::new(create.name, create.handler, create.config)
        .data_area_mb(create.data_area_mb)
        .ring_mb(create.ring_mb)
        .command_timeout(create.cmd_timeout)
        .write_cache(create.write_cache == Switch::On);
    if let Some(size) = create.size {
        spec = spec.size(size);
    }
    if let Some(block_size) = create.block_size {
        spec = spec.block_size(block_size);
    }
    if let Some(hba) = create.hba {
        spec = spec.hba(hba);
    }
    if let Some(blocks) = create.max_sectors {
        spec = spec.max_sectors(blocks);
    }
    if let Some(serial) = create.serial {
        spec = spec.serial(serial);
    }
    if create.loopback {
        spec = spec.loopback();
    }
    if let Some(iqn) = create.iscsi {
        let mut iscsi = IscsiSpec::new(iqn);
        if let Some(portal) = create.portal {
            iscsi = iscsi.portal(portal);
        }
        if let Some(lun) = create.lun {
            iscsi = iscsi.lun(lun);
        }
        spec = spec.iscsi(iscsi);
    }
    spec
}
