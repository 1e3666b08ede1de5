//! One open image.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::task::Poll;
use std::time::Instant;

use tcmu_handler::{
    Backstore, BlockStatus, Buffer, Capabilities, Comparison, Error, ErrorKind, Extent, External,
    Fua, Io, OpenRequest, Result, Unmap, WriteFlags, ZeroFlags,
};

use crate::connection::{Access, Connection};
use crate::errors;
use crate::fence::{Fence, Way};
use crate::ffi::{Request, Watch, ZeroMode};
use crate::options::Options;

/// The longest compare-and-write that every librbd does: before Ceph 17, one sector.
const COMPARE_AND_WRITE: u32 = 512;

/// What an object store keeps apart as a rule: BlueStore's unit of allocation.
const PHYSICAL_BLOCK: u32 = 4096;

/// What is given back in one piece: `rbd_discard_granularity_bytes`, unless somebody changed it. Smaller
/// parts are overwritten with zeroes.
const UNMAP_GRANULARITY: u64 = 64 << 10;

/// How much of an image one GET LBA STATUS looks at: it has to ask about every object.
const BLOCK_STATUS_WINDOW: u64 = 1 << 30;

/// An image of a Ceph cluster.
#[derive(Debug)]
pub struct RbdImage {
    options: Arc<Options>,
    /// None once the image is closed.
    connection: RefCell<Option<Arc<Connection>>>,
    fence: Fence,
    watch: Arc<Watch>,
    capabilities: Cell<Capabilities>,
    /// Requests that have ended, to be used again.
    spare: RefCell<Vec<Request>>,
}

impl RbdImage {
    pub(crate) fn open(options: Options, request: &OpenRequest, claims: &Path) -> Result<Self> {
        let watch = Arc::new(Watch::default());
        let connection = Connection::open(&options, Access::Serve(Arc::clone(&watch), claims))?;
        let capabilities = capabilities(&connection, &options)?;
        if capabilities.size < request.size {
            let error = too_small(&options, capabilities.size, request.size);
            connection.close();
            return Err(error);
        }
        Ok(Self {
            options: Arc::new(options),
            connection: RefCell::new(Some(Arc::new(connection))),
            fence: Fence::default(),
            watch,
            capabilities: Cell::new(capabilities),
            spare: RefCell::default(),
        })
    }

    /// The connection for a request that comes now.
    async fn connection(&self, io: &Io) -> Result<Arc<Connection>> {
        match self.fence.way(Instant::now) {
            Way::Open => self.present(),
            Way::Opening => Err(Error::new(
                ErrorKind::Busy,
                format!("{} is being opened again", self.options.name()),
            )),
            Way::Shut => Err(errors::blocklisted(&self.options)),
            Way::TryAgain(attempt) => {
                let options = Arc::clone(&self.options);
                let (before, watch) = (self.present()?, Arc::clone(&self.watch));
                let opened = io
                    .blocking(move || {
                        Connection::open(&options, Access::ServeAgain(watch, &before))
                    })
                    .await
                    .map_err(|error| Error::os("opening the image again", error))?;
                let connection = Arc::new(opened.inspect_err(|error| {
                    tracing::warn!(image = self.options.name(), %error, "the image stays closed");
                })?);
                *self.connection.borrow_mut() = Some(Arc::clone(&connection));
                attempt.succeeded();
                // Its size may have changed meanwhile.
                self.watch.tell();
                tracing::info!(image = self.options.name(), "the image is open again");
                Ok(connection)
            }
        }
    }

    fn present(&self) -> Result<Arc<Connection>> {
        let connection = self.connection.borrow();
        connection.as_ref().map(Arc::clone).ok_or_else(|| {
            Error::new(
                ErrorKind::Gone,
                format!("{} is closed", self.options.name()),
            )
        })
    }

    fn request(&self) -> Request {
        self.spare.borrow_mut().pop().unwrap_or_default()
    }

    fn put_back(&self, mut request: Request) {
        request.clear();
        self.spare.borrow_mut().push(request);
    }

    /// Awaits a request. The number is librbd's answer, which is no error.
    async fn finish(
        &self,
        what: &str,
        otherwise: ErrorKind,
        connection: &Arc<Connection>,
        operation: External<Request>,
    ) -> Result<u64> {
        let (result, request) = operation.await;
        self.put_back(request);
        let result = result.map_err(|error| self.failed(what, otherwise, connection, error))?;
        u64::try_from(result).map_err(|_| {
            let code = i32::try_from(-result).unwrap_or(libc::EIO);
            let error = io::Error::from_raw_os_error(code);
            self.failed(what, otherwise, connection, error)
        })
    }

    /// The error of a request on `connection`. Where the client was shut out, no other request passes.
    fn failed(
        &self,
        what: &str,
        otherwise: ErrorKind,
        connection: &Arc<Connection>,
        error: io::Error,
    ) -> Error {
        let shut_out = error.raw_os_error() == Some(libc::ESHUTDOWN);
        let error = errors::request(what, &self.options, otherwise, error);
        let present = self.connection.borrow();
        let is_present = present
            .as_ref()
            .is_some_and(|present| Arc::ptr_eq(present, connection));
        if shut_out && is_present {
            tracing::error!(image = self.options.name(), %error, "the image is closed");
            self.fence.shut(Instant::now());
        }
        error
    }

    async fn zero(&self, io: &Io, extent: Extent, mode: ZeroMode) -> Result<()> {
        let connection = self.connection(io).await?;
        let operation = connection
            .image()
            .write_zeroes(io, self.request(), extent, mode);
        self.finish("zeroing a part", ErrorKind::Write, &connection, operation)
            .await?;
        Ok(())
    }

    /// Runs something that blocks on the image.
    async fn on_image<T: Send + 'static>(
        &self,
        io: &Io,
        what: &str,
        job: impl FnOnce(&Connection) -> io::Result<T> + Send + 'static,
    ) -> Result<T> {
        let connection = self.connection(io).await?;
        let used = Arc::clone(&connection);
        io.blocking(move || job(&used))
            .await
            .and_then(|result| result)
            .map_err(|error| self.failed(what, ErrorKind::Internal, &connection, error))
    }
}

/// What the image does, as it is now.
fn capabilities(connection: &Connection, options: &Options) -> Result<Capabilities> {
    let image = connection.image();
    let failed = |error| {
        Error::os(
            format!("asking for the properties of {}", options.name()),
            error,
        )
    };
    let size = image.size().map_err(failed)?;
    let row = image
        .stripe_unit()
        .map_err(failed)?
        .saturating_mul(image.stripe_count().map_err(failed)?);
    // The image's own settings come before ours.
    let cached = image.setting(c"rbd_cache").map_err(failed)?.as_deref() == Some("true");
    let writable = !options.read_only;
    Ok(Capabilities {
        physical_block_size: PHYSICAL_BLOCK,
        optimal_io_size: u32::try_from(row).unwrap_or_default(),
        read_only: !writable,
        volatile_cache: cached && writable,
        fua: Fua::Emulate,
        unmap: writable.then_some(Unmap {
            granularity: UNMAP_GRANULARITY,
            reads_zeroes: true,
        }),
        write_zeroes: writable,
        compare_and_write: if writable { COMPARE_AND_WRITE } else { 0 },
        ..Capabilities::new(size)
    })
}

fn too_small(options: &Options, have: u64, want: u64) -> Error {
    let name = options.name();
    Error::new(
        ErrorKind::OutOfRange,
        format!(
            "{name} has {have} bytes, less than the LUN's {want}: `rbd resize {name} --size {want}B`, or \
             make the LUN smaller"
        ),
    )
}

impl Backstore for RbdImage {
    fn capabilities(&self) -> Capabilities {
        self.capabilities.get()
    }

    async fn read(&self, io: &Io, buffer: Buffer<'_>, offset: u64) -> Result<()> {
        let connection = self.connection(io).await?;
        let mut request = self.request();
        request.set_buffer(&buffer);
        let operation = connection.image().read(io, request, offset);
        let len = self
            .finish("a read", ErrorKind::Read, &connection, operation)
            .await?;
        if len == buffer.len() as u64 {
            Ok(())
        } else {
            Err(Error::new(
                ErrorKind::OutOfRange,
                format!("a read reaches beyond the end of {}", self.options.name()),
            ))
        }
    }

    async fn write(&self, io: &Io, buffer: Buffer<'_>, offset: u64, _: WriteFlags) -> Result<()> {
        let connection = self.connection(io).await?;
        let mut request = self.request();
        request.set_buffer(&buffer);
        let operation = connection.image().write(io, request, offset);
        self.finish("a write", ErrorKind::Write, &connection, operation)
            .await?;
        Ok(())
    }

    async fn flush(&self, io: &Io) -> Result<()> {
        let connection = self.connection(io).await?;
        let operation = connection.image().flush(io, self.request());
        self.finish("a flush", ErrorKind::Write, &connection, operation)
            .await?;
        Ok(())
    }

    async fn unmap(&self, io: &Io, extent: Extent) -> Result<()> {
        self.zero(io, extent, ZeroMode::Unmap).await
    }

    async fn write_zeroes(&self, io: &Io, extent: Extent, flags: ZeroFlags) -> Result<()> {
        let mode = match flags.may_unmap {
            true => ZeroMode::Unmap,
            false => ZeroMode::Provision,
        };
        self.zero(io, extent, mode).await
    }

    async fn compare_and_write(
        &self,
        io: &Io,
        expected: Buffer<'_>,
        new: Buffer<'_>,
        offset: u64,
        _: WriteFlags,
    ) -> Result<Comparison> {
        let connection = self.connection(io).await?;
        let mut request = self.request();
        request.set_bytes([&expected, &new]);
        let operation = connection.image().compare_and_write(io, request, offset);
        let (result, request) = operation.await;
        let at = request.difference();
        self.put_back(request);
        match result {
            Ok(result) if result >= 0 => Ok(Comparison::Equal),
            Ok(result) if result == -i64::from(libc::EILSEQ) => {
                // Librbd 16 counts from the begin of the object, and from that of the sector, at once;
                // others from the begin of the image. What is compared is one sector.
                let sector = u64::from(COMPARE_AND_WRITE);
                Ok(Comparison::DiffersAt((at % sector) as usize))
            }
            other => {
                let error = other.map_or_else(
                    |error| error,
                    |result| {
                        io::Error::from_raw_os_error(i32::try_from(-result).unwrap_or(libc::EIO))
                    },
                );
                Err(self.failed("a compare-and-write", ErrorKind::Write, &connection, error))
            }
        }
    }

    async fn block_status(&self, io: &Io, extent: Extent) -> Result<BlockStatus> {
        let window = Extent {
            len: extent.len.min(BLOCK_STATUS_WINDOW),
            ..extent
        };
        self.on_image(io, "looking at the objects", move |connection| {
            connection.image().block_status(window)
        })
        .await
    }

    /// Makes the image larger where it is too small.
    async fn resize(&self, io: &Io, size: u64) -> Result<()> {
        let read_only = self.options.read_only;
        let now = self
            .on_image(io, "a resize", move |connection| {
                let image = connection.image();
                let now = image.size()?;
                if now >= size || read_only {
                    return Ok(now);
                }
                image.grow(size)?;
                image.size()
            })
            .await?;
        self.capabilities.set(Capabilities {
            size: now,
            ..self.capabilities.get()
        });
        if now < size {
            return Err(too_small(&self.options, now, size));
        }
        Ok(())
    }

    async fn resized(&self, io: &Io, known: u64) {
        loop {
            poll_fn(|context| match self.watch.take_news(context) {
                true => Poll::Ready(()),
                false => Poll::Pending,
            })
            .await;
            let Ok(connection) = self.present() else {
                continue;
            };
            let size = io.blocking(move || connection.image().size()).await;
            match size.and_then(|size| size) {
                Ok(size) if size != known => {
                    self.capabilities.set(Capabilities {
                        size,
                        ..self.capabilities.get()
                    });
                    return;
                }
                Ok(_) => {}
                Err(error) => {
                    let image = self.options.name();
                    tracing::debug!(image, %error, "the size cannot be read");
                }
            }
        }
    }

    async fn close(&self, io: &Io) -> Result<()> {
        let connection = self.connection.borrow_mut().take();
        // Nobody else holds it: no request is running.
        let Some(connection) = connection.and_then(Arc::into_inner) else {
            return Ok(());
        };
        io.blocking(move || connection.close())
            .await
            .map_err(|error| Error::os("closing the image", error))
    }
}
