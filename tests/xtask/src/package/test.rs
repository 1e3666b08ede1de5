//! Trying the package out: the host's side.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use tcmu_rig::{Guest, Kernel};

use super::{build, inside, pack, root};
use crate::{cargo, kernel, packages, print};

/// What makes the Debian tree, and an image.
const PACKAGES: &[&str] = &["mmdebstrap", "qemu-utils"];

/// The package's version after the upgrade.
const NEXT_VERSION: &str = "99.0.0-1";

/// The guest's memory in MiB: the images are in it, and what is installed.
const MEMORY_MB: u32 = 2048;

/// An image that both our tcmu-runner and Debian's can serve.
fn make_image(path: &Path) -> anyhow::Result<()> {
    let mut command = Command::new("qemu-img");
    command.args(["create", "-q", "-f", "qcow2"]).arg(path);
    let status = command
        .arg("256M")
        .status()
        .context("cannot run qemu-img")?;
    ensure!(status.success(), "qemu-img failed ({status})");
    Ok(())
}

/// Builds the package in two versions, boots a fresh Debian tree with its own systemd, and has the
/// package installed, used, upgraded and removed there, and put in the place of Debian's own. Each line of the output is shown to `see`.
///
/// # Errors
/// If it cannot be tried out, or something is not as it should be.
pub(crate) fn test(mut see: impl FnMut(&str)) -> anyhow::Result<()> {
    packages::ensure(PACKAGES)?;
    build()?;
    let folder = cargo::release_dir()?.join("package-test");
    fs::create_dir_all(&folder).with_context(|| format!("creating {}", folder.display()))?;
    for (version, name) in [(None, inside::FIRST), (Some(NEXT_VERSION), inside::NEXT)] {
        let package = pack(version)?;
        fs::copy(&package, folder.join(name))
            .with_context(|| format!("copying {}", package.display()))?;
    }
    // For the time before our package is installed.
    let tool = folder.join(inside::TOOL);
    fs::copy(cargo::release_dir()?.join("tcmuctl"), &tool).context("copying tcmuctl")?;
    make_image(&folder.join(inside::QCOW_IMAGE))?;
    let root = root::ready()?;
    kernel::prepare(Kernel::UmlBuilt)?;

    print::heading("Booting the Debian tree");
    let me = std::env::current_exe().context("cannot find this program")?;
    let outcome = Guest::builder(me)
        .arg("package-inside")
        .kernel(Kernel::UmlBuilt)
        .cpus(2)
        .memory_mb(MEMORY_MB)
        .systemd_root(root)
        .results_dir(&folder)
        .timeout(Duration::from_secs(900))
        .on_line(|line| {
            println!("{line}");
            see(line);
        })
        .run()?;
    for complaint in &outcome.kernel_complaints {
        print::note(&format!("the guest's kernel said: {complaint}"));
    }
    ensure!(outcome.success(), "{outcome}");
    Ok(())
}
