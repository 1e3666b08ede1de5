//! Debian's tcmu-runner, started from where its packages were unpacked.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::plan::Peer;

/// Prepares the guest for it.
///
/// # Errors
/// A guest in which it does not start.
pub(super) fn prepare(peer: &Peer) -> Result<()> {
    let release = rustix::system::uname();
    let modules = Path::new("/lib/modules").join(release.release().to_string_lossy().as_ref());
    if !modules.join("modules.builtin").exists() {
        bail!(
            "it does not start without {}/modules.builtin",
            modules.display()
        );
    }
    // It refuses to start without its configuration file. The guest's root is an overlay: the host's
    // /etc is not touched.
    fs::create_dir_all("/etc/tcmu").context("/etc/tcmu")?;
    fs::copy(peer.root.join("etc/tcmu/tcmu.conf"), "/etc/tcmu/tcmu.conf")
        .context("tcmu-runner's configuration")?;
    Ok(())
}

/// The command that starts `program`, which is it or a copy of it; it logs to `folder`.
///
/// # Errors
/// A cache folder that is not as it was left.
pub(super) fn command(peer: &Peer, program: &Path, folder: &Path) -> Result<Command> {
    let mut command = Command::new(program);
    command
        .env("LD_LIBRARY_PATH", peer.library_path()?)
        .arg("--handler-path")
        .arg(peer.handlers())
        .arg("--tcmu-log-dir")
        .arg(folder);
    Ok(command)
}
