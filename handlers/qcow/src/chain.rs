//! The images below an image.

use std::path::{Path, PathBuf};

use tcmu_handler::{Config, ErrorKind, Result};

use crate::fault::{invalid, refused};
use crate::header::{self, Header};
use crate::layer::Backing;
use crate::lock::Claim;
use crate::open::{layer_of, open_data_file, read_header};
use crate::storage::Storage;

/// So many images can lie below one.
const DEEPEST: usize = 64;

/// Opens the chain of images below `top`, nearest first, as far as `config` allows.
pub(crate) fn open(top: &Storage, header: &Header, config: &Config) -> Result<Vec<Backing>> {
    let below = next(&top.path, header.backing.as_ref())?;
    open_below(&top.path, vec![top.identity], below, config)
}

/// Says whether an image could be made at `top` that lies on `backing`.
pub(crate) fn check(top: &Path, backing: &header::Backing, config: &Config) -> Result<()> {
    let below = next(top, Some(backing))?;
    open_below(top, Vec::new(), below, config).map(drop)
}

/// Opens the image `below` one at `top`, and those below it; `seen` are the files already open.
fn open_below(
    top: &Path,
    mut seen: Vec<(u64, u64)>,
    mut below: Option<(PathBuf, Format)>,
    config: &Config,
) -> Result<Vec<Backing>> {
    let mut chain = Vec::new();
    while let Some((path, format)) = below.take() {
        if chain.len() == DEEPEST {
            return Err(refused(
                ErrorKind::InvalidConfig,
                top,
                format!(
                    "more than {DEEPEST} images lie below this one; `qemu-img commit` or `qemu-img rebase` make them fewer"
                ),
            ));
        }
        config.check_path(&path)?;
        let storage = Storage::open(&path, Claim::Read)?;
        if seen.contains(&storage.identity) {
            return Err(invalid(
                top,
                format!(
                    "the chain of backing files comes back to {}",
                    path.display()
                ),
            ));
        }
        seen.push(storage.identity);
        chain.push(match format {
            Format::Raw => {
                let size = storage.len()?;
                Backing::Raw { storage, size }
            }
            Format::Qcow => {
                let (header, _) = read_header(&storage)?;
                refuse_unreadable(&header, &path)?;
                below = next(&path, header.backing.as_ref())?;
                let data = open_data_file(&path, &header, Claim::Read, config)?;
                let layer = layer_of(storage, data, &header, None)?;
                Backing::Qcow(Box::new(layer))
            }
        });
    }
    Ok(chain)
}

/// Refuses an image that cannot even be read.
fn refuse_unreadable(header: &Header, path: &Path) -> Result<()> {
    if header.incompatible & header::incompatible::CORRUPT != 0 {
        return Err(crate::open::corrupt(path));
    }
    Ok(())
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Format {
    Raw,
    Qcow,
}

/// Where the image below lies, and what it is.
fn next(path: &Path, backing: Option<&header::Backing>) -> Result<Option<(PathBuf, Format)>> {
    let Some(backing) = backing else {
        return Ok(None);
    };
    let name = backing.name.display();
    let format = match backing.format.as_deref() {
        Some("raw") => Format::Raw,
        Some("qcow2") => Format::Qcow,
        Some(other) => {
            return Err(refused(
                ErrorKind::Unsupported,
                path,
                format!(
                    "a backing file of the format \"{other}\" is not supported; raw and qcow2 are"
                ),
            ));
        }
        None => {
            return Err(refused(
                ErrorKind::InvalidConfig,
                path,
                format!(
                    "the header does not say which format the backing file {name} has, and guessing \
                     is not safe; `qemu-img rebase -u -b {name} -F raw` (or -F qcow2) writes it down"
                ),
            ));
        }
    };
    let text = backing.name.to_string_lossy();
    let is_protocol = text
        .split_once(':')
        .is_some_and(|(before, _)| !before.contains('/'));
    if is_protocol {
        return Err(refused(
            ErrorKind::Unsupported,
            path,
            format!(
                "the backing file {name} is not a path; only files and block devices are supported"
            ),
        ));
    }
    Ok(Some((beside(path, &backing.name), format)))
}

/// A path in an image's header; relative ones begin in the image's folder. (qemu takes that of an
/// external data file from its working directory, which a daemon has no use for.)
pub(crate) fn beside(image: &Path, name: &Path) -> PathBuf {
    image.parent().unwrap_or(Path::new("/")).join(name)
}
