//! What is printed on standard output.

use std::io::{self, Write};

use comfy_table::{Table, presets};
use serde::Serialize;
use tcmu_configfs::{Backstore, Details, Export, show_size};

use crate::runner::Seen;

/// The space after each column; none before, so that lines begin at the margin.
const PADDING: (u16, u16) = (0, 2);

/// A table as text, without a frame.
pub(crate) fn plain(mut table: Table) -> String {
    table.load_style(presets::NOTHING);
    for column in table.column_iter_mut() {
        column.set_padding(PADDING);
    }
    table.trim_fmt()
}

/// Prints one JSON value and a newline.
pub(crate) fn json(value: &impl Serialize) -> io::Result<()> {
    let mut out = io::stdout().lock();
    serde_json::to_writer_pretty(&mut out, value)?;
    writeln!(out)
}

/// Prints where a new backstore is to be found, one place per line.
pub(crate) fn places(backstore: &Backstore) -> io::Result<()> {
    let mut out = io::stdout().lock();
    for disk in backstore.block_devices() {
        writeln!(out, "{}", disk.display())?;
    }
    for export in &backstore.exports {
        for portal in &export.portals {
            writeln!(out, "{portal} {} lun {}", export.target, export.lun)?;
        }
    }
    if backstore.exports.is_empty()
        && let Some(uio) = &backstore.uio
    {
        writeln!(out, "{}", uio.display())?;
    }
    Ok(())
}

/// Prints the table of all backstores, and what the daemon says is wrong with them.
pub(crate) fn list(seen: &[Seen<&Backstore>]) -> io::Result<()> {
    let mut table = Table::new();
    table.set_header([
        "NAME",
        "HANDLER",
        "CONFIG",
        "SIZE",
        "BLOCK",
        "STATE",
        "DAEMON",
        "EXPOSED AS",
    ]);
    for Seen { tree: b, daemon } in seen {
        let exports: Vec<String> = b.exports.iter().map(export).collect();
        table.add_row([
            b.name.clone(),
            b.handler.clone(),
            b.config.clone(),
            show_size(b.size),
            b.block_size.to_string(),
            b.state.as_str().to_owned(),
            daemon.state.clone(),
            if exports.is_empty() {
                "-".to_owned()
            } else {
                exports.join("\n")
            },
        ]);
    }
    let mut out = io::stdout().lock();
    writeln!(out, "{}", plain(table))?;
    // That nothing can be heard of the daemon needs no reason for each.
    let said = seen.iter().filter(|lun| lun.daemon.since.is_some());
    let notes: Vec<String> = said
        .map(|lun| (&lun.tree.name, &lun.daemon))
        .filter(|(_, daemon)| !daemon.reason.is_empty())
        .map(|(name, daemon)| format!("{name}: {}: {}", daemon.state, daemon.reason))
        .collect();
    if !notes.is_empty() {
        writeln!(out, "\n{}", notes.join("\n"))?;
    }
    Ok(())
}

/// One export in a few words.
fn export(export: &Export) -> String {
    let mut text = export.fabric.clone();
    match export.fabric.as_str() {
        "loopback" => match (&export.block_device, &export.scsi_address) {
            (Some(disk), _) => text += &format!(" {}", disk.display()),
            (None, Some(address)) => text += &format!(" {address}, no disk"),
            (None, None) => text += &format!(" {}", export.target),
        },
        _ => {
            text += &format!(" {}", export.target);
            if !export.portals.is_empty() {
                text += &format!("@{}", export.portals.join(","));
            }
            text += &format!(" lun {}", export.lun);
        }
    }
    text
}

/// Prints everything about one backstore.
pub(crate) fn show(seen: &Seen<&Details>) -> io::Result<()> {
    let Seen {
        tree: details,
        daemon,
    } = seen;
    let b = &details.backstore;
    let mut state = daemon.state.clone();
    if !daemon.reason.is_empty() {
        state += &format!(": {}", daemon.reason);
    }
    let uio = b
        .uio
        .as_ref()
        .map_or("-".to_owned(), |uio| uio.display().to_string());
    let mut table = Table::new();
    for (key, value) in [
        ("name", b.name.clone()),
        ("path", details.path.display().to_string()),
        ("handler", b.handler.clone()),
        ("config", b.config.clone()),
        ("size", format!("{} ({})", b.size, show_size(b.size))),
        ("block size", b.block_size.to_string()),
        (
            "largest transfer",
            format!(
                "{} blocks ({})",
                b.max_sectors,
                show_size(u64::from(b.max_sectors) * u64::from(b.block_size))
            ),
        ),
        ("state", b.state.as_str().to_owned()),
        ("daemon", state),
        ("serial", b.serial.clone()),
        ("uio device", uio),
    ] {
        table.add_row([key.to_owned(), value]);
    }
    for e in &b.exports {
        table.add_row(["exposed as".to_owned(), export(e)]);
        for initiator in &e.initiators {
            table.add_row(["  initiator", initiator]);
        }
    }
    let mut out = io::stdout().lock();
    writeln!(out, "{}", plain(table))?;
    for (title, values) in [
        ("attributes", &details.attributes),
        ("statistics", &details.statistics),
    ] {
        if values.is_empty() {
            continue;
        }
        let mut table = Table::new();
        for (key, value) in values {
            table.add_row([key, value]);
        }
        writeln!(out, "\n{title}\n{}", plain(table))?;
    }
    Ok(())
}
