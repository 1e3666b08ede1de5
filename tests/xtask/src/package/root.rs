//! A fresh Debian tree with systemd, for the package to be installed into.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, ensure};

use crate::{cargo, print};

/// What a small server has that the test needs; the package's own dependencies are among them.
const INCLUDED: &str = "systemd,systemd-sysv,dbus,kmod,udev,fio";

/// Where the tree has Debian's own tcmu-runner, and what it needs, as packages that are not installed.
/// Not every release has it.
pub(super) const DEBIANS: &str = "/var/lib/debians-tcmu-runner";

/// Puts them there.
const DOWNLOAD: &str = "export APT_CONFIG=\"$MMDEBSTRAP_APT_CONFIG\"; mkdir \"$1$DEBIANS\"; \
     if apt-cache show tcmu-runner >/dev/null 2>&1; then \
     apt-get clean; \
     apt-get --yes --no-install-recommends --download-only install tcmu-runner; \
     mv \"$1\"/var/cache/apt/archives/*.deb \"$1$DEBIANS\"; fi";

/// The tree's folder; makes it first if it is not there, or was made otherwise.
pub(super) fn ready() -> anyhow::Result<PathBuf> {
    let release = cargo::release_dir()?;
    let target = release.parent().context("no target folder")?;
    let codename = codename()?;
    let root = target.join("debian-roots").join(&codename);
    let include = format!("--include={INCLUDED}");
    let hook = format!("--customize-hook=set -e; DEBIANS={DEBIANS}; {DOWNLOAD}");
    let recipe = format!("{include}\n{hook}\n");
    let recipe_file = root.with_extension("recipe");
    if root.exists() {
        if fs::read_to_string(&recipe_file).is_ok_and(|made| made == recipe) {
            return Ok(root);
        }
        fs::remove_dir_all(&root).context("cannot remove an old Debian tree")?;
    }
    print::heading(&format!("Making a Debian tree ({codename})"));
    let unfinished = root.with_extension("unfinished");
    if unfinished.exists() {
        fs::remove_dir_all(&unfinished).context("cannot remove an unfinished Debian tree")?;
    }
    fs::create_dir_all(root.parent().unwrap_or(Path::new("."))).context("debian-roots")?;
    let folder = unfinished.display().to_string();
    let args = ["--variant=minbase", &include, &hook, &codename, &folder];
    print::command(&format!("mmdebstrap {include} ... {codename} {folder}"));
    let output = Command::new("mmdebstrap")
        .args(args)
        .output()
        .context("cannot run mmdebstrap")?;
    ensure!(
        output.status.success(),
        "mmdebstrap failed: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    fs::write(&recipe_file, recipe).context("cannot note how the Debian tree was made")?;
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
