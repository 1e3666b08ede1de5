//! Sizes in bytes: reading, showing, and finding out what a backing object has.

use std::fs::File;
use std::io::{Seek, SeekFrom};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use crate::error::{Error, Result};
use crate::roots::Roots;

/// The block size where nothing else is known, in bytes.
pub const DEFAULT_BLOCK_SIZE: u32 = 512;

/// Reads a size: bytes, or a number with K, M, G, T, P, E (or KiB, MiB, …: powers of 1024) or KB,
/// MB, … (powers of 1000). Upper and lower case are the same.
///
/// # Errors
/// [`Error::Invalid`] if the text is no such size or does not fit 64 bits.
pub fn parse_size(text: &str) -> Result<u64> {
    let bad = || {
        Error::Invalid(format!(
            "bad size {text:?}: give bytes or a number with a unit, such as 10G, 512MiB or 4096"
        ))
    };
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let number: u64 = number.parse().map_err(|_| bad())?;
    let unit = unit.to_ascii_lowercase();
    let (letter, base) = match unit.as_bytes() {
        [] | [b'b'] => return Ok(number),
        [letter] | [letter, b'i', b'b'] => (*letter, 1024_u64),
        [letter, b'b'] => (*letter, 1000),
        _ => return Err(bad()),
    };
    let power = b"kmgtpe"
        .iter()
        .position(|&l| l == letter)
        .ok_or_else(bad)? as u32
        + 1;
    base.checked_pow(power)
        .and_then(|factor| number.checked_mul(factor))
        .ok_or_else(bad)
}

/// Shows a size with the largest binary unit that keeps it short, such as `10.0 GiB`.
pub fn show_size(bytes: u64) -> String {
    const UNITS: [&str; 7] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    let mut value = bytes as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit < UNITS.len() - 1 {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 {
        format!("{bytes} B")
    } else {
        format!("{value:.1} {}", UNITS[unit])
    }
}

/// What a backing file or block device tells about itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Backing {
    /// Its length in bytes.
    pub(crate) size: u64,
    /// A block device's logical sector size in bytes.
    pub(crate) sector: Option<u32>,
}

/// The path in a file handler's configuration: up to the first option.
pub(crate) fn config_path(config: &str) -> Option<&Path> {
    let path = config.split(';').next()?;
    path.starts_with('/').then(|| Path::new(path))
}

/// Looks at a backing path: `None` if nothing is there that has a size.
pub(crate) fn probe(roots: &Roots, path: &Path) -> Result<Option<Backing>> {
    let failed = |source| Error::kernel(format!("look at {}", path.display()), source);
    let meta = match std::fs::metadata(path) {
        Ok(meta) => meta,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(failed(e)),
    };
    if meta.is_file() {
        return Ok(Some(Backing {
            size: meta.len(),
            sector: None,
        }));
    }
    if meta.file_type().is_block_device() {
        let size = File::open(path)
            .and_then(|mut device| device.seek(SeekFrom::End(0)))
            .map_err(failed)?;
        return Ok(Some(Backing {
            size,
            sector: logical_sector(roots, meta.rdev()),
        }));
    }
    Ok(None)
}

/// A disk's or partition's logical sector size, from `/sys/dev/block/MAJOR:MINOR`.
fn logical_sector(roots: &Roots, device: u64) -> Option<u32> {
    let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
    let folder = roots.sysfs.join(format!("dev/block/{major}:{minor}"));
    ["queue", "../queue"].iter().find_map(|queue| {
        let text = std::fs::read_to_string(folder.join(queue).join("logical_block_size")).ok()?;
        text.trim().parse().ok()
    })
}

/// Checks a block size: those that Linux' SCSI disk driver takes.
pub(crate) fn check_block_size(block_size: u32) -> Result<()> {
    if matches!(block_size, 512 | 1024 | 2048 | 4096) {
        return Ok(());
    }
    Err(Error::Invalid(format!(
        "bad block size {block_size}: use 512, 1024, 2048 or 4096 bytes"
    )))
}

/// Checks that a LUN's size is a positive number of whole blocks.
pub(crate) fn check_size(size: u64, block_size: u32) -> Result<()> {
    let block = u64::from(block_size);
    if size == 0 {
        return Err(Error::Invalid(
            "a LUN of size 0 is no use: say another --size".to_owned(),
        ));
    }
    if !size.is_multiple_of(block) {
        let down = size - size % block;
        let near = if down == 0 { block } else { down };
        return Err(Error::Invalid(format!(
            "the size {size} is not a multiple of the block size {block}: the nearest is {near}"
        )));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_with_their_units() {
        for (text, bytes) in [
            ("0", 0),
            ("4096", 4096),
            ("4096b", 4096),
            ("1k", 1024),
            ("10G", 10 << 30),
            ("512M", 512 << 20),
            ("1TiB", 1 << 40),
            ("1tib", 1 << 40),
            ("2MB", 2_000_000),
            ("15E", 15 << 60),
            ("18446744073709551615", u64::MAX),
        ] {
            assert_eq!(parse_size(text).expect(text), bytes, "{text}");
        }
        for bad in [
            "",
            "G",
            "-1",
            "1.5G",
            "1 G",
            "10X",
            "10Gi",
            "16E",
            "99999999999999999999",
        ] {
            assert!(parse_size(bad).is_err_and(|e| e.is_usage()), "{bad:?}");
        }
    }

    #[test]
    fn sizes_are_shown_short() {
        assert_eq!(show_size(0), "0 B");
        assert_eq!(show_size(1023), "1023 B");
        assert_eq!(show_size(10 << 30), "10.0 GiB");
        assert_eq!(show_size(1536), "1.5 KiB");
        assert_eq!(show_size(u64::MAX), "16.0 EiB");
    }

    #[test]
    fn the_path_of_a_config_ends_at_its_options() {
        assert_eq!(config_path("/a/b;direct=on"), Some(Path::new("/a/b")));
        assert_eq!(config_path("/a b"), Some(Path::new("/a b")));
        assert_eq!(config_path("pool/image"), None);
        assert_eq!(config_path(""), None);
    }

    #[test]
    fn only_files_and_block_devices_have_a_size() {
        let folder = tempfile::tempdir().expect("a folder");
        let roots = Roots::under(folder.path());
        let image = folder.path().join("image");
        std::fs::write(&image, [0; 1000]).expect("written");
        assert_eq!(
            probe(&roots, &image).expect("probed"),
            Some(Backing {
                size: 1000,
                sector: None
            })
        );
        assert_eq!(probe(&roots, folder.path()).expect("probed"), None);
        assert_eq!(
            probe(&roots, &folder.path().join("none")).expect("probed"),
            None
        );
    }

    #[test]
    fn a_size_is_whole_blocks() {
        assert!(check_size(1 << 20, 4096).is_ok());
        assert!(check_size(0, 512).is_err());
        let error = check_size(1000, 512)
            .expect_err("partial block")
            .to_string();
        assert!(error.contains("nearest is 512"), "{error}");
        assert!(check_block_size(520).is_err());
    }
}
