//! `tcmuctl status`.

use std::io::{self, Write};

use comfy_table::Table;
use serde_json::json;

use super::client::{Client, Lun, Status};
use super::error::Error;
use super::text;
use crate::output;

pub(super) fn run(client: &Client, as_json: bool) -> Result<(), Error> {
    let (status, luns) = (client.status()?, client.luns()?);
    if as_json {
        return Ok(output::json(&json!({ "daemon": status, "luns": luns }))?);
    }
    let mut out = io::stdout().lock();
    write!(out, "{}", daemon(&status))?;
    if luns.is_empty() {
        writeln!(out, "\nno LUNs")?;
    } else {
        writeln!(out, "\n{}", output::plain(table(&luns)))?;
    }
    Ok(())
}

fn daemon(status: &Status) -> String {
    let or = |text: &str, other: &str| match text {
        "" => other.to_owned(),
        text => text.to_owned(),
    };
    let slow = match status.slow_command_ms {
        0 => "not logged".to_owned(),
        limit => format!("logged from {limit} ms on"),
    };
    format!(
        "tcmu-runner {}, process {}, up {}\n\
         reactors: {}, log level: {}, slow commands: {slow}\n\
         metrics: {}, events so far: {}\n",
        status.version,
        status.process_id,
        text::age(status.started),
        status.reactors,
        status.log_level,
        or(&status.metrics, "off"),
        status.latest_event
    )
}

fn table(luns: &[Lun]) -> Table {
    let mut table = Table::new();
    table.set_header([
        "NAME",
        "HBA",
        "HANDLER",
        "CONFIG",
        "SIZE",
        "STATE",
        "SINCE",
        "IN FLIGHT",
        "COMPLETED",
        "NOTE",
    ]);
    for lun in luns {
        let mut note = lun.reason.clone();
        if lun.ring_resets > 0 {
            let separator = if note.is_empty() { "" } else { "; " };
            note += &format!("{separator}ring resets: {}", lun.ring_resets);
        }
        let size = match lun.size {
            0 => "-".to_owned(),
            size => tcmu_configfs::show_size(size),
        };
        table.add_row([
            lun.name.clone(),
            lun.hba.to_string(),
            lun.handler.clone(),
            lun.config.clone(),
            size,
            lun.state().to_owned(),
            text::age(lun.since),
            lun.in_flight.to_string(),
            lun.completed.to_string(),
            note,
        ]);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::super::client::tests::lun;
    use super::*;

    #[test]
    fn the_table_names_what_is_wrong() {
        let mut broken = lun(3, "disk1", 2);
        broken.state = "failed".to_owned();
        broken.reason = "no such file".to_owned();
        broken.ring_resets = 3;
        broken.size = 0;
        let text = output::plain(table(&[lun(1, "disk0", 0), broken]));
        let lines: Vec<&str> = text.lines().collect();
        assert!(lines[0].starts_with("NAME"), "{text}");
        assert!(
            lines[1].contains("disk0") && lines[1].contains("1.0 GiB"),
            "{text}"
        );
        assert!(lines[2].ends_with("no such file; ring resets: 3"), "{text}");
        assert_eq!(lines.len(), 3);
    }

    #[test]
    fn what_is_off_is_said_to_be() {
        let mut status = Status {
            version: "1.2.3".to_owned(),
            process_id: 7,
            started: 0,
            reactors: 2,
            log_level: "info".to_owned(),
            slow_command_ms: 0,
            metrics: String::new(),
            latest_event: 5,
        };
        let off = daemon(&status);
        for words in ["tcmu-runner 1.2.3, process 7", "metrics: off", "not logged"] {
            assert!(off.contains(words), "{words}: {off}");
        }
        status.slow_command_ms = 20;
        status.metrics = "127.0.0.1:9361".to_owned();
        let on = daemon(&status);
        for words in ["from 20 ms on", "metrics: 127.0.0.1:9361"] {
            assert!(on.contains(words), "{words}: {on}");
        }
    }
}
