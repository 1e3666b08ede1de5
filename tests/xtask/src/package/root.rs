//! A fresh Debian tree with systemd, for the package to be installed into.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, ensure};

use crate::{cargo, print};

/// What a small server has that the test needs; the package's own dependencies are among them.
const INCLUDED: &str = "systemd,systemd-sysv,dbus,kmod,udev,fio";

/// The tree's folder; makes it first if it is not there.
pub(super) fn ready() -> anyhow::Result<PathBuf> {
    let release = cargo::release_dir()?;
    let target = release.parent().context("no target folder")?;
    let codename = codename()?;
    let root = target.join("debian-roots").join(&codename);
    if root.exists() {
        return Ok(root);
    }
    print::heading(&format!("Making a Debian tree ({codename})"));
    let unfinished = root.with_extension("unfinished");
    if unfinished.exists() {
        fs::remove_dir_all(&unfinished).context("cannot remove an unfinished Debian tree")?;
    }
    fs::create_dir_all(root.parent().unwrap_or(Path::new("."))).context("debian-roots")?;
    let include = format!("--include={INCLUDED}");
    let folder = unfinished.display().to_string();
    let args = ["--variant=minbase", &include, &codename, &folder];
    print::command(&format!("mmdebstrap {}", args.join(" ")));
    let output = Command::new("mmdebstrap")
        .args(args)
        .output()
        .context("cannot run mmdebstrap")?;
    ensure!(
        output.status.success(),
        "mmdebstrap failed: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    fs::rename(&unfinished, &root).context("cannot put the Debian tree in place")?;
    Ok(root)
}

/// This machine's own release: the programs are built for its libraries.
fn codename() -> anyhow::Result<String> {
    let release = fs::read_to_string("/etc/os-release").context("/etc/os-release")?;
    let codename = release
        .lines()
        .find_map(|line| line.strip_prefix("VERSION_CODENAME="));
    codename
        .map(|name| name.trim_matches('"').to_owned())
        .context("/etc/os-release names no release of Debian")
}
