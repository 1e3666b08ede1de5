//! What initiators see when a daemon crashes, is restarted, or is replaced by another version.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::io::BufRead;
use std::path::PathBuf;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use crate::plan::{Candidate, Peer};

/// How a daemon ends before it is started again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Ending {
    /// SIGKILL.
    Crash,
    /// SIGTERM.
    Restart,
    /// SIGTERM, and another file is started.
    Upgrade,
}

impl Ending {
    /// All, in the order of the report's rows.
    pub const ALL: [Self; 3] = [Self::Crash, Self::Restart, Self::Upgrade];

    /// The name of the report's rows.
    #[must_use]
    pub fn title(self) -> &'static str {
        match self {
            Self::Crash => "crash (SIGKILL)",
            Self::Restart => "restart (SIGTERM)",
            Self::Upgrade => "upgrade (SIGTERM, another program)",
        }
    }
}

/// Everything the guest has to know.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CrashPlan {
    /// How often each candidate's daemon ends in each way.
    pub times: u32,
    /// Debian's tcmu-runner.
    pub peer: Option<Peer>,
    /// The folder of our `tcmu-runner`.
    pub ours: Option<PathBuf>,
}

/// What initiators saw of one candidate's daemon ending in one way, again and again.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Seen {
    /// Whose daemon.
    pub candidate: Candidate,
    /// How it ended.
    pub ending: Ending,
    /// From the signal until the next daemon said that it was ready, in milliseconds.
    pub downtimes_ms: Vec<f64>,
    /// The longest that a raw SCSI command took around each end, in milliseconds.
    pub pauses_ms: Vec<f64>,
    /// After how many ends a command ring was reset.
    pub resets: u32,
    /// Raw SCSI commands (SG_IO: nobody retries them).
    pub raw: Raw,
    /// fio on a block device.
    pub fio: Fio,
    /// Reads over iSCSI by an initiator in user space.
    pub iscsi: Iscsi,
}

/// What became of raw SCSI commands.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Raw {
    /// How many there were.
    pub commands: u64,
    /// Those that ended with another status than GOOD, by what they ended with.
    pub failed: BTreeMap<String, u64>,
    /// How often a block did not hold what was written to it last.
    pub wrong: u64,
    /// How many increments by COMPARE AND WRITE ended with GOOD.
    pub acknowledged: u64,
    /// How far they have counted.
    pub counted: u64,
}

impl Raw {
    /// How many commands failed.
    #[must_use]
    pub fn failures(&self) -> u64 {
        self.failed.values().sum()
    }

    /// How many effects are missing that were acknowledged.
    #[must_use]
    pub fn lost(&self) -> u64 {
        self.wrong + self.acknowledged.saturating_sub(self.counted)
    }

    /// How many increments took place although the initiator was told that they had not: who tries
    /// again does them twice.
    #[must_use]
    pub fn duplicated(&self) -> u64 {
        self.counted.saturating_sub(self.acknowledged)
    }
}

/// What fio saw.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fio {
    /// How many requests there were.
    pub requests: u64,
    /// How many of them failed, or read something else than was written.
    pub errors: u64,
}

/// What an initiator was told that Linux's SCSI layer does not stand before: that one tries again by itself
/// what ended with BUSY.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Iscsi {
    /// How many reads ended with BUSY; of those before it gave up, not all are known.
    pub busy: u64,
    /// How many ended otherwise, and not with GOOD.
    pub failed: u64,
    /// How often it gave up, since all that it tried again ended with BUSY too.
    pub gave_up: u64,
}

/// One line of the guest's report.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Line {
    /// What was seen.
    Seen(Seen),
    /// A candidate could not be tried, or not to the end.
    Failed {
        /// Who.
        candidate: Candidate,
        /// Why.
        reason: String,
    },
    /// The last line.
    Done,
}

/// Reads the guest's lines; one that was cut off by the guest's death is left out.
///
/// # Errors
/// Lines that cannot be read.
pub fn gather(lines: impl BufRead) -> Result<Vec<Line>> {
    let mut gathered = Vec::new();
    for line in lines.lines() {
        let line = line.context("cannot read the guest's report")?;
        if let Ok(line) = serde_json::from_str(&line) {
            gathered.push(line);
        }
    }
    Ok(gathered)
}

/// The report as Markdown: `place` says where it was measured.
#[must_use]
pub fn markdown(plan: &CrashPlan, lines: &[Line], place: &str) -> String {
    let mut out = String::new();
    let mut say = |text: String| {
        out.push_str(&text);
        out.push('\n');
    };
    say(format!(
        "Measured in {place}; each daemon ended {} times in each way and was started at once, under \
         fio with verify at qd 32 on one LUN, and raw SCSI commands (writes and reads with known \
         content, COMPARE AND WRITE of a counter) on another; libiscsi's iscsi-perf reads a third over \
         iSCSI.{}",
        plan.times,
        plan.peer.as_ref().map_or_else(String::new, |peer| format!(
            " The C tcmu-runner is Debian's {}.",
            peer.version
        ))
    ));
    say("\n| the daemon ends by | daemon | pause, median | longest | I/O errors in fio | failed raw \
         commands | BUSY over iSCSI | ring resets | lost effects | effects reported as failed |\n\
         | --- | --- | --: | --: | --: | --: | --: | --: | --: | --: |"
        .to_owned());
    for ending in Ending::ALL {
        for line in lines {
            if let Line::Seen(seen) = line
                && seen.ending == ending
            {
                say(row(seen));
            }
        }
    }
    for line in lines {
        match line {
            Line::Failed { candidate, reason } => {
                say(format!("\n**{}:** {reason}", candidate.title()));
            }
            Line::Seen(seen) if !seen.raw.failed.is_empty() => {
                let kinds = seen.raw.failed.iter();
                let kinds: Vec<String> = kinds.map(|(what, n)| format!("{n} x {what}")).collect();
                say(format!(
                    "\n{}, {}: the raw commands ended with {}.",
                    seen.candidate.title(),
                    seen.ending.title(),
                    kinds.join(", ")
                ));
            }
            Line::Seen(_) | Line::Done => {}
        }
    }
    if !lines.contains(&Line::Done) {
        say(
            "\n**The guest did not come to its end: this is what there was up to then.**"
                .to_owned(),
        );
    }
    out
}

fn row(seen: &Seen) -> String {
    let mut pauses = seen.pauses_ms.clone();
    pauses.sort_by(f64::total_cmp);
    let pause = |at: usize| {
        pauses
            .get(at)
            .map_or_else(|| "-".to_owned(), |pause| format!("{pause:.0} ms"))
    };
    let mut row = String::new();
    let cells = [
        seen.ending.title().to_owned(),
        seen.candidate.title().to_owned(),
        pause(pauses.len() / 2),
        pause(pauses.len().saturating_sub(1)),
        format!("{} of {}", seen.fio.errors, seen.fio.requests),
        format!("{} of {}", seen.raw.failures(), seen.raw.commands),
        over_iscsi(seen.iscsi),
        format!("{} of {}", seen.resets, seen.pauses_ms.len()),
        seen.raw.lost().to_string(),
        seen.raw.duplicated().to_string(),
    ];
    for cell in cells {
        write!(row, "| {cell} ").expect("a String takes everything");
    }
    row + "|"
}

fn over_iscsi(seen: Iscsi) -> String {
    let mut words = Vec::new();
    if seen.gave_up > 0 {
        words.push(format!("gave up {} times", seen.gave_up));
    }
    if seen.busy > 0 || seen.gave_up == 0 {
        words.push(seen.busy.to_string());
    }
    if seen.failed > 0 {
        words.push(format!("{} other failures", seen.failed));
    }
    words.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen() -> Seen {
        Seen {
            candidate: Candidate::File,
            ending: Ending::Crash,
            downtimes_ms: vec![1.0, 2.0, 3.0],
            pauses_ms: vec![30.0, 10.0, 20.4],
            resets: 1,
            raw: Raw {
                commands: 90,
                failed: BTreeMap::from([("BUSY".to_owned(), 2)]),
                wrong: 3,
                acknowledged: 10,
                counted: 12,
            },
            fio: Fio {
                requests: 50,
                errors: 0,
            },
            iscsi: Iscsi {
                busy: 7,
                ..Iscsi::default()
            },
        }
    }

    #[test]
    fn a_row_tells_what_was_seen() {
        assert_eq!(
            row(&seen()),
            "| crash (SIGKILL) | ours, file | 20 ms | 30 ms | 0 of 50 | 2 of 90 | 7 | 1 of 3 | 3 | 2 |"
        );
        let mut lost = seen();
        lost.raw.counted = 7;
        assert_eq!((lost.raw.lost(), lost.raw.duplicated()), (6, 0));
        lost.iscsi.gave_up = 2;
        lost.iscsi.failed = 3;
        assert!(row(&lost).contains("| gave up 2 times, 7, 3 other failures |"));
    }

    #[test]
    fn what_a_dying_guest_left_is_reported_as_such() {
        let line = serde_json::to_string(&Line::Seen(seen())).expect("serialises");
        let cut = format!("{line}\n{{\"see");
        let lines = gather(cut.as_bytes()).expect("readable");
        assert_eq!(lines, [Line::Seen(seen())]);
        let plan = CrashPlan {
            times: 3,
            peer: None,
            ours: None,
        };
        let text = markdown(&plan, &lines, "a guest");
        assert!(text.contains("did not come to its end"), "{text}");
        assert!(text.contains("2 x BUSY"), "{text}");
    }
}
