//! A daemon that cannot come back.

use std::fs;
use std::process::Stdio;

use anyhow::{Context as _, ensure};

use super::guest::{Guest, shell};
use super::{CONFIG, UNIT};
use crate::print;

const OFFLINE: &str = "tcmu-runner-offline.service";

pub(super) fn answers_with_errors(guest: &Guest) -> anyhow::Result<()> {
    let disk = guest.disk()?;
    let read = format!("dd if={disk} of=/dev/null bs=4k count=1 iflag=direct");
    let settings = fs::read_to_string(CONFIG)?;
    // With this it goes on, and will not start again.
    fs::write(CONFIG, format!("{settings}\nreactors = none\n"))?;
    guest.sh(&format!(
        "systemctl kill --kill-whom=main --signal KILL {UNIT}"
    ))?;
    print::command(&read);
    let waiting = shell(&read).stderr(Stdio::piped()).spawn()?;
    guest.wait_for(
        "systemd has given it up, and started the other unit",
        |guest| guest.is_active(OFFLINE),
    )?;
    guest.sh(&format!("systemctl is-failed {UNIT}"))?;
    let ended = waiting.wait_with_output().context("cannot wait for dd")?;
    let said = String::from_utf8_lossy(&ended.stderr).into_owned();
    print!("{said}");
    // It may have been served between two starts; it must not have been left waiting.
    ensure!(
        ended.status.success() || said.contains("Input/output error"),
        "dd ended with {}",
        ended.status
    );
    guest.sh(&format!("{read} 2>&1 | grep 'Input/output error'"))?;
    guest.sh("tcmuctl list")?;
    guest.sh(&format!(
        "journalctl --no-pager --unit {OFFLINE} | tail -n 8"
    ))?;

    fs::write(CONFIG, settings)?;
    guest.sh(&format!(
        "systemctl reset-failed {UNIT} && systemctl start {UNIT}"
    ))?;
    guest.sh(&format!("! systemctl is-active {OFFLINE}"))?;
    guest.sh(&read)?;
    guest.sh("tcmuctl list | grep ' activated  serving '")
}
