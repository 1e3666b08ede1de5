//! Which LUNs a copy may reach from which.

use std::fmt::Debug;
use std::path::Path;

/// Says whether a copy may go from one LUN to another.
///
/// TCMU does not say which initiator sent a command, so the answer has to be right for whoever can
/// send one to the LUN at hand. The C tcmu-runner once asked nothing here, and any initiator could
/// read and write every LUN of the machine (CVE-2020-28374, CVE-2021-3139).
pub trait Access: Debug + Send + Sync + 'static {
    /// Whether everybody who can send commands to `own` may also read `other` or, `for_writing`,
    /// write to it. Both are what the LUNs were attached as: their folders in configfs. May block.
    fn allows(&self, own: &Path, other: &Path, for_writing: bool) -> bool;
}
