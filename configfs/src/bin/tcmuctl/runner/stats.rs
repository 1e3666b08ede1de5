//! `tcmuctl stats`.

use std::io::{self, Write};

use clap::Args;
use comfy_table::Table;
use serde_json::{Value, json};

use super::client::{ClassStats, Client, LunStats};
use super::error::Error;
use super::figures::Sum;
use super::text;
use super::wanted::Wanted;
use crate::output;

#[derive(Debug, Args)]
pub(crate) struct Arguments {
    #[command(flatten)]
    wanted: Wanted,
}

pub(super) fn run(client: &Client, arguments: &Arguments, as_json: bool) -> Result<(), Error> {
    let wanted = arguments.wanted.find(client)?;
    let ids: Vec<u32> = wanted.iter().map(|lun| lun.id).collect();
    let luns = client.stats(&ids)?;
    if as_json {
        let luns: Vec<Value> = luns.iter().map(lun_as_json).collect();
        return Ok(output::json(&luns)?);
    }
    let mut out = io::stdout().lock();
    writeln!(out, "{}", output::plain(table(&luns)))?;
    for line in failures(&luns) {
        writeln!(out, "{line}")?;
    }
    Ok(())
}

fn table(luns: &[LunStats]) -> Table {
    let mut table = Table::new();
    table.set_header([
        "LUN", "CLASS", "COMMANDS", "BYTES", "FAILED", "MEAN", "P50", "P99", "P99.9", "MAX",
    ]);
    for lun in luns {
        let mut name = lun.name.clone();
        for class in lun.classes.iter().filter(|class| class.commands > 0) {
            let sum = Sum::of(class);
            let bytes = match sum.bytes {
                0 => "-".to_owned(),
                bytes => tcmu_configfs::show_size(bytes),
            };
            table.add_row([
                std::mem::take(&mut name),
                class.class.clone(),
                sum.commands.to_string(),
                bytes,
                sum.failed.to_string(),
                text::time_or_dash(sum.mean()),
                text::time_or_dash(sum.quantile(0.5)),
                text::time_or_dash(sum.quantile(0.99)),
                text::time_or_dash(sum.quantile(0.999)),
                text::time_or_dash(sum.quantile(1.0)),
            ]);
        }
        if !name.is_empty() {
            table.add_row([name.as_str(), "-", "0"]);
        }
    }
    table
}

/// What failed, one line each.
fn failures(luns: &[LunStats]) -> Vec<String> {
    let mut lines = Vec::new();
    for lun in luns {
        for class in &lun.classes {
            for (status, key, count) in &class.failures {
                let how = match key.as_str() {
                    "" => status.clone(),
                    key => format!("{status}, {key}"),
                };
                lines.push(format!(
                    "{}: {} failed: {count} ({how})",
                    lun.name, class.class
                ));
            }
        }
        if lun.slow > 0 {
            lines.push(format!(
                "{}: {} slow commands, see the log",
                lun.name, lun.slow
            ));
        }
    }
    if !lines.is_empty() {
        lines.insert(0, String::new());
    }
    lines
}

fn lun_as_json(lun: &LunStats) -> Value {
    let classes = lun.classes.iter();
    let classes: serde_json::Map<String, Value> = classes
        .map(|class| (class.class.clone(), class_as_json(class)))
        .collect();
    json!({
        "id": lun.id,
        "name": lun.name,
        "hba": lun.hba,
        "state": lun.state,
        "in_flight": lun.in_flight,
        "slow": lun.slow,
        "classes": classes,
    })
}

fn class_as_json(class: &ClassStats) -> Value {
    let sum = Sum::of(class);
    let failures = class
        .failures
        .iter()
        .map(|(status, key, count)| json!({ "status": status, "sense_key": key, "count": count }));
    let times = class
        .times
        .iter()
        .map(|(below, count)| json!({ "below_ns": below, "count": count }));
    json!({
        "commands": sum.commands,
        "bytes": sum.bytes,
        "failed": sum.failed,
        "total_ns": sum.nanoseconds,
        "mean_ns": sum.mean(),
        "p50_ns": sum.quantile(0.5),
        "p99_ns": sum.quantile(0.99),
        "p999_ns": sum.quantile(0.999),
        "max_ns": sum.quantile(1.0),
        "failures": failures.collect::<Vec<_>>(),
        "times": times.collect::<Vec<_>>(),
    })
}

#[cfg(test)]
mod tests {
    use super::super::figures::tests::stats;
    use super::*;

    #[test]
    fn classes_without_commands_are_left_out_and_luns_are_not() {
        let text = output::plain(table(&[stats(1, "busy", 3, 0), stats(2, "idle", 0, 0)]));
        let rows: Vec<Vec<&str>> = text
            .lines()
            .map(|line| line.split_whitespace().collect())
            .collect();
        assert_eq!(rows.len(), 3, "{text}");
        assert_eq!(rows[1][..5], ["busy", "read", "3", "12.0", "KiB"], "{text}");
        assert_eq!(rows[2], ["idle", "-", "0"], "{text}");
    }

    #[test]
    fn failures_are_named() {
        let mut lun = stats(1, "a", 1, 1);
        lun.slow = 4;
        let failure = |status: &str, key: &str| (status.to_owned(), key.to_owned(), 2);
        lun.classes[0].failures = vec![failure("check-condition", "medium-error")];
        lun.classes[1].failures = vec![failure("busy", "")];
        assert_eq!(
            failures(&[lun]),
            [
                "",
                "a: read failed: 2 (check-condition, medium-error)",
                "a: write failed: 2 (busy)",
                "a: 4 slow commands, see the log",
            ]
        );
        assert!(failures(&[stats(1, "a", 1, 1)]).is_empty());
    }

    #[test]
    fn json_has_the_histogram() {
        let value = lun_as_json(&stats(1, "a", 3, 0));
        let read = &value["classes"]["read"];
        assert_eq!(read["commands"], 3);
        assert_eq!(
            read["times"],
            json!([{ "below_ns": 1_000_000, "count": 3 }])
        );
        assert_eq!(read["p999_ns"], 1_000_000);
        assert_eq!(value["classes"]["write"]["p50_ns"], Value::Null);
    }
}
