//! What the host tells the guest's pid 1, and what comes back: two JSON files in the control
//! share, so that both sides are read and written by the same types.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// Environment variable (from the kernel's command line) that says where the control share is.
pub(crate) const CONTROL_VAR: &str = "TCMU_RIG_CONTROL";
/// Environment variable (from the kernel's command line) with the shares' file system type.
pub(crate) const SHARE_TYPE_VAR: &str = "TCMU_RIG_SHARE_TYPE";

/// The order, in the control share.
pub(crate) const ORDER_FILE: &str = "order.json";
/// The report, in the control share.
pub(crate) const REPORT_FILE: &str = "report.json";

/// What the guest's pid 1 is to do.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Order {
    pub program: PathBuf,
    pub args: Vec<String>,
    pub env: Vec<(String, String)>,
    pub cwd: PathBuf,
    /// The guest powers itself off after this many seconds.
    pub timeout_s: u64,
    /// The terminal that carries the program's output.
    pub output_tty: PathBuf,
    /// A folder that holds `<release>/` with the kernel's modules.
    pub modules_dir: Option<PathBuf>,
    /// Modules to load, where the kernel has them as modules.
    pub modules: Vec<String>,
    /// The host's folder with a Debian tree that is booted with its own systemd, instead of the host's
    /// tree without.
    pub systemd_root: Option<PathBuf>,
    /// Host folders that the guest may write to, mounted at the path that they have on the host.
    pub shares: Vec<Share>,
}

/// One writable host folder.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Share {
    /// What `mount` takes: a host path (hostfs) or a mount tag (9p).
    pub source: String,
    /// Where it appears in the guest.
    pub path: PathBuf,
}

/// How the program ended, as the guest's pid 1 saw it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Report {
    pub kernel_release: String,
    pub end: ReportedEnd,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) enum ReportedEnd {
    Exited(i32),
    Signaled(i32),
    TimedOut,
    /// The program never ran: the guest could not be set up.
    SetupFailed(String),
}
