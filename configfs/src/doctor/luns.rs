//! Each LUN: its settings, and whether somebody serves it.

use std::path::{Path, PathBuf};

use super::Finding;
use crate::backstore::{Backstore, Place, State};
use crate::daemon;
use crate::error::Result;
use crate::size::show_size;
use crate::spec::DEFAULT_TRANSFER;
use crate::tree::Tree;

/// A largest transfer below this, in bytes, splits what initiators like to send.
const SMALL_TRANSFER: u64 = 1 << 20;

/// So many of the largest commands should find room in the data area.
const COMMANDS: u64 = 8;

impl Tree {
    pub(super) fn examine_luns(&self, findings: &mut Vec<Finding>) -> Result<()> {
        let places = self.places()?;
        let mut areas = 0;
        for place in &places {
            let described = self.summary(place)?;
            let before = findings.len();
            areas += self.number(place, "max_data_area_mb").unwrap_or(0);
            self.examine_settings(place, &described, findings);
            findings.extend(self.examine_service(place, &described));
            for export in &described.exports {
                if let Some(disk) = &export.block_device {
                    self.examine_disk(place, &described.handler, disk, findings);
                }
            }
            if findings.len() == before {
                let size = show_size(described.size);
                let what = format!("{}/{}, {size}", described.handler, described.config);
                findings.push(Finding::ok("lun", &place.name, what));
            }
        }
        findings.extend(self.examine_sum(areas));
        Ok(())
    }

    fn number(&self, place: &Place, name: &str) -> Option<i64> {
        let text = self.read_if_any(&place.path.join("attrib").join(name))?;
        text.parse().ok()
    }

    fn examine_settings(&self, place: &Place, lun: &Backstore, findings: &mut Vec<Finding>) {
        let name = &place.name;
        let attrib = |file: &str| place.path.join("attrib").join(file);
        let transfer = u64::from(lun.max_sectors) * u64::from(lun.block_size);
        if transfer < SMALL_TRANSFER {
            let what = format!("the largest transfer is {}", show_size(transfer));
            let blocks = DEFAULT_TRANSFER / lun.block_size.max(1);
            findings.push(Finding::ok("hw_max_sectors", name, what).slow(
                "larger I/O is split into many commands, each of which is a round trip to the \
                 daemon. It can be set while the LUN is created only",
                format!(
                    "tcmuctl save; sed -i 's/\"max_sectors\": {}/\"max_sectors\": {blocks}/' {}; \
                     tcmuctl delete {name}; tcmuctl restore",
                    lun.max_sectors,
                    crate::saved::DEFAULT_FILE
                ),
            ));
        }
        if let Some(area) = self.number(place, "max_data_area_mb")
            && let Ok(area) = u64::try_from(area)
            && (area << 20) < transfer.saturating_mul(COMMANDS)
        {
            let what = format!("the data area takes {area} MiB");
            findings.push(Finding::ok("max_data_area_mb", name, what).slow(
                format!(
                    "fewer than {COMMANDS} of its largest commands ({}) find room at once; others \
                     wait",
                    show_size(transfer)
                ),
                format!("tcmuctl delete {name}; tcmuctl create {name} --data-area-mb 256 ..."),
            ));
        }
        if let Some(seconds) = self.number(place, "cmd_time_out")
            && seconds > 0
        {
            let what = format!("the kernel fails commands after {seconds} s");
            findings.push(Finding::ok("cmd_time_out", name, what).slow(
                "the initiator may be told that a write failed which the daemon then still makes, \
                 on top of newer data; a restart of the daemon that takes longer is seen",
                format!(
                    "echo 0 > {}   # while it is not exposed",
                    attrib("cmd_time_out").display()
                ),
            ));
        }
        if self.number(place, "qfull_time_out") == Some(0) {
            let what = "a full ring is answered with TASK SET FULL at once";
            findings.push(Finding::ok("qfull_time_out", name, what).slow(
                "initiators slow down, or fail the command, where it could wait a moment",
                format!(
                    "echo -1 > {}   # while it is not exposed",
                    attrib("qfull_time_out").display()
                ),
            ));
        }
        if self.number(place, "emulate_write_cache") == Some(0) {
            let what = "the write cache is off";
            findings.push(Finding::ok("emulate_write_cache", name, what).slow(
                "every write is made durable before it completes, which most storage does slowly; \
                 with it on, initiators flush where they have to, as with every disk",
                format!("echo 1 > {}", attrib("emulate_write_cache").display()),
            ));
        }
        let block = place.path.join("action/block_dev");
        if self.read_if_any(&block).as_deref() == Some("blocked") {
            findings.push(
                Finding::ok("block_dev", name, "the device is blocked").broken(
                    "every command is answered with BUSY",
                    format!("echo 0 > {}", block.display()),
                ),
            );
        }
    }

    /// Whether somebody serves a LUN.
    fn examine_service(&self, place: &Place, lun: &Backstore) -> Option<Finding> {
        let finding = |what: &str| Finding::ok("service", &place.name, what);
        if lun.state == State::Disabled {
            return Some(finding("it is not enabled").broken(
                "its creation goes on, or has failed: nobody can use it",
                format!("tcmuctl delete {}", place.name),
            ));
        }
        let uio: &PathBuf = lun.uio.as_ref()?;
        if !uio.exists() || self.is_open(uio) {
            return None;
        }
        let known = daemon::handlers_without(&self.roots, &lun.handler);
        Some(match known {
            Some(known) => finding("nobody serves it").broken(
                format!(
                    "the running tcmu-runner has no handler {:?}, only {}",
                    lun.handler,
                    known.join(", ")
                ),
                "journalctl -u tcmu-runner -n 50",
            ),
            None => finding("nobody serves it").broken(
                "its commands wait: no daemon runs, or it could not open the image",
                "journalctl -u tcmu-runner -n 50; systemctl restart tcmu-runner",
            ),
        })
    }

    /// Whether a process has a file open.
    fn is_open(&self, path: &Path) -> bool {
        !self
            .openers_of(&[(path.to_owned(), PathBuf::new())])
            .is_empty()
    }

    /// All data areas together.
    fn examine_sum(&self, areas: i64) -> Option<Finding> {
        let parameter = self.roots.tcmu_parameter("global_max_data_area_mb");
        let limit: i64 = self.read_if_any(&parameter)?.parse().ok()?;
        let what = format!("all LUNs together may take {areas} MiB of {limit} MiB");
        let finding = Finding::ok("global_max_data_area_mb", "", what);
        Some(if areas > limit {
            finding.slow(
                "when all are busy, the kernel takes memory from one LUN's data area to give it to \
                 another's, and commands wait for it",
                format!("echo {areas} > {}", parameter.display()),
            )
        } else {
            finding
        })
    }
}
