//! Debian packages that the commands need.

use std::process::{Command, Stdio};

use anyhow::{Context as _, bail};

use crate::print;

/// Installs those packages that are missing.
///
/// Without root it says what to type instead; where there is no apt, what to look after.
pub(crate) fn ensure(packages: &[&str]) -> anyhow::Result<()> {
    let mut missing: Vec<&str> = packages
        .iter()
        .copied()
        .filter(|p| !is_installed(p))
        .collect();
    missing.sort_unstable();
    missing.dedup();
    if missing.is_empty() {
        return Ok(());
    }
    let list = missing.join(" ");
    if !has_apt() {
        print::note(&format!(
            "this machine has no apt; these Debian packages are needed: {list}"
        ));
        return Ok(());
    }
    if !rustix::process::geteuid().is_root() {
        bail!(
            "packages are missing; as root, type\n    \
             apt-get update && apt-get install --no-install-recommends {list}"
        );
    }
    print::heading(&format!("Installing {list}"));
    apt(&["update"])?;
    let mut args = vec!["install", "--yes", "--no-install-recommends"];
    args.extend(&missing);
    apt(&args)
}

/// Reads the package lists if there are none, as in a fresh container: kernels are looked up in
/// them.
pub(crate) fn ensure_lists() -> anyhow::Result<()> {
    let lists = Command::new("apt-get").arg("indextargets").output();
    if lists.is_ok_and(|lists| lists.stdout.is_empty()) && rustix::process::geteuid().is_root() {
        apt(&["update"])?;
    }
    Ok(())
}

fn is_installed(package: &str) -> bool {
    Command::new("dpkg-query")
        .args(["--show", "--showformat=${db:Status-Status}", package])
        .stderr(Stdio::null())
        .output()
        .is_ok_and(|output| output.stdout == b"installed")
}

fn has_apt() -> bool {
    Command::new("apt-get")
        .arg("--version")
        .stdout(Stdio::null())
        .status()
        .is_ok()
}

fn apt(args: &[&str]) -> anyhow::Result<()> {
    let line = format!("apt-get {}", args.join(" "));
    print::command(&line);
    let status = Command::new("apt-get")
        .args(["--quiet", "--quiet", "-o", "Dpkg::Use-Pty=0"])
        .args(args)
        .env("DEBIAN_FRONTEND", "noninteractive")
        .stdin(Stdio::null())
        .status()
        .context("cannot run apt-get")?;
    if !status.success() {
        bail!("`{line}` failed ({status})");
    }
    Ok(())
}
