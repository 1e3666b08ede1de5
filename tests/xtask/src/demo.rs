//! `cargo xtask demo`: the host's side.

pub(crate) mod inside;

use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use clap::Args;
use tcmu_rig::{Guest, Kernel};

use crate::{cargo, kernel, packages, print};

/// What the demo runs in the guest.
const PACKAGES: &[&str] = &[
    "e2fsprogs",
    "fio",
    "iproute2",
    "kmod",
    "libiscsi-bin",
    "lsscsi",
    "sg3-utils",
    "user-mode-linux",
];

/// The guest's memory in MiB: the disks' images are in it.
const MEMORY_MB: u32 = 2048;

/// See a LUN served end to end on a real kernel
///
/// Installs what is missing (apt, as root), builds the programs, boots a kernel, and in it starts
/// the daemon, creates a disk that it serves, formats it, writes, attaches it anew and compares,
/// reaches the same data through iSCSI, runs fio with verification, and shows what the usual tools
/// see. Each command is shown before its output. About a minute once all is built.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// The kernel to boot [default: uml-built if it has been built, else uml]
    #[arg(long, env = tcmu_rig::KERNEL_VAR)]
    kernel: Option<Kernel>,
}

pub(crate) fn run(options: &Options) -> anyhow::Result<ExitCode> {
    packages::ensure(PACKAGES)?;
    print::heading("Building");
    cargo::build_release(&["tcmu-runner", "tcmu-configfs"])?;
    let kernel = match options.kernel {
        Some(kernel) => kernel,
        None => Kernel::default_choice()?,
    };
    kernel::prepare(kernel)?;

    print::heading(&format!("Booting the kernel {kernel}"));
    let me = std::env::current_exe().context("cannot find this program")?;
    let mut guest = Guest::builder(me)
        .arg("demo-inside")
        .env(
            inside::PROGRAMS_VAR,
            cargo::release_dir()?.display().to_string(),
        )
        .kernel(kernel)
        .cpus(2)
        .memory_mb(MEMORY_MB)
        .timeout(Duration::from_secs(600))
        .on_line(|line| println!("{line}"));
    if print::in_colour() {
        guest = guest.env(print::COLOUR_VAR, "1");
    }
    let outcome = guest.run()?;
    let good = outcome.success();
    println!(
        "\n{}",
        print::verdict(good, &format!("The demo: {outcome}."))
    );
    for complaint in &outcome.kernel_complaints {
        print::note(&format!("the guest's kernel said: {complaint}"));
    }
    Ok(if good {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}
