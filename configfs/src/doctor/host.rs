//! What the daemon needs of the host: io_uring, and room in /run.

use rustix::fs::statvfs;

use super::{Finding, OTHER_KERNEL};
use crate::size::show_size;
use crate::tree::Tree;

/// An in-flight table takes some hundred KiB; below this, a few LUNs more may find no room.
const TIGHT: u64 = 16 << 20;

/// Below this, the next table may find no room.
const FULL: u64 = 2 << 20;

/// The kernel that io_uring can be switched off in. Where the switch is missing since then, so is
/// io_uring.
const SWITCH: (u32, u32) = (6, 6);

impl Tree {
    pub(super) fn examine_host(&self, findings: &mut Vec<Finding>) {
        findings.push(self.examine_io_uring());
        findings.extend(self.examine_run());
    }

    fn examine_io_uring(&self) -> Finding {
        let path = self.roots.proc.join("sys/kernel/io_uring_disabled");
        let finding = |what| Finding::ok("io_uring", "", what);
        let mend = "sysctl -w kernel.io_uring_disabled=0   # and in /etc/sysctl.d";
        match self.read_if_any(&path).as_deref() {
            None if self.kernel_version() >= SWITCH => finding("missing").broken(
                "the kernel was built without it; the daemon does all its I/O through it and cannot \
                 start",
                OTHER_KERNEL,
            ),
            None | Some("0") => finding("enabled"),
            Some("1") => finding("for the privileged only (kernel.io_uring_disabled = 1)").broken(
                "the unit of tcmu-runner has no CAP_SYS_ADMIN, so the daemon cannot start",
                mend,
            ),
            Some(_) => finding("disabled (kernel.io_uring_disabled = 2)").broken(
                "the daemon does all its I/O through it and cannot start",
                mend,
            ),
        }
    }

    /// Room for the in-flight tables.
    fn examine_run(&self) -> Option<Finding> {
        let run = self.roots.state.parent()?;
        let there = statvfs(run).ok()?;
        let room = there.f_bavail.saturating_mul(there.f_frsize);
        // File systems without a fixed number of files say 0 of 0.
        let files = there.f_files == 0 || there.f_favail > 16;
        let path = run.display();
        let finding = Finding::ok("run", "", format!("{} free in {path}", show_size(room)));
        let why = "a LUN that finds no room for its in-flight table there makes its initiators \
                   repeat commands when the daemon is killed";
        let mend = format!("du -xa {path} | sort -n | tail; mount -o remount,size=+256M {path}");
        Some(if room < FULL || !files {
            finding.broken(why, mend)
        } else if room < TIGHT {
            finding.slow(why, mend)
        } else {
            finding
        })
    }
}
