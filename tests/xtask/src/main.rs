//! `cargo xtask`: the commands of this project.
#![forbid(unsafe_code)]

mod bench;
mod cargo;
mod demo;
mod kernel;
mod package;
mod packages;
mod print;
mod tally;
mod test;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// The commands of this project
///
/// They need Rust and, for what is missing on the machine, Debian's apt and root. The kernel under
/// test is always a real one: these commands boot it as a process, so neither this machine's own
/// kernel nor its disks are touched.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Demo(demo::Options),
    Test(test::Options),
    Bench(bench::Options),
    Kernel(kernel::Options),
    Package(package::Options),
    /// The part of the demo that runs in the guest
    #[command(hide = true)]
    DemoInside,
    /// The part of the package's test that runs in the guest
    #[command(hide = true)]
    PackageInside,
}

fn main() -> ExitCode {
    // In a guest this same program is the first process.
    tcmu_rig::enter();
    let result = match Cli::parse().command {
        Command::Demo(options) => demo::run(&options),
        Command::Test(options) => test::run(&options),
        Command::Bench(options) => bench::run(&options),
        Command::Kernel(options) => kernel::run(&options),
        Command::Package(options) => package::run(&options),
        Command::DemoInside => demo::inside::run(),
        Command::PackageInside => package::inside::run(),
    };
    match result {
        Ok(code) => code,
        Err(e) => {
            eprintln!("xtask: {e:#}");
            ExitCode::FAILURE
        }
    }
}
