//! What Ceph's error numbers mean to people.

use std::io;

use libc::{EACCES, EBUSY, EINVAL, ENOENT, EPERM, EROFS, ESHUTDOWN, ETIMEDOUT};
use tcmu_handler::{Error, ErrorKind};

use crate::options::Options;

/// What could not be opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Opening {
    Configuration,
    Cluster,
    Pool,
    Namespace,
    Image,
    Lock,
}

/// Why something could not be opened, with what to do about it.
pub(crate) fn opening(what: Opening, options: &Options, error: io::Error) -> Error {
    let client = options.client();
    let conf = options.conf.as_ref().map_or_else(
        || "where Ceph looks (/etc/ceph/ceph.conf)".to_owned(),
        |conf| conf.display().to_string(),
    );
    let name = options.name();
    let pool = options.pool.to_string_lossy();
    let limit = options.connect_limit().as_secs();
    let code = error.raw_os_error().unwrap_or_default();
    let (kind, text) = match (what, code) {
        (Opening::Configuration, ENOENT) => (
            ErrorKind::NotFound,
            format!(
                "there is no configuration of a Ceph cluster {conf}: name it with conf=/path/ceph.conf"
            ),
        ),
        (Opening::Configuration, _) => (
            ErrorKind::InvalidConfig,
            format!("the configuration of the Ceph cluster cannot be used ({conf})"),
        ),
        (Opening::Cluster, ETIMEDOUT) => (
            ErrorKind::TimedOut,
            format!(
                "no monitor of the Ceph cluster has answered within {limit} s: are they running, and is \
                 mon_host right ({conf})?"
            ),
        ),
        (Opening::Cluster, EACCES | EPERM) => (
            ErrorKind::PermissionDenied,
            format!(
                "the Ceph cluster does not take {client}: is there such a user, and is its key in the \
                 keyring right (keyring, {conf})?"
            ),
        ),
        (Opening::Cluster, ENOENT) => (
            ErrorKind::NotFound,
            format!("there is no key for {client} in any keyring, or no monitor is named ({conf})"),
        ),
        (Opening::Pool, ENOENT) => (
            ErrorKind::NotFound,
            format!("the Ceph cluster has no pool {pool}"),
        ),
        (Opening::Namespace, ENOENT) => (
            ErrorKind::NotFound,
            format!(
                "the pool {pool} has no namespace {}",
                options.namespace.to_string_lossy()
            ),
        ),
        (Opening::Image, ENOENT) => (ErrorKind::NotFound, format!("there is no image {name}")),
        (Opening::Image | Opening::Pool | Opening::Namespace, EACCES | EPERM) => (
            ErrorKind::PermissionDenied,
            format!(
                "{client} may not use {name}: it needs the capabilities mon 'profile rbd' and osd \
                 'profile rbd pool={pool}' (profile rbd-read-only, with readonly=on)"
            ),
        ),
        (Opening::Lock, EBUSY | EROFS) => (
            ErrorKind::InUse,
            format!("another client holds the exclusive lock of {name} and does not give it up"),
        ),
        (Opening::Lock, EINVAL) => (
            ErrorKind::InvalidConfig,
            format!(
                "{name} cannot be locked: `rbd feature enable {name} exclusive-lock`, or leave out \
                 lock=open"
            ),
        ),
        (_, ETIMEDOUT) => (
            ErrorKind::TimedOut,
            format!("the Ceph cluster has not answered in time when {name} was opened"),
        ),
        _ => return Error::os(format!("opening {name}"), error),
    };
    Error::new(kind, text).with_source(error)
}

/// Why a request failed. `otherwise` is the kind of what is not known better.
pub(crate) fn request(
    what: &str,
    options: &Options,
    otherwise: ErrorKind,
    error: io::Error,
) -> Error {
    let name = options.name();
    let (kind, text) = match error.raw_os_error().unwrap_or_default() {
        ESHUTDOWN => return blocklisted(options).with_source(error),
        EROFS if options.read_only => (ErrorKind::ReadOnly, format!("{name} is only read")),
        EROFS => (
            ErrorKind::InUse,
            format!("another client holds the exclusive lock of {name} and does not give it up"),
        ),
        ETIMEDOUT => (
            ErrorKind::TimedOut,
            format!(
                "the Ceph cluster has not answered {what} of {name} within {} s (osd_op_timeout)",
                options.operation_limit.as_secs()
            ),
        ),
        EINVAL => (
            ErrorKind::OutOfRange,
            format!("{what} reaches beyond the end of {name}"),
        ),
        _ => {
            let error = Error::os(format!("{what} of {name}"), error);
            let unclear = matches!(error.kind(), ErrorKind::Internal | ErrorKind::NotFound);
            return if unclear {
                error.with_kind(otherwise)
            } else {
                error
            };
        }
    };
    Error::new(kind, text).with_source(error)
}

/// This client was shut out.
pub(crate) fn blocklisted(options: &Options) -> Error {
    Error::new(
        ErrorKind::Gone,
        format!(
            "the Ceph cluster has put this client of {} on its blocklist: another client has taken \
             the image over, or an administrator has shut this one out",
            options.name()
        ),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options() -> Options {
        Options::new(&"p/i;id=x;osd_op_timeout=7".parse().unwrap()).unwrap()
    }

    fn code(code: i32) -> io::Error {
        io::Error::from_raw_os_error(code)
    }

    #[test]
    fn people_are_told_what_to_do() {
        for (what, number, kind, says) in [
            (
                Opening::Configuration,
                ENOENT,
                ErrorKind::NotFound,
                "conf=/path",
            ),
            (
                Opening::Cluster,
                ETIMEDOUT,
                ErrorKind::TimedOut,
                "within 7 s",
            ),
            (
                Opening::Cluster,
                EACCES,
                ErrorKind::PermissionDenied,
                "client.x",
            ),
            (Opening::Pool, ENOENT, ErrorKind::NotFound, "no pool p"),
            (Opening::Image, ENOENT, ErrorKind::NotFound, "no image p/i"),
            (
                Opening::Image,
                EPERM,
                ErrorKind::PermissionDenied,
                "profile rbd",
            ),
            (Opening::Lock, EROFS, ErrorKind::InUse, "another client"),
        ] {
            let error = opening(what, &options(), code(number));
            assert_eq!(error.kind(), kind, "{error}");
            assert!(error.to_string().contains(says), "{error}");
        }
    }

    #[test]
    fn initiators_are_told_whether_to_try_again() {
        let failed = |number| request("a read", &options(), ErrorKind::Read, code(number)).kind();
        assert_eq!(failed(ETIMEDOUT), ErrorKind::TimedOut);
        assert_eq!(failed(ESHUTDOWN), ErrorKind::Gone);
        assert_eq!(failed(EROFS), ErrorKind::InUse);
        assert_eq!(failed(libc::ENOSPC), ErrorKind::NoSpace);
        assert_eq!(failed(libc::ENOMEM), ErrorKind::Busy);
        for number in [libc::EIO, libc::ENOENT, libc::EDOM] {
            assert_eq!(failed(number), ErrorKind::Read);
        }
    }
}
