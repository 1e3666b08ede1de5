//! cargo-deb, installed into the target folder.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context as _, ensure};

use crate::{cargo, print};

const VERSION: &str = "3.8.0";

/// Its path; installs it first if it is not there.
pub(super) fn ready() -> anyhow::Result<PathBuf> {
    let release = cargo::release_dir()?;
    let target = release.parent().context("no target folder")?;
    let root = target.join("tools").join(format!("cargo-deb-{VERSION}"));
    let program = root.join("bin/cargo-deb");
    if program.exists() {
        return Ok(program);
    }
    fs::create_dir_all(&root).with_context(|| format!("creating {}", root.display()))?;
    print::heading("Installing cargo-deb");
    let root_text = root.display().to_string();
    // Without its default features it needs no C library for compression.
    let args = [
        "install",
        "cargo-deb",
        "--version",
        VERSION,
        "--locked",
        "--no-default-features",
        "--root",
        &root_text,
    ];
    print::command(&format!("cargo {}", args.join(" ")));
    let status = cargo::command(&args)
        .env("CARGO_TARGET_DIR", root.join("target"))
        .status()
        .context("cannot run cargo")?;
    ensure!(status.success(), "cargo-deb cannot be installed ({status})");
    fs::remove_dir_all(root.join("target")).context("cannot remove cargo-deb's own build")?;
    Ok(program)
}
