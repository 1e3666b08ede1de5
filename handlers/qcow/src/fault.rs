//! What goes wrong with images, in words.

use std::io;
use std::path::Path;

use tcmu_handler::{Error, ErrorKind};

/// An image that cannot be used, and why.
pub(crate) fn refused(kind: ErrorKind, path: &Path, why: impl std::fmt::Display) -> Error {
    Error::new(kind, format!("{}: {why}", path.display()))
}

/// An image whose header or tables contradict the format.
pub(crate) fn invalid(path: &Path, why: impl std::fmt::Display) -> Error {
    refused(ErrorKind::InvalidConfig, path, why)
}

/// Metadata that contradict each other, found while the image is in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Corrupt(pub(crate) &'static str);

impl Corrupt {
    /// The error of a request that met it.
    pub(crate) fn at(self, path: &Path, offset: u64) -> Error {
        refused(
            ErrorKind::Read,
            path,
            format!(
                "the image is corrupt at guest offset {offset}: {}; `qemu-img check` tells more",
                self.0
            ),
        )
    }
}

/// A failed operation on a file of the image.
pub(crate) fn failed(kind: ErrorKind, doing: &str, path: &Path, error: io::Error) -> Error {
    let error = Error::os(format!("{doing} {}", path.display()), error);
    match error.kind() {
        ErrorKind::NoSpace
        | ErrorKind::ReadOnly
        | ErrorKind::TimedOut
        | ErrorKind::Gone
        | ErrorKind::Busy => error,
        _ => error.with_kind(kind),
    }
}
