//! Helper programs on the host.

use std::fs::File;
use std::io::Write as _;
use std::process::{Command, Stdio};

use crate::error::{Context as _, Error};

/// How much of a failed program's output an error shows.
const SHOWN_LINES: usize = 20;

/// Runs a program that must succeed, and returns its standard output.
pub(crate) fn output(command: &mut Command) -> Result<String, Error> {
    let line = line(command);
    let output = command
        .stdin(Stdio::null())
        .output()
        .context(|| format!("cannot run `{line}`"))?;
    if !output.status.success() {
        let log = tail(&String::from_utf8_lossy(&output.stderr));
        return Err(Error::Command {
            command: line,
            status: output.status,
            log,
        });
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Runs a program that must succeed and that prints into a log.
pub(crate) fn logged(command: &mut Command, log: &File) -> Result<(), Error> {
    let line = line(command);
    let cannot = || format!("cannot run `{line}`");
    let mut note = log.try_clone().context(cannot)?;
    writeln!(note, "$ {line}").context(|| "cannot write the log".into())?;
    let status = command
        .stdin(Stdio::null())
        .stdout(log.try_clone().context(cannot)?)
        .stderr(log.try_clone().context(cannot)?)
        .status()
        .context(cannot)?;
    if status.success() {
        Ok(())
    } else {
        Err(Error::Command {
            command: line,
            status,
            log: String::new(),
        })
    }
}

/// The last lines of a text.
pub(crate) fn tail(text: &str) -> String {
    let lines: Vec<&str> = text.trim_end().lines().collect();
    lines[lines.len().saturating_sub(SHOWN_LINES)..].join("\n")
}

fn line(command: &Command) -> String {
    std::iter::once(command.get_program())
        .chain(command.get_args())
        .map(|word| word.to_string_lossy())
        .collect::<Vec<_>>()
        .join(" ")
}
