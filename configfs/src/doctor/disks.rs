//! The disks of this machine that LUNs are: their request queues.

use std::path::Path;

use super::Finding;
use crate::backstore::Place;
use crate::tree::Tree;

/// Schedulers that look long at each request, which a LUN's round trip does not pay for.
const SLOW_SCHEDULERS: [&str; 2] = ["bfq", "kyber"];

/// A largest request below this, in KiB, splits what file systems like to send.
const SMALL_REQUEST: u64 = 1024;

/// Handlers whose LUNs have a volatile cache unless they are read-only; others may have none.
const CACHED: [&str; 2] = ["file", "qcow"];

impl Tree {
    pub(super) fn examine_disk(
        &self,
        place: &Place,
        handler: &str,
        disk: &Path,
        findings: &mut Vec<Finding>,
    ) {
        let Some(name) = disk.file_name() else { return };
        let folder = self.roots.sysfs.join("class/block").join(name);
        let queue = folder.join("queue");
        let read = |file: &str| self.read_if_any(&queue.join(file));
        let subject = format!("{} ({})", place.name, disk.display());
        let finding = |check, what: String| Finding::ok(check, &subject, what);

        let schedulers = read("scheduler").unwrap_or_default();
        let chosen = schedulers
            .split(['[', ']'])
            .nth(1)
            .filter(|chosen| SLOW_SCHEDULERS.contains(chosen));
        if let Some(chosen) = chosen {
            findings.push(finding("scheduler", format!("its scheduler is {chosen}")).slow(
                "it costs more CPU for each request than it saves: the daemon and what it stores on \
                 order requests themselves",
                format!("echo none > {}", queue.join("scheduler").display()),
            ));
        }

        let number = |file: &str| read(file).and_then(|text| text.parse::<u64>().ok());
        if let (Some(is), Some(most)) = (number("max_sectors_kb"), number("max_hw_sectors_kb"))
            && is < SMALL_REQUEST
            && is < most
        {
            let what = format!("its largest request is {is} KiB of {most} KiB");
            findings.push(finding("max_sectors_kb", what).slow(
                "larger I/O is split into many commands, each of which is a round trip to the daemon",
                format!("echo {most} > {}", queue.join("max_sectors_kb").display()),
            ));
        }

        let emulated = self.read_if_any(&place.path.join("attrib/emulate_write_cache"));
        let has_cache = CACHED.contains(&handler)
            && emulated.as_deref() == Some("1")
            && self.read_if_any(&folder.join("ro")).as_deref() != Some("1");
        if has_cache && read("write_cache").as_deref() == Some("write through") {
            let what = "it believes that the LUN has no write cache".to_owned();
            let rescan = folder.join("device/rescan");
            findings.push(finding("write_cache", what).broken(
                "this machine does not flush it: what was written last is lost when the daemon's \
                 machine loses its power",
                format!("echo 1 > {}", rescan.display()),
            ));
        }
    }
}
