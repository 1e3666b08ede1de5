//! Running cargo on this workspace.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context as _, bail};

use crate::print;

/// A cargo command in the workspace's folder.
pub(crate) fn command(args: &[&str]) -> Command {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| OsString::from("cargo"));
    let mut command = Command::new(cargo);
    command.args(args).current_dir(workspace());
    if print::in_colour() {
        command.env("CARGO_TERM_COLOR", "always");
    }
    command
}

/// The workspace's folder.
pub(crate) fn workspace() -> &'static str {
    concat!(env!("CARGO_MANIFEST_DIR"), "/../..")
}

/// Builds packages in release mode.
pub(crate) fn build_release(packages: &[&str]) -> anyhow::Result<()> {
    let mut args = vec!["build", "--release"];
    for package in packages {
        args.extend(["--package", package]);
    }
    print::command(&format!("cargo {}", args.join(" ")));
    let status = command(&args).status().context("cannot run cargo")?;
    if !status.success() {
        bail!("the build failed ({status})");
    }
    Ok(())
}

/// The folder of release programs.
pub(crate) fn release_dir() -> anyhow::Result<PathBuf> {
    // This program is in target/<profile>/.
    let me = std::env::current_exe().context("cannot find this program")?;
    let target = me
        .ancestors()
        .nth(2)
        .context("this program is in no target folder")?;
    Ok(target.join("release"))
}
