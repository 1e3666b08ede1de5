//! Reading and writing the one-value files of sysfs and configfs.

use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// sysfs and configfs hand out at most one page per attribute, and no page is larger than this.
const LONGEST: u64 = 64 * 1024;

/// An I/O error that says on which file it happened. The error number stays in the source.
#[derive(Debug)]
struct PathError {
    action: &'static str,
    path: PathBuf,
    source: io::Error,
}

impl fmt::Display for PathError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "cannot {} {}: {}",
            self.action,
            self.path.display(),
            self.source
        )
    }
}

impl std::error::Error for PathError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.source)
    }
}

/// Adds the file to an error, and keeps its kind.
pub(crate) fn on_path(action: &'static str, path: &Path, source: io::Error) -> io::Error {
    io::Error::new(
        source.kind(),
        PathError {
            action,
            path: path.to_owned(),
            source,
        },
    )
}

/// The system's error number behind an error made by [`on_path`] or by the system itself.
pub(crate) fn error_number(error: &io::Error) -> Option<i32> {
    error.raw_os_error().or_else(|| {
        error
            .get_ref()
            .and_then(|inner| inner.downcast_ref::<PathError>())
            .and_then(|inner| inner.source.raw_os_error())
    })
}

/// Reads a whole attribute, without the newlines at its end.
///
/// Bytes that are not UTF-8 become U+FFFD: a name must stay printable and comparable, and a
/// device that carries such a name must still be seen.
pub(crate) fn read(path: &Path) -> io::Result<String> {
    let mut bytes = Vec::new();
    File::open(path)
        .and_then(|file| file.take(LONGEST).read_to_end(&mut bytes))
        .map_err(|error| on_path("read", path, error))?;
    let text = String::from_utf8_lossy(&bytes);
    Ok(text.trim_end_matches('\n').to_owned())
}

/// Reads an attribute that holds one value, such as a decimal number.
pub(crate) fn read_value<T: FromStr>(path: &Path) -> io::Result<T> {
    let text = read(path)?;
    text.trim().parse().map_err(|_| unexpected(path, &text))
}

/// Reads a number written in hexadecimal with a leading `0x`.
pub(crate) fn read_hex(path: &Path) -> io::Result<u64> {
    let text = read(path)?;
    text.trim()
        .strip_prefix("0x")
        .filter(|digits| digits.bytes().all(|digit| digit.is_ascii_hexdigit()))
        .and_then(|digits| u64::from_str_radix(digits, 16).ok())
        .ok_or_else(|| unexpected(path, &text))
}

/// An attribute that does not hold what the kernel documents for it.
pub(crate) fn unexpected(path: &Path, text: &str) -> io::Error {
    let shown: String = text.chars().take(64).collect();
    io::Error::new(
        io::ErrorKind::InvalidData,
        format!("unexpected content in {}: {shown:?}", path.display()),
    )
}

/// Writes an attribute with a single write(2), since the kernel takes each write as a whole value.
pub(crate) fn write(path: &Path, value: &str) -> io::Result<()> {
    let attempt = || {
        // Not created: an attribute that is not there is an error, not a new file.
        let mut file = OpenOptions::new().write(true).open(path)?;
        let written = file.write(value.as_bytes())?;
        if written == value.len() {
            Ok(())
        } else {
            Err(io::Error::new(
                io::ErrorKind::WriteZero,
                format!("only {written} of {} bytes were taken", value.len()),
            ))
        }
    };
    attempt().map_err(|error| on_path("write", path, error))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(content: &[u8]) -> tempfile::NamedTempFile {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(content).unwrap();
        file
    }

    #[test]
    fn reads_without_the_final_newlines() {
        assert_eq!(read(file(b"a b\n\n").path()).unwrap(), "a b");
        assert_eq!(read(file(b"").path()).unwrap(), "");
        assert_eq!(read(file(b"\n a\xff\n").path()).unwrap(), "\n a\u{fffd}");
    }

    #[test]
    fn reads_numbers_and_refuses_everything_else() {
        assert_eq!(read_value::<u64>(file(b"512\n").path()).unwrap(), 512);
        assert_eq!(read_hex(file(b"0x40800000\n").path()).unwrap(), 0x4080_0000);
        for bad in ["", "1g", "-1", "0x"] {
            let error = read_value::<u32>(file(bad.as_bytes()).path()).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidData, "{bad}");
        }
        for bad in ["", "40", "0x", "0x+1", "0x1ffffffffffffffff", "0xzz"] {
            let error = read_hex(file(bad.as_bytes()).path()).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidData, "{bad}");
        }
    }

    #[test]
    fn an_error_names_the_file_and_keeps_its_number() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("missing");
        for error in [read(&path).unwrap_err(), write(&path, "1").unwrap_err()] {
            assert_eq!(error.kind(), io::ErrorKind::NotFound);
            assert!(error.to_string().contains("missing"), "{error}");
            assert_eq!(
                error_number(&error),
                Some(rustix::io::Errno::NOENT.raw_os_error())
            );
        }
        assert!(!path.exists(), "a write must not create an attribute");
    }
}
