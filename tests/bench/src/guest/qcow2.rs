//! qcow2 images for the candidates, and a file system for those that grow: tmpfs cannot reserve zeroes
//! (FALLOC_FL_ZERO_RANGE), which the C tcmu-runner needs and qemu is faster with.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};

use super::process::output;

const LIMIT: Duration = Duration::from_secs(120);

/// Makes an image in clusters of 64 KiB that holds all bytes of the raw image `from`.
///
/// # Errors
/// Whatever qemu-img says.
pub(super) fn full(from: &Path, image: &Path) -> Result<()> {
    output(
        Command::new("qemu-img")
            .args(["convert", "-q", "-f", "raw", "-O", "qcow2"])
            .args([from, image]),
        LIMIT,
    )?;
    Ok(())
}

/// Makes an image in clusters of 64 KiB that holds nothing.
///
/// # Errors
/// Whatever qemu-img says.
pub(super) fn empty(image: &Path, size_mib: u64) -> Result<()> {
    output(
        Command::new("qemu-img")
            .args(["create", "-q", "-f", "qcow2"])
            .arg(image)
            .arg(format!("{size_mib}M")),
        LIMIT,
    )?;
    Ok(())
}

/// Makes an ext4 in a file of the tmpfs, and mounts it at `folder`. What is deleted there is given
/// back.
///
/// # Errors
/// Whatever mkfs.ext4 and mount say.
pub(super) fn file_system(folder: &Path, size_mib: u64) -> Result<()> {
    let file = folder.with_extension("ext4");
    fs::create_dir(folder).with_context(|| folder.display().to_string())?;
    output(
        Command::new("mkfs.ext4")
            // Nothing is left to be done in the background.
            .args(["-q", "-N", "1024", "-E"])
            .arg("lazy_itable_init=0,lazy_journal_init=0")
            .arg(&file)
            .arg(format!("{size_mib}M")),
        LIMIT,
    )?;
    output(
        Command::new("mount")
            .args(["-o", "loop,discard"])
            .arg(&file)
            .arg(folder),
        LIMIT,
    )?;
    Ok(())
}
