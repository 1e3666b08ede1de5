//! `tcmuctl save` and `tcmuctl restore`.

use std::io::{self, Write};
use std::path::PathBuf;

use comfy_table::Table;
use serde_json::json;
use tcmu_configfs::Error;
use tcmu_configfs::saved::{DEFAULT_FILE, Outcome, Saved, Step};

use crate::args::{Common, Restore, SavedFile};
use crate::{Failure, complain, output, tree};

/// Where targetcli keeps its own, on most distributions and on Debian.
const TARGETCLIS: [&str; 2] = [
    "/etc/target/saveconfig.json",
    "/etc/rtslib-fb-target/saveconfig.json",
];

pub(crate) fn save(common: &Common, save: SavedFile) -> Result<(), Failure> {
    let path = path(common, save);
    let taken = tree(common)?.capture()?;
    let written = taken.saved.write(&path)?;
    let (backstores, luns) = (taken.saved.backstores.len(), taken.saved.luns());
    if common.json {
        output::json(&json!({
            "file": path, "written": written, "backstores": backstores, "luns": luns,
            "left_out": taken.left_out,
        }))?;
        return Ok(());
    }
    for step in &taken.left_out {
        complain(&format!(
            "not saved: {} {}: {}",
            step.kind,
            step.name,
            step.details.join("; ")
        ));
    }
    let how = if written { "saved to" } else { "unchanged in" };
    writeln!(
        io::stdout(),
        "{backstores} backstores and {luns} LUNs {how} {}",
        path.display()
    )?;
    Ok(())
}

pub(crate) fn restore(common: &Common, restore: Restore) -> Result<(), Failure> {
    let path = path(common, restore.saved);
    if !path.exists() && common.root.is_none() && path.as_os_str() == DEFAULT_FILE {
        return Err(nothing_saved().into());
    }
    let taken = Saved::read(&path)?;
    let mut tree = tree(common)?;
    if restore.no_daemon_check {
        tree = tree.without_daemon_check();
    }
    let mut steps = tree.restore(&taken.saved, restore.dry_run)?;
    steps.extend(taken.left_out);
    if common.json {
        output::json(&json!({ "dry_run": restore.dry_run, "steps": steps }))?;
    } else {
        table(&steps, restore.dry_run)?;
    }
    if steps.iter().any(|step| step.outcome.is_bad()) {
        return Err(Failure::Told);
    }
    Ok(())
}

fn path(common: &Common, given: SavedFile) -> PathBuf {
    given.file.unwrap_or_else(|| match &common.root {
        Some(root) => root.join(DEFAULT_FILE.trim_start_matches('/')),
        None => DEFAULT_FILE.into(),
    })
}

/// Nothing was saved yet: perhaps by targetcli.
fn nothing_saved() -> Error {
    let theirs = TARGETCLIS
        .iter()
        .find(|path| std::fs::exists(path).unwrap_or(false));
    Error::SavedFile {
        path: DEFAULT_FILE.into(),
        why: match theirs {
            Some(theirs) => format!(
                "nothing has been saved there yet; what targetcli has saved is restored by \
                 `tcmuctl restore {theirs}`"
            ),
            None => "nothing has been saved there yet: `tcmuctl save` does".to_owned(),
        },
    }
}

fn table(steps: &[Step], dry_run: bool) -> io::Result<()> {
    let mut table = Table::new();
    for step in steps {
        let outcome = match step.outcome {
            Outcome::Created if dry_run => "missing",
            outcome => outcome.as_str(),
        };
        table.add_row([
            outcome,
            &format!("{} {}", step.kind, step.name),
            &step.details.join("\n"),
        ]);
    }
    let mut out = io::stdout().lock();
    if !steps.is_empty() {
        writeln!(out, "{}", output::plain(table))?;
    }
    let count = |outcome| steps.iter().filter(|s| s.outcome == outcome).count();
    let made = if dry_run { "would be made" } else { "made" };
    writeln!(
        out,
        "{} {made}, {} unchanged, {} different, {} failed, {} skipped",
        count(Outcome::Created),
        count(Outcome::Unchanged),
        count(Outcome::Differs),
        count(Outcome::Failed),
        count(Outcome::Skipped)
    )
}
