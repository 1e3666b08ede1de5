//! From a configuration to an open image.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{Access, AtFlags, CWD, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;
use tcmu_handler::{Error, ErrorKind, OpenRequest, Result};

use crate::claim::{lock, patiently};
use crate::geometry::{Geometry, is_write_protected};
use crate::image::FileImage;
use crate::in_memory::{Writes, do_not_wait};
use crate::options::Options;

/// What an image can be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Regular,
    Device,
}

/// What stands at a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Found {
    kind: Kind,
    /// Which device, if it is one.
    device: u64,
}

/// Says whether an image could be opened, as far as that can be told without touching it.
pub(crate) fn check(options: &Options) -> Result<()> {
    let path = &options.path;
    match look(path) {
        Ok(found) => {
            refuse_protected(options, found)?;
            let access = if options.read_only {
                Access::READ_OK
            } else {
                Access::READ_OK | Access::WRITE_OK
            };
            allowed(path, access).map_err(|errno| refused(options, errno))
        }
        Err(error) if error.kind() == ErrorKind::NotFound && options.create => {
            let parent = path.parent().unwrap_or(Path::new("/"));
            allowed(parent, Access::WRITE_OK | Access::EXEC_OK)
                .map_err(|errno| cannot("create", path, errno))
        }
        Err(error) => Err(error),
    }
}

/// Opens an image, or makes it.
pub(crate) fn open(options: &Options, request: &OpenRequest) -> Result<FileImage> {
    let path = &options.path;
    let created = options.create && create(path)?;
    let found = look(path)?;
    refuse_protected(options, found)?;
    let file = open_file(options, found)?;
    let kind = found.kind;
    if kind == Kind::Regular {
        lock(&file, path, options.read_only)?;
    }
    let image = furnish(file, kind, options, request);
    if image.is_err() && created {
        // The lock is held: nobody else has come to use the file. That it stays is no harm.
        let _ = fs::remove_file(path);
    }
    image
}

/// Makes an empty file where there is none; says whether it did.
fn create(path: &Path) -> Result<bool> {
    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
    match rustix::fs::open(path, flags, Mode::RUSR | Mode::WUSR) {
        Ok(_) => Ok(true),
        Err(Errno::EXIST) => Ok(false),
        Err(errno) => Err(cannot("create", path, errno)),
    }
}

/// What there is at `path`.
fn look(path: &Path) -> Result<Found> {
    let stat = rustix::fs::stat(path).map_err(|errno| match errno {
        Errno::NOENT => Error::os(
            format!(
                "{} does not exist (create=on would create a file)",
                path.display()
            ),
            errno.into(),
        ),
        errno => cannot("open", path, errno),
    })?;
    found(&stat, path)
}

fn found(stat: &Stat, path: &Path) -> Result<Found> {
    let found = |kind| Found {
        kind,
        device: stat.st_rdev,
    };
    let what = match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => return Ok(found(Kind::Regular)),
        FileType::BlockDevice => return Ok(found(Kind::Device)),
        FileType::Directory => return Err(cannot("serve", path, Errno::ISDIR)),
        FileType::Fifo => "a FIFO",
        FileType::Socket => "a socket",
        FileType::CharacterDevice => "a character device",
        _ => "something unknown",
    };
    Err(Error::new(
        ErrorKind::InvalidConfig,
        format!(
            "{} is {what}, neither a regular file nor a block device",
            path.display()
        ),
    ))
}

fn allowed(path: &Path, access: Access) -> rustix::io::Result<()> {
    rustix::fs::accessat(CWD, path, access, AtFlags::EACCESS)
}

/// A write-protected device opens for writing, and then fails every write.
fn refuse_protected(options: &Options, found: Found) -> Result<()> {
    if !options.read_only && found.kind == Kind::Device && is_write_protected(found.device) {
        return Err(only_readable(&options.path, Errno::ROFS));
    }
    Ok(())
}

fn open_file(options: &Options, expected: Found) -> Result<OwnedFd> {
    let path = &options.path;
    let mut flags = OFlags::CLOEXEC | OFlags::NOCTTY;
    if options.read_only {
        flags |= OFlags::RDONLY;
    } else {
        flags |= OFlags::RDWR;
        if expected.kind == Kind::Device {
            flags |= OFlags::EXCL;
        }
    }
    let file = patiently(|| rustix::fs::open(path, flags, Mode::empty()))
        .map_err(|errno| refused(options, errno))?;
    let stat = rustix::fs::fstat(&file).map_err(|errno| cannot("open", path, errno))?;
    if found(&stat, path)? != expected {
        return Err(Error::new(
            ErrorKind::InUse,
            format!(
                "{} was replaced while it was being opened: try again",
                path.display()
            ),
        ));
    }
    Ok(file)
}

/// Why the image at hand cannot be opened.
fn refused(options: &Options, errno: Errno) -> Error {
    let path = &options.path;
    match errno {
        Errno::BUSY => Error::os(
            format!(
                "{} is in use: it is mounted, or another LUN, device or program holds it",
                path.display()
            ),
            errno.into(),
        ),
        Errno::ACCESS | Errno::PERM | Errno::ROFS
            if !options.read_only && allowed(path, Access::READ_OK).is_ok() =>
        {
            only_readable(path, errno)
        }
        errno => cannot("open", path, errno),
    }
}

fn only_readable(path: &Path, errno: Errno) -> Error {
    Error::os(
        format!(
            "{} can only be read: make it writable, or serve it with readonly=on",
            path.display()
        ),
        errno.into(),
    )
    .with_kind(ErrorKind::ReadOnly)
}

fn cannot(what: &str, path: &Path, errno: Errno) -> Error {
    Error::os(format!("cannot {what} {}", path.display()), errno.into())
}

/// Prepares a file that is ours for the LUN.
fn furnish(
    file: OwnedFd,
    kind: Kind,
    options: &Options,
    request: &OpenRequest,
) -> Result<FileImage> {
    let path = &options.path;
    let file = fs::File::from(file);
    if options.create && kind == Kind::Regular {
        lay_out(&file, path, request.size)
            .map_err(|error| Error::os(format!("creating {}", path.display()), error))?;
    }
    let direct = options.direct.unwrap_or(kind == Kind::Device);
    if direct {
        rustix::fs::fcntl_getfl(&file)
            .and_then(|flags| rustix::fs::fcntl_setfl(&file, flags | OFlags::DIRECT))
            .map_err(|errno| match errno {
                Errno::INVAL => no_direct_io(path),
                errno => cannot("open", path, errno),
            })?;
    }
    let in_memory = kind == Kind::Regular && do_not_wait(&file) == Writes::ByWorkers;
    let geometry = match kind {
        Kind::Regular => Geometry::of_file(&file, path, direct, options.read_only)?,
        Kind::Device => Geometry::of_device(&file, path)?,
    };
    if geometry.size < request.size {
        return Err(Error::new(
            ErrorKind::OutOfRange,
            format!(
                "{} has {} bytes, less than the LUN's {}",
                path.display(),
                geometry.size,
                request.size
            ),
        ));
    }
    if request.block_size < geometry.block_size {
        return Err(too_small(path, kind, request.block_size, &geometry));
    }
    Ok(FileImage::new(file, kind, in_memory, options, &geometry))
}

/// Gives an empty file its size; the file then survives a loss of power.
fn lay_out(file: &fs::File, path: &Path, size: u64) -> io::Result<()> {
    if file.metadata()?.len() != 0 {
        return Ok(());
    }
    file.set_len(size)?;
    file.sync_all()?;
    match path.parent() {
        Some(parent) => fs::File::open(parent)?.sync_all(),
        None => Ok(()),
    }
}

fn too_small(path: &Path, kind: Kind, block_size: u32, geometry: &Geometry) -> Error {
    let least = geometry.block_size;
    let path = path.display();
    Error::new(
        ErrorKind::InvalidConfig,
        match kind {
            Kind::Device => format!(
                "{path} has blocks of {least} bytes: the LUN's blocks of {block_size} bytes are \
                 too small for it"
            ),
            Kind::Regular => format!(
                "direct I/O on {path} takes blocks of {least} bytes: the LUN's blocks of \
                 {block_size} bytes are too small for it; use larger ones, or direct=off"
            ),
        },
    )
}

/// The file system does not do what `direct=on` asks for.
pub(crate) fn no_direct_io(path: &Path) -> Error {
    Error::new(
        ErrorKind::InvalidConfig,
        format!(
            "the file system of {} has no direct I/O: use direct=off",
            path.display()
        ),
    )
}
