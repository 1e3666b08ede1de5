//! `cargo xtask bench`.

use std::process::{Command, ExitCode};

use anyhow::Context as _;
use clap::Args;
use tcmu_rig::Kernel;

use crate::{cargo, kernel, packages, print};

/// What the benchmark runs.
const PACKAGES: &[&str] = &[
    "dbus",
    "e2fsprogs",
    "fio",
    "iproute2",
    "kmod",
    "libiscsi-bin",
    "qemu-utils",
    "strace",
    "util-linux",
];

/// Measure our runner beside its peers in a guest
///
/// Builds release programs, makes the kernel ready, and passes its arguments to tcmu-bench:
///
///     cargo xtask bench                          everything, on uml-built
///     cargo xtask bench run --kernel qemu        on the second witness
///     cargo xtask bench run --quick              a smoke test
///     cargo xtask bench crash                    what initiators see when daemons end
///     cargo xtask bench run --jobs qcow          qcow2 images, beside qemu
///     cargo xtask bench engine                   without a guest, beside qemu-img bench
///     cargo xtask bench -- --help                what else there is
#[derive(Debug, Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct Options {
    /// tcmu-bench's arguments
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    args: Vec<String>,
}

pub(crate) fn run(options: &Options) -> anyhow::Result<ExitCode> {
    let mut args = options.args.clone();
    if args.is_empty() {
        args.push("run".into());
    }
    if matches!(args[0].as_str(), "run" | "crash") {
        packages::ensure(PACKAGES)?;
        kernel::prepare(chosen_kernel(&args)?)?;
    }
    print::heading("Building");
    cargo::build_release(&["tcmu-bench", "tcmu-runner", "tcmu-configfs"])?;
    let program = cargo::release_dir()?.join("tcmu-bench");
    print::heading("Measuring");
    print::command(&format!("{} {}", program.display(), args.join(" ")));
    let status = Command::new(&program)
        .args(&args)
        .status()
        .with_context(|| format!("cannot run {}", program.display()))?;
    let code = status.code().and_then(|code| u8::try_from(code).ok());
    Ok(code.map_or(ExitCode::FAILURE, ExitCode::from))
}

/// The kernel that tcmu-bench will boot, so that it is ready by then.
fn chosen_kernel(args: &[String]) -> anyhow::Result<Kernel> {
    let mut args = args.iter();
    while let Some(arg) = args.next() {
        if arg == "--kernel" {
            return Ok(args.next().context("--kernel needs a name")?.parse()?);
        }
        if let Some(name) = arg.strip_prefix("--kernel=") {
            return Ok(name.parse()?);
        }
    }
    Ok(Kernel::UmlBuilt)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_is_found_among_the_arguments() {
        let words = |text: &str| text.split(' ').map(str::to_owned).collect::<Vec<_>>();
        let kernel = |text| chosen_kernel(&words(text)).unwrap();
        assert_eq!(kernel("run --kernel qemu --quick"), Kernel::Qemu);
        assert_eq!(kernel("run --kernel=uml"), Kernel::Uml);
        assert_eq!(kernel("run --quick"), Kernel::UmlBuilt);
        assert!(chosen_kernel(&words("run --kernel none")).is_err());
    }
}
