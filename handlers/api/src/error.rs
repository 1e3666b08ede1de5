//! How a backstore says that something failed.

use std::fmt;
use std::io;

/// The result of a handler's or backstore's operation.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What went wrong, as far as anyone needs to know to react to it.
///
/// The enum is exhaustive on purpose: the device server turns each kind into SCSI sense in one
/// `match`, so a new kind cannot be forgotten there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ErrorKind {
    /// The configuration string cannot be used: wrong syntax, unknown option, wrong value.
    InvalidConfig,
    /// The image, pool or device does not exist.
    NotFound,
    /// The operating system refuses access to the image.
    PermissionDenied,
    /// Somebody else holds the image.
    InUse,
    /// The backstore does not do this.
    Unsupported,
    /// The request reaches beyond the end of the image.
    OutOfRange,
    /// The image cannot be written to.
    ReadOnly,
    /// There is no room left in the storage below.
    NoSpace,
    /// Data could not be read back.
    Read,
    /// Data could not be stored.
    Write,
    /// The storage below did not answer in time.
    TimedOut,
    /// The storage below cannot be reached any more.
    Gone,
    /// For the moment there is no memory or no slot; the same request can succeed later.
    Busy,
    /// Anything else: a defect of the backstore or of the machine.
    Internal,
}

/// An error of a handler or a backstore: what kind, what was being done, and why it failed.
#[derive(Debug)]
pub struct Error {
    kind: ErrorKind,
    context: String,
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

impl Error {
    /// An error of `kind`, explained by a sentence for people.
    pub fn new(kind: ErrorKind, context: impl Into<String>) -> Self {
        Self {
            kind,
            context: context.into(),
            source: None,
        }
    }

    /// The operating system's error, with the kind that follows from its code, and what was being
    /// done.
    pub fn os(context: impl Into<String>, source: io::Error) -> Self {
        Self {
            kind: kind_of(&source),
            context: context.into(),
            source: Some(Box::new(source)),
        }
    }

    /// The same error with another kind.
    #[must_use]
    pub fn with_kind(mut self, kind: ErrorKind) -> Self {
        self.kind = kind;
        self
    }

    /// Keeps `source` as the cause.
    #[must_use]
    pub fn with_source(mut self, source: impl std::error::Error + Send + Sync + 'static) -> Self {
        self.source = Some(Box::new(source));
        self
    }

    /// What went wrong.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// The positive `errno` that says the same to the kernel, which hands it to whoever enables a
    /// LUN.
    pub fn errno(&self) -> i32 {
        let os = self
            .source
            .as_ref()
            .and_then(|source| source.downcast_ref::<io::Error>())
            .and_then(io::Error::raw_os_error);
        // Linux's numbers, from include/uapi/asm-generic/errno{,-base}.h.
        os.unwrap_or(match self.kind {
            ErrorKind::NotFound => 2,          // ENOENT
            ErrorKind::Read => 5,              // EIO
            ErrorKind::Write => 5,             // EIO
            ErrorKind::Busy => 11,             // EAGAIN
            ErrorKind::PermissionDenied => 13, // EACCES
            ErrorKind::InUse => 16,            // EBUSY
            ErrorKind::Gone => 19,             // ENODEV
            ErrorKind::InvalidConfig => 22,    // EINVAL
            ErrorKind::OutOfRange => 27,       // EFBIG
            ErrorKind::NoSpace => 28,          // ENOSPC
            ErrorKind::ReadOnly => 30,         // EROFS
            ErrorKind::Unsupported => 95,      // EOPNOTSUPP
            ErrorKind::TimedOut => 110,        // ETIMEDOUT
            ErrorKind::Internal => 5,          // EIO
        })
    }
}

/// What an operating system's error means for a backstore.
fn kind_of(error: &io::Error) -> ErrorKind {
    use io::ErrorKind as Os;
    match error.kind() {
        Os::NotFound | Os::NotADirectory => ErrorKind::NotFound,
        Os::PermissionDenied => ErrorKind::PermissionDenied,
        Os::ResourceBusy | Os::ExecutableFileBusy => ErrorKind::InUse,
        Os::Unsupported => ErrorKind::Unsupported,
        Os::StorageFull | Os::QuotaExceeded | Os::FileTooLarge => ErrorKind::NoSpace,
        Os::ReadOnlyFilesystem => ErrorKind::ReadOnly,
        Os::TimedOut => ErrorKind::TimedOut,
        Os::OutOfMemory | Os::WouldBlock => ErrorKind::Busy,
        Os::NotConnected | Os::ConnectionReset | Os::ConnectionAborted | Os::BrokenPipe => {
            ErrorKind::Gone
        }
        Os::InvalidInput | Os::IsADirectory | Os::InvalidFilename => ErrorKind::InvalidConfig,
        _ => match error.raw_os_error() {
            Some(6 | 19) => ErrorKind::Gone, // ENXIO, ENODEV
            _ => ErrorKind::Internal,
        },
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.context)?;
        match &self.source {
            Some(source) => write!(f, ": {source}"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.source.as_deref().map(|source| source as _)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeps_the_code_of_the_operating_system() {
        let error = Error::os("opening /x", io::Error::from_raw_os_error(21));
        assert_eq!(error.kind(), ErrorKind::InvalidConfig);
        assert_eq!(error.errno(), 21);
        assert!(error.to_string().starts_with("opening /x: "), "{error}");
    }

    #[test]
    fn invents_a_code_where_there_is_none() {
        assert_eq!(Error::new(ErrorKind::OutOfRange, "too large").errno(), 27);
    }

    #[test]
    fn a_full_disk_is_no_space() {
        assert_eq!(
            kind_of(&io::Error::from_raw_os_error(28)),
            ErrorKind::NoSpace
        );
        assert_eq!(
            kind_of(&io::Error::from_raw_os_error(122)),
            ErrorKind::NoSpace
        );
    }
}
