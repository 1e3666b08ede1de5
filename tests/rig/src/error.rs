use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;

/// Why the rig could not run a guest.
///
/// A guest that did boot and then failed is not an `Error`: see [`End`](crate::End).
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// An operation of the host's operating system failed.
    #[error("{what}")]
    Io {
        /// What was being done, with the path or program concerned.
        what: String,
        /// The operating system's answer.
        source: io::Error,
    },

    /// Something the rig needs is not on this machine.
    #[error("{what} is missing: {advice}")]
    Missing {
        /// What is missing.
        what: String,
        /// What to do about it.
        advice: String,
    },

    /// The executable that starts guests never called [`enter`](crate::enter), so that it could
    /// not act as the guest's pid 1.
    #[error("call tcmu_rig::enter() first thing in main(): this executable is the guest's pid 1")]
    NotEntered,

    /// The value of an option or environment variable is not understood.
    #[error("{0}")]
    Usage(String),

    /// A helper program on the host failed.
    #[error("`{command}` failed ({status}){}", if .log.is_empty() { String::new() } else { format!(":\n{}", .log) })]
    Command {
        /// The command line.
        command: String,
        /// How it ended.
        status: ExitStatus,
        /// The last lines that it printed, if they were captured.
        log: String,
    },
}

impl Error {
    pub(crate) fn missing(what: impl Into<String>, advice: impl Into<String>) -> Self {
        Error::Missing {
            what: what.into(),
            advice: advice.into(),
        }
    }
}

/// Adds to an [`io::Error`] what was being done.
pub(crate) trait Context<T> {
    fn context(self, what: impl FnOnce() -> String) -> Result<T, Error>;

    fn path_context(self, verb: &str, path: &Path) -> Result<T, Error>
    where
        Self: Sized,
    {
        let path: PathBuf = path.into();
        self.context(|| format!("cannot {verb} {}", path.display()))
    }
}

impl<T, E: Into<io::Error>> Context<T> for Result<T, E> {
    fn context(self, what: impl FnOnce() -> String) -> Result<T, Error> {
        self.map_err(|e| Error::Io {
            what: what(),
            source: e.into(),
        })
    }
}
