//! What the kernel was built without.

use super::{Finding, OTHER_KERNEL, Severity};
use crate::tree::Tree;

/// Options of the kernel's build, and what is impossible, or not in force, without them. An option can be
/// a module where that is enough.
const OPTIONS: [(&str, Severity, &str); 5] = [
    (
        "CONFIG_UIO",
        Severity::Broken,
        "LUNs reach the daemon through it: there is no TCMU",
    ),
    (
        "CONFIG_INOTIFY_USER",
        Severity::Slow,
        "the daemon reads changed settings on `systemctl reload tcmu-runner` only",
    ),
    (
        "CONFIG_SECCOMP_FILTER",
        Severity::Slow,
        "the unit's filter of system calls is not in force",
    ),
    (
        "CONFIG_CGROUP_BPF",
        Severity::Slow,
        "the unit's list of devices is not in force: the daemon may open all",
    ),
    (
        "CONFIG_CRYPTO_MD5",
        Severity::Slow,
        "nobody can log in to an iSCSI target that asks for a password (CHAP)",
    ),
];

impl Tree {
    /// Looks where distributions keep the kernel's configuration. Where there is none, nothing is said.
    pub(super) fn examine_options(&self, release: &str, findings: &mut Vec<Finding>) {
        let places = [
            self.roots.boot.join(format!("config-{release}")),
            self.roots.modules.join(release).join("config"),
        ];
        let Some(config) = places.iter().find_map(|path| self.read_if_any(path)) else {
            return;
        };
        for (option, severity, why) in OPTIONS {
            let is_on = |line: &str| {
                let value = line.strip_prefix(option);
                matches!(value, Some("=y" | "=m"))
            };
            if !config.lines().any(is_on) {
                let finding =
                    Finding::ok("kernel option", option, "the kernel was built without it");
                findings.push(finding.bad(severity, why, OTHER_KERNEL));
            }
        }
    }
}
