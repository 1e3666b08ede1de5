//! What can go wrong, in sentences that say what to do about it.

use std::fmt;
use std::io;
use std::path::PathBuf;

use crate::daemon;

/// Why an operation on LIO's tree failed.
///
/// The text of each variant is meant for the person at the terminal: it names the object, the
/// kernel's or the daemon's verdict, and the next step.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The request itself is malformed: nothing was tried.
    #[error("{0}")]
    Invalid(String),

    /// The caller lacks the privilege to change the tree.
    #[error("must be run as root: LIO's tree under {0} cannot be changed by this user")]
    NotRoot(String),

    /// The kernel has no such module, built in or loadable.
    #[error(
        "the kernel module {module} is missing: {detail}. Load it with `modprobe {module}`; on \
         some distributions it lies in a package of its own (for example linux-modules-extra)"
    )]
    NoModule {
        /// The module's name, as modprobe takes it.
        module: &'static str,
        /// What modprobe or the kernel said.
        detail: String,
    },

    /// configfs is not mounted and could not be.
    #[error("configfs is not mounted at {path} and mounting it failed: {source}")]
    NoConfigfs {
        /// Where it belongs.
        path: String,
        /// What mount(2) said.
        source: io::Error,
    },

    /// No TCMU daemon listens, so nobody would serve the LUN.
    #[error(
        "no TCMU daemon is running, so nobody would answer for the LUN. Start one first, for \
         example with `systemctl start tcmu-runner`"
    )]
    NoDaemon,

    /// The daemon that listens has no such handler.
    #[error("the running tcmu-runner has no handler {handler:?}; it has {known}")]
    NoHandler {
        /// The subtype asked for.
        handler: String,
        /// The subtypes that there are.
        known: String,
    },

    /// A backstore of this name exists.
    #[error(
        "a backstore named {name} exists already (user_{hba}); choose another name or delete it first"
    )]
    Exists {
        /// The name asked for.
        name: String,
        /// The HBA that holds the existing one.
        hba: u32,
    },

    /// There is no backstore of this name.
    #[error("there is no backstore named {0}; `tcmuctl list` shows those that exist")]
    NotFound(String),

    /// Several HBAs hold a backstore of this name.
    #[error("several HBAs have a backstore named {name} ({}): say which with --hba", Hbas(.hbas))]
    Ambiguous {
        /// The name asked for.
        name: String,
        /// The HBAs that hold one.
        hbas: Vec<u32>,
    },

    /// The LUN is in use.
    #[error("{name} is in use: {}", .users.join("; "))]
    InUse {
        /// The backstore.
        name: String,
        /// Who uses it, one phrase each.
        users: Vec<String>,
    },

    /// The daemon, or the kernel on its behalf, refused.
    #[error("{what} was refused: {meaning}. {}", Said(.reason))]
    Refused {
        /// What was asked for.
        what: String,
        /// The verdict in words.
        meaning: String,
        /// Why, as the daemon has noted it; the C implementation notes nothing.
        reason: Option<String>,
        /// The verdict as the kernel returned it.
        source: io::Error,
    },

    /// Another process blocks TCMU's netlink interface.
    #[error(
        "the kernel keeps answering \"try again\" after {seconds} s: another process blocks TCMU's \
         netlink interface, as a daemon does while it starts. If none is starting, unblock it with \
         `echo 0 > {parameter}`"
    )]
    Blocked {
        /// How long we tried.
        seconds: u64,
        /// The module parameter that holds the block.
        parameter: String,
    },

    /// The kernel did not come back in time.
    #[error("{what} took longer than {seconds} s: {note}")]
    TimedOut {
        /// What we waited for.
        what: String,
        /// The limit.
        seconds: u64,
        /// What that means and what was done about it.
        note: String,
    },

    /// The disk did not show up after its LUN was linked.
    #[error(
        "the kernel attached no disk at SCSI address {address}: the daemon does not answer the \
         LUN's first commands, or answers them with errors. {} and `dmesg` may say more",
        daemon::LOG_HINT
    )]
    NoDisk {
        /// host:channel:target:lun
        address: String,
    },

    /// A saved configuration cannot be read or written.
    #[error("{}: {why}", .path.display())]
    SavedFile {
        /// The file.
        path: PathBuf,
        /// What is the matter with it.
        why: String,
    },

    /// A signal asked us to stop.
    #[error("interrupted")]
    Interrupted,

    /// One change of, or look into, the kernel's tree failed.
    #[error("cannot {what}: {source}{}", Hint(.source))]
    Kernel {
        /// What was tried, with its path.
        what: String,
        /// The system's answer.
        source: io::Error,
    },

    /// An operation failed, and some of its steps could not be undone.
    #[error("{error}\nthese steps could not be undone: {}", .leftovers.join("; "))]
    Leftovers {
        /// Why the operation failed.
        error: Box<Error>,
        /// What is left, one phrase each.
        leftovers: Vec<String>,
    },
}

impl Error {
    /// Whether the request itself was wrong, rather than its execution.
    pub fn is_usage(&self) -> bool {
        match self {
            Error::Invalid(_) => true,
            Error::Leftovers { error, .. } => error.is_usage(),
            _ => false,
        }
    }

    pub(crate) fn kernel(what: impl Into<String>, source: io::Error) -> Self {
        Error::Kernel {
            what: what.into(),
            source,
        }
    }

    /// The errno behind this error, where there is one.
    pub fn errno(&self) -> Option<i32> {
        match self {
            Error::Kernel { source, .. }
            | Error::Refused { source, .. }
            | Error::NoConfigfs { source, .. } => source.raw_os_error(),
            Error::Leftovers { error, .. } => error.errno(),
            _ => None,
        }
    }
}

/// Shorthand for this crate's results.
pub type Result<T> = std::result::Result<T, Error>;

struct Hbas<'a>(&'a [u32]);

impl fmt::Display for Hbas<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, hba) in self.0.iter().enumerate() {
            write!(f, "{}user_{hba}", if i == 0 { "" } else { ", " })?;
        }
        Ok(())
    }
}

/// What the daemon says, or where to look.
struct Said<'a>(&'a Option<String>);

impl fmt::Display for Said<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(reason) => write!(f, "tcmu-runner says: {reason}"),
            None => write!(f, "{} may say more", daemon::LOG_HINT),
        }
    }
}

/// The next step, for the system errors whose own text leaves people puzzled.
struct Hint<'a>(&'a io::Error);

impl fmt::Display for Hint<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.kind() {
            io::ErrorKind::PermissionDenied if !rustix::process::geteuid().is_root() => {
                f.write_str(" (this needs root)")
            }
            io::ErrorKind::AddrInUse => f.write_str(
                " (another program listens on this address and port: choose another --portal)",
            ),
            io::ErrorKind::AddrNotAvailable => {
                f.write_str(" (no network interface of this machine has this address)")
            }
            _ => Ok(()),
        }
    }
}
