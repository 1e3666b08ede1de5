//! libiscsi's `iscsi-test-cu`.
//!
//! A test that leaves everything out counts as passed in its own summary, so its output is read
//! instead: whatever printed `[SKIPPED]` has skipped something.

use std::io::Read;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context as _;

use crate::manifest::{Outcome, Results, Verdict};

/// Where the names of suites and tests start, and where the tests end.
const SUITE: &str = "Suite: ";
const TEST: &str = "  Test: ";
const SUMMARY: &str = "Run Summary:";

/// Runs `iscsi-test-cu`, which `command` names and gives its arguments, and returns what it printed.
///
/// A run that is not over in `patience` is killed: what it printed until then is the answer, in
/// which the test that hangs has no verdict.
///
/// # Errors
/// If it cannot be run.
pub fn run(command: &[&str], patience: Duration) -> anyhow::Result<String> {
    let (program, args) = command.split_first().context("no command")?;
    let mut child = Command::new(program)
        .args(args)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot run {program}"))?;
    let stdout = child.stdout.take().context("no output")?;
    let stderr = child.stderr.take().context("no output")?;
    let read = |mut from: Box<dyn Read + Send>| {
        thread::spawn(move || {
            let mut bytes = Vec::new();
            // What was read until an error is all there is.
            let _ = from.read_to_end(&mut bytes);
            String::from_utf8_lossy(&bytes).into_owned()
        })
    };
    let printed = read(Box::new(stdout));
    let complaints = read(Box::new(stderr));
    let deadline = Instant::now() + patience;
    while child.try_wait()?.is_none() {
        if Instant::now() > deadline {
            child.kill()?;
            break;
        }
        thread::sleep(Duration::from_millis(20));
    }
    child.wait()?;
    let printed = printed.join().unwrap_or_default();
    let complaints = complaints.join().unwrap_or_default();
    Ok(format!("{printed}{complaints}"))
}

/// What each test came to, by what `iscsi-test-cu` (verbose, which is its default) printed.
pub fn results(output: &str) -> Results {
    let mut results = Results::new();
    let mut suite = "";
    let mut lines = output.lines().peekable();
    while let Some(line) = lines.next() {
        if let Some(name) = line.strip_prefix(SUITE) {
            suite = name.trim();
            continue;
        }
        let Some((name, first)) = line
            .strip_prefix(TEST)
            .and_then(|rest| rest.split_once(" ..."))
        else {
            continue;
        };
        let mut said = vec![first];
        while let Some(more) = lines.next_if(|line| !starts_something(line)) {
            said.push(more);
        }
        results.insert(format!("{suite}.{name}"), outcome(&said));
    }
    results
}

fn starts_something(line: &str) -> bool {
    [SUITE, TEST, SUMMARY].iter().any(|s| line.starts_with(s))
}

fn outcome(said: &[&str]) -> Outcome {
    // What comes behind the verdict is said by the end of the suite.
    let end = said
        .iter()
        .position(|line| *line == "FAILED" || line.starts_with("passed"));
    let before = &said[..end.unwrap_or(said.len())];
    let skipped = before.iter().any(|line| line.contains("[SKIPPED]"));
    let mut words: Vec<&str> = before.iter().map(|line| line.trim()).collect();
    let verdict = match end.map(|end| said.split_at(end).1) {
        Some(["FAILED", complaints @ ..]) => {
            words.extend(complaints.iter().map(|line| line.trim()));
            Verdict::Fail
        }
        Some(_) if skipped => Verdict::Skip,
        Some(_) => Verdict::Pass,
        None => {
            words.push("it never came to its end");
            Verdict::Fail
        }
    };
    words.retain(|line| !line.is_empty() && verdict != Verdict::Pass);
    Outcome {
        verdict,
        words: words.join("\n"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OUTPUT: &str = "

     CUnit - A unit testing framework for C - Version 2.1-3
     http://cunit.sourceforge.net/


Suite: CompareAndWrite
  Test: Simple ...passed    2026-11-21 10:00:00.000001     [SKIPPED] by the end of the suite
  Test: DpoFua ...    2026-11-21 10:00:00.000001     [SKIPPED] COMPAREANDWRITE is not implemented.
passed
Suite: NoMedia
  Test: NoMediaSBC ...    2026-11-21 10:00:00.000001     [FAILED] READ10 successful but should have failed
    2026-11-21 10:00:00.000002     [SKIPPED] ORWRITE is not implemented.
FAILED
    1. test_nomedia_sbc.c:42  - CU_ASSERT_EQUAL(_r, 0)
Suite: Write10
  Test: Simple ...
Run Summary:    Type  Total    Ran Passed Failed Inactive
";

    #[test]
    fn verdicts_are_read_and_not_the_summary() {
        let results = results(OUTPUT);
        let verdicts: Vec<_> = results
            .iter()
            .map(|(name, outcome)| (name.as_str(), outcome.verdict))
            .collect();
        assert_eq!(
            verdicts,
            [
                ("CompareAndWrite.DpoFua", Verdict::Skip),
                ("CompareAndWrite.Simple", Verdict::Pass),
                ("NoMedia.NoMediaSBC", Verdict::Fail),
                ("Write10.Simple", Verdict::Fail),
            ]
        );
        let words = &results["NoMedia.NoMediaSBC"].words;
        assert!(words.contains("should have failed") && words.contains("test_nomedia_sbc.c:42"));
        assert!(results["Write10.Simple"].words.contains("never came"));
    }
}
