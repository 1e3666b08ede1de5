//! What every test of a judge has to come to, and why some do not pass.
//!
//! A manifest is a text file with one line for each test:
//!
//! ```text
//! # what follows is a comment
//! pass Read10.Simple
//! skip NoMedia.NoMediaSBC  the medium is not removable
//! fail Verify10.Dpo        the reason why, and when it will be mended
//! ```
//!
//! A skip or a failure has a reason. Whatever differs from the manifest is an error: a test that
//! fails, one that suddenly passes, one that has no line, a line without a test.

use std::collections::BTreeMap;
use std::fmt::{self, Write as _};

/// What a test came to, or has to come to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verdict {
    /// It ran to its end and complained of nothing.
    Pass,
    /// It left out what it is there for, or a part of that.
    Skip,
    /// It complained, or never came to its end.
    Fail,
}

impl Verdict {
    const ALL: [Verdict; 3] = [Verdict::Pass, Verdict::Skip, Verdict::Fail];

    /// The word that manifests have for it.
    pub fn word(self) -> &'static str {
        match self {
            Verdict::Pass => "pass",
            Verdict::Skip => "skip",
            Verdict::Fail => "fail",
        }
    }
}

/// One test's end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// What it came to.
    pub verdict: Verdict,
    /// What the judge said to that; empty if it passed.
    pub words: String,
}

/// The outcomes of a run, by the test's name, `Suite.Test`.
pub type Results = BTreeMap<String, Outcome>;

/// A parsed manifest.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Manifest {
    lines: BTreeMap<String, Line>,
}

#[derive(Debug, PartialEq, Eq)]
struct Line {
    verdict: Verdict,
    reason: String,
}

impl Manifest {
    /// Reads a manifest.
    ///
    /// # Errors
    /// A line that is none, a test with two lines, a skip or failure without a reason.
    pub fn parse(text: &str) -> anyhow::Result<Self> {
        let mut lines = BTreeMap::new();
        for (number, text) in (1..).zip(text.lines()) {
            let text = text.trim();
            if text.is_empty() || text.starts_with('#') {
                continue;
            }
            let (name, line) = Line::parse(text)
                .map_err(|why| anyhow::anyhow!("line {number} of the manifest, `{text}`: {why}"))?;
            let name = name.to_owned();
            anyhow::ensure!(
                !lines.contains_key(&name),
                "line {number} of the manifest: {name} has a line already"
            );
            lines.insert(name, line);
        }
        Ok(Manifest { lines })
    }

    /// How the results differ from what has to be, a line each; empty if they do not.
    pub fn differences(&self, results: &Results) -> Vec<String> {
        let mut found = Vec::new();
        for (name, outcome) in results {
            let is = outcome.verdict;
            match self.lines.get(name) {
                Some(line) if line.verdict == is => {}
                Some(line) => found.push(format!(
                    "{name}: {} instead of {}{}",
                    is.word(),
                    line.verdict.word(),
                    said(&outcome.words)
                )),
                None => found.push(format!(
                    "{name}: {}, and it is not listed{}",
                    is.word(),
                    said(&outcome.words)
                )),
            }
        }
        for name in self.lines.keys().filter(|n| !results.contains_key(*n)) {
            found.push(format!("{name}: listed, and it did not run"));
        }
        found
    }

    /// The manifest that the results would pass, with this one's reasons where they still fit. A
    /// reason that is missing is a `?`, which [`parse`](Self::parse) refuses.
    pub fn skeleton(&self, results: &Results) -> String {
        let width = results.keys().map(String::len).max().unwrap_or(0);
        let mut text = String::new();
        for (name, outcome) in results {
            let verdict = outcome.verdict;
            let known = self.lines.get(name).filter(|line| line.verdict == verdict);
            let reason = match (verdict, known) {
                (Verdict::Pass, _) => "",
                (_, Some(line)) => &line.reason,
                (_, None) => "?",
            };
            let line = format!("{} {name:width$}  {reason}", verdict.word());
            // Writing to a string cannot fail.
            let _ = writeln!(text, "{}", line.trim_end());
        }
        text
    }
}

impl Line {
    fn parse(text: &str) -> Result<(&str, Self), &'static str> {
        let (word, rest) = text.split_once(' ').ok_or("a verdict and a test, please")?;
        let verdict = Verdict::ALL
            .into_iter()
            .find(|verdict| verdict.word() == word)
            .ok_or("the verdict is none of pass, skip and fail")?;
        let rest = rest.trim_start();
        let (name, reason) = rest.split_once(' ').unwrap_or((rest, ""));
        let reason = reason.trim().to_owned();
        if verdict != Verdict::Pass && matches!(reason.as_str(), "" | "?") {
            return Err("what does not pass needs a reason");
        }
        Ok((name, Line { verdict, reason }))
    }
}

fn said(words: &str) -> String {
    if words.is_empty() {
        return String::new();
    }
    format!("\n      {}", words.replace('\n', "\n      "))
}

/// How many tests came to what.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tally {
    /// [`Verdict::Pass`].
    pub pass: usize,
    /// [`Verdict::Skip`].
    pub skip: usize,
    /// [`Verdict::Fail`].
    pub fail: usize,
}

impl Tally {
    /// Counts.
    pub fn of(results: &Results) -> Self {
        let count = |verdict| results.values().filter(|o| o.verdict == verdict).count();
        Tally {
            pass: count(Verdict::Pass),
            skip: count(Verdict::Skip),
            fail: count(Verdict::Fail),
        }
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Tally { pass, skip, fail } = self;
        write!(f, "{pass} pass, {fail} fail, {skip} skip")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MANIFEST: &str = "\
# a comment

pass Read10.Simple
skip NoMedia.NoMediaSBC  not removable
fail Verify10.Dpo        not yet
";

    fn results(all: &[(&str, Verdict)]) -> Results {
        let outcome = |verdict| Outcome {
            verdict,
            words: "it said so".into(),
        };
        all.iter()
            .map(|&(name, verdict)| (name.to_owned(), outcome(verdict)))
            .collect()
    }

    fn as_listed() -> Results {
        results(&[
            ("Read10.Simple", Verdict::Pass),
            ("NoMedia.NoMediaSBC", Verdict::Skip),
            ("Verify10.Dpo", Verdict::Fail),
        ])
    }

    #[test]
    fn what_is_listed_passes() {
        let manifest = Manifest::parse(MANIFEST).unwrap();
        assert_eq!(manifest.differences(&as_listed()), [""; 0]);
    }

    #[test]
    fn every_difference_is_named() {
        let manifest = Manifest::parse(MANIFEST).unwrap();
        for (name, verdict, complaint) in [
            ("Read10.Simple", Verdict::Fail, "fail instead of pass"),
            ("Read10.Simple", Verdict::Skip, "skip instead of pass"),
            ("Verify10.Dpo", Verdict::Pass, "pass instead of fail"),
            ("NoMedia.NoMediaSBC", Verdict::Pass, "pass instead of skip"),
            ("New.Test", Verdict::Pass, "not listed"),
        ] {
            let mut results = as_listed();
            results.extend(self::results(&[(name, verdict)]));
            let found = manifest.differences(&results);
            assert_eq!(found.len(), 1, "{found:?}");
            assert!(
                found[0].contains(name) && found[0].contains(complaint),
                "{found:?}"
            );
        }
        let mut results = as_listed();
        results.remove("Read10.Simple");
        let found = manifest.differences(&results);
        assert_eq!(found, ["Read10.Simple: listed, and it did not run"]);
    }

    #[test]
    fn a_manifest_without_reasons_is_refused() {
        for line in [
            "skip A.B",
            "fail A.B  ?",
            "oops A.B",
            "pass",
            "pass A.B\npass A.B",
        ] {
            assert!(Manifest::parse(line).is_err(), "{line}");
        }
    }

    #[test]
    fn the_skeleton_keeps_the_reasons_that_still_fit() {
        let manifest = Manifest::parse(MANIFEST).unwrap();
        assert_eq!(
            Manifest::parse(&manifest.skeleton(&as_listed())).unwrap(),
            manifest
        );
        let changed = results(&[
            ("Read10.Simple", Verdict::Fail),
            ("NoMedia.NoMediaSBC", Verdict::Skip),
        ]);
        let skeleton = manifest.skeleton(&changed);
        assert!(
            skeleton.contains("fail Read10.Simple       ?\n"),
            "{skeleton}"
        );
        assert!(skeleton.contains("not removable"), "{skeleton}");
        assert!(Manifest::parse(&skeleton).is_err());
    }
}
