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
    let mut chain = Vec::new();
    let mut seen = vec![top.identity];
    let mut below = next(&top.path, header)?;
    while let Some((path, format)) = below.take() {
        if chain.len() == DEEPEST {
            return Err(refused(
                ErrorKind::InvalidConfig,
                &top.path,
                format!(
                    "more than {DEEPEST} images lie below this one; `qemu-img commit` or `qemu-img rebase` make them fewer"
                ),
            ));
        }
        config.check_path(&path)?;
        let storage = Storage::open(&path, Claim::Read)?;
        if seen.contains(&storage.identity) {
            return Err(invalid(
                &top.path,
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
                below = next(&path, &header)?;
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
fn next(path: &Path, header: &Header) -> Result<Option<(PathBuf, Format)>> {
    let Some(backing) = &header.backing else {
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
