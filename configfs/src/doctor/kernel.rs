//! The kernel: its version, its modules, configfs, and the parameters of target_core_user.

use std::path::Path;

use super::Finding;
use crate::tree::Tree;

/// The oldest kernel that the daemon is made for: before it, io_uring has no deferred task work.
const OLDEST: (u32, u32) = (6, 1);

/// Fabrics with their modules, and what is impossible without them.
const FABRICS: [(&str, &str, &str); 2] = [
    (
        "loopback",
        "tcm_loop",
        "LUNs cannot be disks of this machine",
    ),
    (
        "iscsi",
        "iscsi_target_mod",
        "LUNs cannot be exported over iSCSI",
    ),
];

/// Whether a module is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Module {
    Loaded,
    /// modprobe would find it.
    Installed,
    Missing,
}

impl Tree {
    pub(super) fn examine_kernel(&self, findings: &mut Vec<Finding>) {
        findings.push(self.examine_version());
        self.examine_options(&self.kernel_release(), findings);
        let tcmu = self.module("target_core_user", &self.roots.tcmu_parameter(""));
        let finding = |what| Finding::ok("module", "target_core_user", what);
        findings.push(match tcmu {
            Module::Loaded => finding("loaded"),
            Module::Installed => finding("installed; it is loaded when it is needed"),
            Module::Missing => finding("missing").broken(
                "without it there is no TCMU",
                "modprobe target_core_user || apt install linux-image-amd64   # not a cloud kernel",
            ),
        });
        let mut exports = false;
        for (fabric, module, impossible) in FABRICS {
            let there = self.module(module, &self.roots.fabric(fabric));
            exports |= there != Module::Missing;
            findings.push(match there {
                Module::Loaded => Finding::ok("module", module, "loaded"),
                Module::Installed => Finding::ok(
                    "module",
                    module,
                    "installed; it is loaded when it is needed",
                ),
                Module::Missing => Finding::ok("module", module, format!("missing: {impossible}")),
            });
        }
        if !exports {
            let none = Finding::ok("fabrics", "", "neither loopback nor iSCSI is there");
            findings.push(none.broken(
                "nothing can use the LUNs",
                "modprobe tcm_loop; modprobe iscsi_target_mod",
            ));
        }
        findings.push(self.examine_configfs());
        if tcmu == Module::Loaded {
            findings.push(self.examine_netlink());
        }
    }

    fn examine_version(&self) -> Finding {
        let release = self.kernel_release();
        let finding = Finding::ok("kernel", "", format!("Linux {release}"));
        if self.kernel_version() < OLDEST {
            return finding.broken(
                format!("tcmu-runner needs Linux {}.{} or later", OLDEST.0, OLDEST.1),
                "apt install linux-image-amd64   # of a newer release, then reboot",
            );
        }
        finding
    }

    /// The first two numbers of the kernel's release; zeroes if it is not known.
    pub(super) fn kernel_version(&self) -> (u32, u32) {
        let release = self.kernel_release();
        let mut numbers = release.split(|c: char| !c.is_ascii_digit());
        let mut number = || numbers.next().and_then(|text| text.parse::<u32>().ok());
        (number().unwrap_or(0), number().unwrap_or(0))
    }

    fn kernel_release(&self) -> String {
        let path = self.roots.proc.join("sys/kernel/osrelease");
        self.read_if_any(&path).unwrap_or_default()
    }

    /// Whether a module is there; `trace` exists when it is.
    fn module(&self, name: &str, trace: &Path) -> Module {
        if trace.is_dir() || self.roots.sysfs.join("module").join(name).is_dir() {
            return Module::Loaded;
        }
        let folder = self.roots.modules.join(self.kernel_release());
        let listed = |file: &str, end: &str| {
            let list = self.read_if_any(&folder.join(file)).unwrap_or_default();
            list.lines().any(|line| {
                let path = line.split(':').next().unwrap_or(line);
                let file = path.rsplit('/').next().unwrap_or(path);
                file.strip_prefix(name)
                    .is_some_and(|rest| rest.starts_with(end))
            })
        };
        if listed("modules.builtin", ".ko") {
            Module::Loaded
        } else if listed("modules.dep", ".ko") {
            Module::Installed
        } else {
            Module::Missing
        }
    }

    fn examine_configfs(&self) -> Finding {
        let path = self.roots.configfs.display();
        if self.roots.configfs.join("target").is_dir() || self.is_configfs(&self.roots.configfs) {
            return Finding::ok("configfs", "", format!("mounted at {path}"));
        }
        Finding::ok("configfs", "", format!("not mounted at {path}")).broken(
            "LIO is set up through it, and the daemon reads it",
            format!("mount -t configfs configfs {path}"),
        )
    }

    fn examine_netlink(&self) -> Finding {
        let parameter = self.roots.tcmu_parameter("block_netlink");
        let finding = |what| Finding::ok("netlink", "", what);
        if self.read_if_any(&parameter).as_deref() != Some("blocked") {
            return finding("not blocked");
        }
        finding("blocked").broken(
            "creating, resizing and deleting LUNs fails with \"try again\". A daemon blocks it for \
             a moment while it starts; one that died then leaves it blocked",
            format!("echo 0 > {}", parameter.display()),
        )
    }
}
