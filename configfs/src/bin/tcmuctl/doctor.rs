//! `tcmuctl doctor`.

use std::io::{self, Write};

use serde_json::json;
use tcmu_configfs::{Finding, Severity};

use crate::args::Common;
use crate::{Failure, output, tree};

pub(crate) fn examine(common: &Common) -> Result<(), Failure> {
    let findings = tree(common)?.examine()?;
    let worst = findings.iter().map(|finding| finding.severity).max();
    if common.json {
        let worst = worst.unwrap_or(Severity::Ok);
        output::json(&json!({ "worst": worst, "findings": findings }))?;
    } else {
        print(&findings)?;
    }
    if worst == Some(Severity::Broken) {
        return Err(Failure::Told);
    }
    Ok(())
}

fn print(findings: &[Finding]) -> io::Result<()> {
    let mut out = io::stdout().lock();
    for finding in findings {
        let Finding {
            check,
            subject,
            severity,
            what,
            why,
            mend,
        } = finding;
        let subject = match subject.as_str() {
            "" => String::new(),
            subject => format!(" of {subject}"),
        };
        writeln!(out, "{:<7} {check}{subject}: {what}", severity.as_str())?;
        if *severity != Severity::Ok {
            writeln!(out, "        why:  {why}\n        mend: {mend}")?;
        }
    }
    let count = |severity| findings.iter().filter(|f| f.severity == severity).count();
    writeln!(
        out,
        "\n{} broken, {} slow, {} ok",
        count(Severity::Broken),
        count(Severity::Slow),
        count(Severity::Ok)
    )
}
