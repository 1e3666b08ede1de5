//! Programs that have to succeed.

use std::process::Command;

use anyhow::{Context, Result, bail};

/// Runs a program and returns what it printed.
///
/// # Errors
/// If it cannot be started, or fails; the error has what it said of that.
pub(crate) fn output(command: &mut Command) -> Result<String> {
    let output = command
        .output()
        .with_context(|| format!("cannot start {command:?}"))?;
    if !output.status.success() {
        bail!(
            "{command:?}: {}: {}",
            output.status,
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
