//! The daemon: whether one runs, whether it is ours, what earlier ones have left.

use std::fs;

use super::Finding;
use crate::daemon::{self, PROCESS_NAME};
use crate::error::Result;
use crate::tree::Tree;

const START: &str = "systemctl start tcmu-runner";

/// Below so many open files, some hundred LUNs are too many.
const FEW_FILES: u64 = 1024;

impl Tree {
    pub(super) fn examine_daemon(&self, findings: &mut Vec<Finding>) -> Result<()> {
        let ours = self.our_daemon();
        findings.push(self.examine_presence(ours));
        findings.extend(self.examine_others(ours));
        if let Some(pid) = ours {
            findings.extend(self.examine_limits(pid));
        }
        self.examine_bus(ours, findings);
        self.examine_remains(ours, findings)
    }

    /// The process id of the daemon that holds the lock.
    fn our_daemon(&self) -> Option<u32> {
        if !daemon::pid_file_is_locked(&self.roots) {
            return None;
        }
        self.read_if_any(&self.roots.pid_file)?.trim().parse().ok()
    }

    fn examine_presence(&self, ours: Option<u32>) -> Finding {
        let finding = |what: String| Finding::ok("daemon", "", what);
        if let Some(pid) = ours {
            return finding(format!("tcmu-runner runs, as process {pid}"));
        }
        match daemon::find(&self.roots) {
            None => finding("none runs".to_owned()).broken(
                "nobody answers for LUNs: their commands wait, and new ones cannot be created",
                START,
            ),
            Some(sign) => finding(format!("another one than this tcmu-runner runs ({sign})"))
                .broken(
                    "it is the C tcmu-runner, or has another pid file: while it runs, this one does \
                     not serve its LUNs",
                    format!("systemctl stop tcmu-runner; {START}"),
                ),
        }
    }

    /// Other processes that answer the kernel as well.
    fn examine_others(&self, ours: Option<u32>) -> Option<Finding> {
        let others: Vec<u32> = daemon::processes_named(&self.roots.proc, PROCESS_NAME)
            .into_iter()
            .filter(|pid| Some(*pid) != ours)
            .collect();
        let listeners = daemon::listeners(&self.roots);
        if ours.is_none() || (others.is_empty() && listeners < 2) {
            return None;
        }
        let found = if others.is_empty() {
            format!("{listeners} sockets hear TCMU's events")
        } else {
            format!("processes of the same name: {others:?}")
        };
        let finding = Finding::ok("other daemons", "", found);
        Some(finding.slow(
            "the kernel takes the first answer to each of its questions: a daemon that answers for \
             LUNs that are not its own lets their creation fail, or succeed unserved. A daemon with \
             handlers of its own may well be meant",
            "ps -o pid,args -C tcmu-runner",
        ))
    }

    fn examine_limits(&self, pid: u32) -> Option<Finding> {
        let limits = self.read_if_any(&self.roots.proc.join(format!("{pid}/limits")))?;
        let line = limits
            .lines()
            .find_map(|line| line.strip_prefix("Max open files"))?;
        let soft = line.split_whitespace().next()?;
        let finding = Finding::ok("limits", "", format!("the daemon may open {soft} files"));
        let few = soft.parse::<u64>().is_ok_and(|files| files < FEW_FILES);
        Some(if few {
            finding.slow(
                "each LUN takes some; images beyond the limit cannot be opened",
                format!("prlimit --pid {pid} --nofile=65536"),
            )
        } else {
            finding
        })
    }

    /// What daemons that died have left.
    fn examine_remains(&self, ours: Option<u32>, findings: &mut Vec<Finding>) -> Result<()> {
        let pid_file = &self.roots.pid_file;
        if ours.is_none()
            && let Some(pid) = self.read_if_any(pid_file)
        {
            let what = format!("the pid file names process {}, which is gone", pid.trim());
            findings.push(Finding::ok("pid file", "", what).slow(
                "the daemon did not end by itself; its in-flight tables wait for the next one",
                format!("journalctl -u tcmu-runner -n 50; {START}"),
            ));
        }
        let tables = pid_file.with_file_name("in-flight");
        let known: Vec<String> = self
            .places()?
            .iter()
            .map(|place| format!("{}.{}", place.hba, place.name))
            .collect();
        for table in self.names(&tables)? {
            let path = tables.join(&table);
            if !known.contains(&table) && fs::metadata(&path).is_ok_and(|meta| meta.is_file()) {
                findings.push(
                    Finding::ok("in-flight table", &table, "there is no such LUN").slow(
                        "it takes room in /run, and is of no use to anybody",
                        format!("rm {}", path.display()),
                    ),
                );
            }
        }
        Ok(())
    }
}
