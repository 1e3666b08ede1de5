//! Debian's tcmu-runner, fetched and unpacked beside the machine's own packages, not installed.

use std::collections::BTreeSet;
use std::env;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::command::output;
use crate::plan::Peer;

/// Only the rbd handler needs it, and that one is not measured.
const NOT_NEEDED: &str = "librbd1";

/// Fetches Debian's tcmu-runner and whatever it needs that this machine does not have, once per
/// version, into the user's cache folder.
///
/// # Errors
/// No apt, no network, a package that is not there.
pub fn fetch() -> Result<Peer> {
    let version = candidate_version()?;
    let root = cache()?.join(&version);
    if root.join("complete").exists() {
        return Ok(Peer { version, root });
    }
    let packages = missing_packages()?;
    fs::create_dir_all(&root).with_context(|| root.display().to_string())?;
    let downloads = tempfile::tempdir().context("temporary folder")?;
    output(
        Command::new("apt-get")
            .args(["--quiet", "download"])
            .args(&packages)
            .current_dir(downloads.path()),
    )?;
    for package in fs::read_dir(downloads.path()).context("the downloads")? {
        let package = package.context("the downloads")?.path();
        output(Command::new("dpkg").arg("-x").arg(&package).arg(&root))?;
    }
    let peer = Peer { version, root };
    // A folder with the one handler keeps tcmu-runner from loading those that need more libraries.
    fs::create_dir_all(peer.handlers()).context("the handler folder")?;
    let handler = peer.library_folder()?.join("tcmu-runner/handler_qcow.so");
    fs::copy(&handler, peer.handlers().join("handler_qcow.so"))
        .with_context(|| handler.display().to_string())?;
    fs::write(peer.root.join("complete"), packages.join("\n")).context("the cache folder")?;
    Ok(peer)
}

impl Peer {
    /// Its program.
    #[must_use]
    pub fn program(&self) -> PathBuf {
        self.root.join("usr/bin/tcmu-runner")
    }

    /// The folder that `--handler-path` names.
    #[must_use]
    pub fn handlers(&self) -> PathBuf {
        self.root.join("handlers")
    }

    /// `usr/lib/<architecture>` in the unpacked packages.
    fn library_folder(&self) -> Result<PathBuf> {
        let base = self.root.join("usr/lib");
        fs::read_dir(&base)
            .with_context(|| base.display().to_string())?
            .flatten()
            .map(|entry| entry.path())
            .find(|path| path.join("tcmu-runner").is_dir())
            .context("the package holds no handlers")
    }

    /// The value of `LD_LIBRARY_PATH`.
    ///
    /// # Errors
    /// A cache folder that is not as it was left.
    pub fn library_path(&self) -> Result<OsString> {
        let usr = self.library_folder()?;
        let name = usr.file_name().context("a folder without a name")?;
        let old = self.root.join("lib").join(name);
        env::join_paths([&usr, &old]).context("the cache folder's name holds a colon")
    }
}

fn cache() -> Result<PathBuf> {
    let base = match env::var_os("XDG_CACHE_HOME") {
        Some(cache) => PathBuf::from(cache),
        None => Path::new(&env::var_os("HOME").context("HOME is not set")?).join(".cache"),
    };
    Ok(base.join("tcmu-runner/peers"))
}

fn candidate_version() -> Result<String> {
    let policy = output(Command::new("apt-cache").args(["policy", "tcmu-runner"]))?;
    policy
        .lines()
        .find_map(|line| line.trim().strip_prefix("Candidate: "))
        .filter(|version| *version != "(none)")
        .map(str::to_owned)
        .context("apt knows no package tcmu-runner: run apt-get update, or use a Debian mirror")
}

/// tcmu-runner and its dependencies, as far as they are not installed here.
fn missing_packages() -> Result<Vec<String>> {
    let mut wanted = vec!["tcmu-runner".to_owned()];
    let mut missing = BTreeSet::new();
    while let Some(package) = wanted.pop() {
        if !missing.insert(package.clone()) {
            continue;
        }
        let listing = output(Command::new("apt-cache").args([
            "depends",
            "--no-pre-depends",
            "--no-recommends",
            "--no-suggests",
            "--no-conflicts",
            "--no-breaks",
            "--no-replaces",
            "--no-enhances",
            &package,
        ]))?;
        for dependency in dependencies(&listing) {
            if dependency != NOT_NEEDED && !is_installed(dependency) {
                wanted.push(dependency.to_owned());
            }
        }
    }
    Ok(missing.into_iter().collect())
}

fn dependencies(listing: &str) -> impl Iterator<Item = &str> {
    listing
        .lines()
        .filter_map(|line| line.trim_start().strip_prefix("Depends: "))
        // A virtual package stands in angle brackets.
        .filter(|name| !name.starts_with('<'))
}

fn is_installed(package: &str) -> bool {
    output(Command::new("dpkg-query").args(["-W", "-f=${db:Status-Status}", package]))
        .is_ok_and(|status| status == "installed")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dependencies_are_read_without_virtual_packages() {
        let listing = "tcmu-runner\n  Depends: libc6\n |Depends: a\n  Depends: <virtual>\n    real\n  Depends: zlib1g\n";
        let names: Vec<&str> = dependencies(listing).collect();
        assert_eq!(names, ["libc6", "zlib1g"]);
    }
}
