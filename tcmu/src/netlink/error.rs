//! Why the kernel cannot be heard or answered.

use std::io;

use rustix::io::Errno;

/// Why listening to the kernel, or answering it, failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NetlinkError {
    /// The kernel does not know the family `TCM-USER`.
    #[error("the kernel module target_core_user is not loaded: run \"modprobe target_core_user\"")]
    NotLoaded,
    /// The kernel takes requests for `TCM-USER` only from CAP_NET_ADMIN.
    #[error("cannot {action}: this needs CAP_NET_ADMIN, so run as root")]
    NotPermitted {
        /// What was tried.
        action: &'static str,
    },
    /// A system call failed, or the kernel refused a request.
    #[error("cannot {action}: {source}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// Why it failed.
        source: io::Error,
    },
    /// A message is not as documented in include/uapi/linux/target_core_user.h.
    #[error("malformed netlink message: {0}")]
    Malformed(String),
}

/// Turns the error of an action into the one that says what to do.
pub(super) fn failed(action: &'static str) -> impl FnOnce(io::Error) -> NetlinkError {
    move |source| match source.raw_os_error().map(Errno::from_raw_os_error) {
        Some(Errno::PERM | Errno::ACCESS) => NetlinkError::NotPermitted { action },
        _ => NetlinkError::Io { action, source },
    }
}
