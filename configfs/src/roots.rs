//! Where the kernel's trees are: on this machine, or under a folder that stands in for it.

use std::path::{Path, PathBuf};

/// The places this crate reads and writes.
///
/// [`Roots::system`] is this machine. [`Roots::under`] prefixes every path with a folder, so that
/// tests run without root on a tree of plain folders. What such a tree cannot show: that the
/// kernel makes attribute files on mkdir, refuses or waits in a write, and keeps a folder from
/// being removed while it is in use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Roots {
    pub(crate) configfs: PathBuf,
    pub(crate) sysfs: PathBuf,
    pub(crate) proc: PathBuf,
    pub(crate) dev: PathBuf,
    pub(crate) state: PathBuf,
    pub(crate) pid_file: PathBuf,
    pub(crate) handlers_file: PathBuf,
    pub(crate) refusals_file: PathBuf,
    pub(crate) machine_id: PathBuf,
    pub(crate) modules: PathBuf,
    pub(crate) boot: PathBuf,
    pub(crate) bus_policies: [PathBuf; 2],
    system: bool,
}

impl Roots {
    /// This machine's own trees.
    pub fn system() -> Self {
        Roots {
            system: true,
            ..Self::under("/")
        }
    }

    /// The same layout below `folder`: `folder/sys/kernel/config`, `folder/proc` and so on.
    pub fn under(folder: impl AsRef<Path>) -> Self {
        let folder = folder.as_ref();
        Roots {
            configfs: folder.join("sys/kernel/config"),
            sysfs: folder.join("sys"),
            proc: folder.join("proc"),
            dev: folder.join("dev"),
            state: folder.join("run/tcmuctl"),
            pid_file: folder.join(crate::daemon::PID_FILE.trim_start_matches('/')),
            handlers_file: folder.join(crate::daemon::HANDLERS_FILE.trim_start_matches('/')),
            refusals_file: folder.join(crate::refusal::FILE.trim_start_matches('/')),
            machine_id: folder.join("etc/machine-id"),
            modules: folder.join("lib/modules"),
            boot: folder.join("boot"),
            bus_policies: crate::doctor::policies(folder),
            system: false,
        }
    }

    /// Whether these are the machine's own trees, so that mounting, loading modules and asking
    /// for root make sense.
    pub fn is_system(&self) -> bool {
        self.system
    }

    /// `target/core`, the home of backstores.
    pub(crate) fn core(&self) -> PathBuf {
        self.configfs.join("target/core")
    }

    /// `target/<fabric>`.
    pub(crate) fn fabric(&self, fabric: &str) -> PathBuf {
        self.configfs.join("target").join(fabric)
    }

    /// target_core_user's module parameter of this name.
    pub(crate) fn tcmu_parameter(&self, name: &str) -> PathBuf {
        self.sysfs
            .join("module/target_core_user/parameters")
            .join(name)
    }
}
