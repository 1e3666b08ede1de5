//! Commands with the exit code that is expected of them.

use std::ffi::OsStr;
use std::os::unix::process::ExitStatusExt as _;
use std::process::{Command, Output, Stdio};

use anyhow::{Context as _, bail};

/// sg3_utils: "illegal request, invalid opcode".
pub const SG_INVALID_OPCODE: i32 = 9;
/// sg3_utils: "illegal request" other than an invalid opcode.
pub const SG_ILLEGAL_REQUEST: i32 = 5;
/// sg3_utils: "unit attention".
pub const SG_UNIT_ATTENTION: i32 = 6;
/// sg3_utils: "miscompare".
pub const SG_MISCOMPARE: i32 = 14;

/// Runs a command that must exit with code 0, and returns what it printed on its standard output.
///
/// # Errors
/// If it cannot be run or ends otherwise; the error holds all that it printed.
pub fn run<S: AsRef<OsStr>>(words: &[S]) -> anyhow::Result<String> {
    run_expecting(words, 0).map(|output| stdout(&output))
}

/// Runs a command that must exit with `code`, and returns what it printed, standard output first.
///
/// # Errors
/// As [`run`].
pub fn run_code<S: AsRef<OsStr>>(words: &[S], code: i32) -> anyhow::Result<String> {
    let output = run_expecting(words, code)?;
    Ok(format!(
        "{}{}",
        stdout(&output),
        String::from_utf8_lossy(&output.stderr)
    ))
}

/// Runs a command that may end anyhow.
///
/// # Errors
/// If it cannot be run.
pub fn run_any<S: AsRef<OsStr>>(words: &[S]) -> anyhow::Result<Output> {
    let (program, args) = words.split_first().context("no command")?;
    println!("$ {}", line(words));
    let output = Command::new(program)
        .args(args)
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot run {}", program.as_ref().to_string_lossy()))?;
    print!(
        "{}{}",
        stdout(&output),
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(output)
}

fn run_expecting<S: AsRef<OsStr>>(words: &[S], code: i32) -> anyhow::Result<Output> {
    let output = run_any(words)?;
    if output.status.code() == Some(code) {
        return Ok(output);
    }
    let how = match (output.status.code(), output.status.signal()) {
        (Some(other), _) => format!("exited with {other}, not {code}"),
        (None, signal) => format!("was killed by signal {}", signal.unwrap_or(0)),
    };
    bail!(
        "`{}` {how}:\n{}",
        line(words),
        String::from_utf8_lossy(&output.stderr).trim_end()
    )
}

fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// A command as people type it.
pub(crate) fn line<S: AsRef<OsStr>>(words: &[S]) -> String {
    words
        .iter()
        .map(|w| w.as_ref().to_string_lossy())
        .collect::<Vec<_>>()
        .join(" ")
}
