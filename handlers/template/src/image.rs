//! One open image.
//!
//! It lives on one thread, its reactor, where any number of requests are under way at once: state that
//! changes needs a `Cell` or a `RefCell`, and no lock. Nothing here may block; what does goes through
//! [`Io::blocking`].

use std::cell::Cell;
use std::fs;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use tcmu_handler::{
    Backstore, Buffer, Capabilities, DataAccess, Error, ErrorKind, File, Fua, Io, Result,
    WriteFlags,
};

use crate::options::Options;

/// An open image of the handler `template`.
#[derive(Debug)]
pub struct Image {
    file: File,
    path: PathBuf,
    read_only: bool,
    size: Cell<u64>,
}

impl Image {
    /// Opens the file and says how large it is, without a change to it.
    pub(crate) fn look(options: &Options) -> Result<(fs::File, u64)> {
        let failed = |error| Error::os(format!("opening {}", options.path.display()), error);
        let file = fs::File::options()
            .read(true)
            .write(!options.read_only)
            .open(&options.path)
            .map_err(failed)?;
        let metadata = file.metadata().map_err(failed)?;
        if !metadata.is_file() {
            return Err(Error::new(
                ErrorKind::InvalidConfig,
                format!("{} is not a regular file", options.path.display()),
            ));
        }
        Ok((file, metadata.len()))
    }

    /// Opens an image for a LUN of `size` bytes. The file may be longer.
    pub(crate) fn open(options: &Options, size: u64) -> Result<Self> {
        let (file, have) = Self::look(options)?;
        if have < size {
            return Err(Error::new(
                ErrorKind::OutOfRange,
                format!(
                    "{} has {have} bytes, less than the LUN's {size}",
                    options.path.display()
                ),
            ));
        }
        Ok(Self {
            file: Arc::new(file.into()),
            path: options.path.clone(),
            read_only: options.read_only,
            size: Cell::new(have),
        })
    }

    /// What initiators are to hear of an error: that data cannot be read or stored, unless it means
    /// something else that they can react to.
    fn failed(&self, what: &str, kind: ErrorKind, error: io::Error) -> Error {
        let error = Error::os(format!("{what} {}", self.path.display()), error);
        match error.kind() {
            ErrorKind::NoSpace | ErrorKind::ReadOnly | ErrorKind::TimedOut | ErrorKind::Gone => {
                error
            }
            _ => error.with_kind(kind),
        }
    }

    async fn sync(&self, io: &Io) -> Result<()> {
        let synced = io.sync(&self.file).await;
        synced.map_err(|error| self.failed("flushing", ErrorKind::Write, error))
    }
}

impl Backstore for Image {
    /// Says what is true. What stays out here, the runner does by other means or does not offer.
    fn capabilities(&self) -> Capabilities {
        Capabilities {
            read_only: self.read_only,
            volatile_cache: !self.read_only,
            fua: Fua::Native,
            data_access: DataAccess::FdToFd,
            ..Capabilities::new(self.size.get())
        }
    }

    async fn read(&self, io: &Io, buffer: Buffer<'_>, offset: u64) -> Result<()> {
        let read = io.read_exact(&self.file, buffer, offset).await;
        read.map_err(|error| self.failed("reading", ErrorKind::Read, error))
    }

    async fn write(
        &self,
        io: &Io,
        buffer: Buffer<'_>,
        offset: u64,
        flags: WriteFlags,
    ) -> Result<()> {
        let written = io.write_all(&self.file, buffer, offset, flags.fua).await;
        written.map_err(|error| self.failed("writing", ErrorKind::Write, error))
    }

    async fn flush(&self, io: &Io) -> Result<()> {
        self.sync(io).await
    }

    async fn resize(&self, io: &Io, size: u64) -> Result<()> {
        if size <= self.size.get() {
            return Ok(());
        }
        if self.read_only {
            return Err(Error::new(
                ErrorKind::OutOfRange,
                format!("{} is read-only and stays as it is", self.path.display()),
            ));
        }
        let file = Arc::clone(&self.file);
        let grow = move || fs::File::from(file.try_clone()?).set_len(size);
        let grown = io.blocking(grow).await.and_then(|grown| grown);
        grown.map_err(|error| self.failed("enlarging", ErrorKind::Write, error))?;
        self.size.set(size);
        Ok(())
    }

    async fn close(&self, io: &Io) -> Result<()> {
        match self.read_only {
            true => Ok(()),
            false => self.sync(io).await,
        }
    }
}
