//! Why the daemon could not be asked, in sentences that say what to do about it.

use std::io;

use tcmu_configfs::{Roots, find_daemon};

/// Why a command did not do what it should.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// There is no bus.
    #[error(
        "the system bus cannot be reached: {0}. tcmu-runner is asked over D-Bus: start the bus, for \
         example with `systemctl start dbus`"
    )]
    NoBus(String),

    /// Nobody answers.
    #[error("no tcmu-runner answers on the system bus: {0}")]
    NoDaemon(&'static str),

    /// We may not ask.
    #[error("must be run as root: {0}")]
    NotRoot(String),

    /// The one that answers does not know the question.
    #[error(
        "the tcmu-runner that answers does not know this request ({0}): it is the C tcmu-runner, or \
         an older one than this tcmuctl"
    )]
    TooOld(String),

    /// It has refused.
    #[error("{0}")]
    Refused(String),

    /// The command line asks for what is not there.
    #[error("{0}")]
    Usage(String),

    /// The bus has failed, or the daemon has gone meanwhile.
    #[error("tcmu-runner could not be asked: {0}")]
    Bus(String),

    /// A command that was run has ended with this exit status.
    #[error("the command ended with exit status {0}")]
    Command(u8),

    #[error(transparent)]
    Io(#[from] io::Error),
}

impl From<zbus::Error> for Error {
    fn from(error: zbus::Error) -> Self {
        use zbus::fdo::Error as Fdo;
        let zbus::Error::FDO(fdo) = error else {
            return Self::Bus(error.to_string());
        };
        match *fdo {
            Fdo::ServiceUnknown(_) | Fdo::NameHasNoOwner(_) => Self::NoDaemon(why_silent()),
            Fdo::AccessDenied(why) => Self::NotRoot(why),
            Fdo::UnknownMethod(why) | Fdo::UnknownInterface(why) | Fdo::UnknownObject(why) => {
                Self::TooOld(why)
            }
            Fdo::InvalidArgs(why) | Fdo::Failed(why) => Self::Refused(why),
            other => Self::Bus(other.to_string()),
        }
    }
}

/// Why there is none on the bus.
fn why_silent() -> &'static str {
    if find_daemon(&Roots::system()).is_none() {
        "it is not running. Start it, for example with `systemctl start tcmu-runner`"
    } else {
        "a TCMU daemon runs without D-Bus. One that was started with --no-dbus cannot be asked \
         anything; one that has just started may need a moment"
    }
}
