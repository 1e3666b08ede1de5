//! How a backstore does its own I/O: operations of the reactor's engine, awaited.
//!
//! Nothing here blocks and nothing copies: an operation names a file and a [`Buffer`], the engine
//! hands both to the kernel, and the future completes with the kernel's answer. Operations started
//! in one turn of the reactor reach the kernel together.

use std::future::Future;
use std::io;
use std::os::fd::OwnedFd;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_channel::oneshot;

use crate::external::Origin;
use crate::{Buffer, Completer, Extent, External, ExternalWork, OwnedBuffer};

/// An open file that operations can outlive the backstore with.
pub type File = Arc<OwnedFd>;

/// One operation of the I/O engine.
#[derive(Clone, Copy, Debug)]
pub enum Operation<'a> {
    /// Reads at `offset` into the buffer.
    Read {
        /// The file.
        file: &'a File,
        /// Where the bytes go.
        buffer: Buffer<'a>,
        /// Where they come from, in bytes.
        offset: u64,
    },
    /// Writes the buffer at `offset`.
    Write {
        /// The file.
        file: &'a File,
        /// Where the bytes come from.
        buffer: Buffer<'a>,
        /// Where they go, in bytes.
        offset: u64,
        /// The data, and what is needed to find them, are durable before the operation completes
        /// (RWF_DSYNC).
        durable: bool,
        /// The file lies in memory, so that writing to it waits for no device: an engine may do it on
        /// the spot.
        in_memory: bool,
    },
    /// Makes what was written to the file durable (fdatasync).
    Sync {
        /// The file.
        file: &'a File,
    },
    /// fallocate(2).
    Allocate {
        /// The file.
        file: &'a File,
        /// FALLOC_FL_* bits.
        mode: i32,
        /// The range.
        extent: Extent,
    },
    /// Sends these parts, one behind the other, through a connected stream socket without
    /// `O_NONBLOCK`. Fewer bytes are sent only if the connection ends, the operation is cancelled, or
    /// there are more pieces than the kernel takes at once. No signal is raised if nobody listens.
    Send {
        /// The socket.
        socket: &'a File,
        /// Where the bytes come from.
        parts: &'a [Buffer<'a>],
    },
    /// Receives what comes through such a socket into these parts, one behind the other; 0 bytes
    /// mean that the other side has ended the connection.
    Receive {
        /// The socket.
        socket: &'a File,
        /// Where the bytes go.
        parts: &'a [Buffer<'a>],
        /// Waits until all parts are full, with the exceptions of [`Send`](Self::Send). Otherwise
        /// whatever there is will do.
        whole: bool,
    },
    /// Ends, with 0, after this time. The only operation that ends early if it is
    /// [forgotten](Engine::forget).
    Wait {
        /// How long, counted from when the kernel gets to know of it.
        time: Duration,
    },
}

/// Names an operation that was submitted and not yet taken back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ticket(pub u32);

/// The engine behind an [`Io`]: io_uring in a reactor, something simple in tests.
///
/// Every ticket is given back once, by a [`poll`](Engine::poll) that is ready or by
/// [`forget`](Engine::forget).
pub trait Engine {
    /// Starts an operation. The engine keeps the file and the memory alive until it has ended.
    fn submit(&self, operation: Operation<'_>) -> Ticket;

    /// Asks for the operation's result: bytes done, or the kernel's error.
    fn poll(&self, ticket: Ticket, context: &mut Context<'_>) -> Poll<io::Result<u32>>;

    /// Nobody waits for this operation any more. It still runs to its end, unless it is one that only
    /// [waits](Operation::Wait).
    fn forget(&self, ticket: Ticket);

    /// Runs `job` on one of a bounded number of threads.
    fn run_blocking(&self, job: Box<dyn FnOnce() + Send>);

    /// Page-aligned memory of at least `len` bytes for a request's own needs.
    ///
    /// # Errors
    /// Where there is no memory left.
    fn allocate(&self, len: usize) -> io::Result<OwnedBuffer>;
}

/// A backstore's way to the I/O engine of its reactor.
#[derive(Clone)]
pub struct Io {
    engine: Rc<dyn Engine>,
    external: Rc<Origin>,
}

impl Io {
    /// The way to `engine`.
    pub fn new(engine: Rc<dyn Engine>) -> Self {
        Self {
            engine,
            external: Rc::default(),
        }
    }

    /// Starts an operation. It runs even if the future is dropped.
    pub fn submit(&self, operation: Operation<'_>) -> IoFuture<'_> {
        IoFuture {
            engine: &*self.engine,
            ticket: Some(self.engine.submit(operation)),
        }
    }

    /// Starts an operation that several tasks take turns to wait for, with [`poll`](Self::poll). The
    /// ticket must be given back: by a poll that is ready, or by [`forget`](Self::forget).
    pub fn start(&self, operation: Operation<'_>) -> Ticket {
        self.engine.submit(operation)
    }

    /// Asks for the result of an operation; the task that asked last is woken when there is one.
    pub fn poll(&self, ticket: Ticket, context: &mut Context<'_>) -> Poll<io::Result<u32>> {
        self.engine.poll(ticket, context)
    }

    /// Gives up waiting for an operation, as if its future were dropped.
    pub fn forget(&self, ticket: Ticket) {
        self.engine.forget(ticket);
    }

    /// Fills the whole buffer from `offset` on.
    ///
    /// # Errors
    /// The kernel's; `UnexpectedEof` where the file ends before.
    pub async fn read_exact(&self, file: &File, buffer: Buffer<'_>, offset: u64) -> io::Result<()> {
        let mut done = 0;
        while done < buffer.len() {
            let rest = rest(&buffer, done)?;
            let at = offset.saturating_add(done as u64);
            let operation = Operation::Read {
                file,
                buffer: rest,
                offset: at,
            };
            match self.submit(operation).await {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(count) => done += count as usize,
                Err(error) if again(&error) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Writes the whole buffer at `offset`; `durable` as in [`Operation::Write`].
    ///
    /// # Errors
    /// The kernel's; `WriteZero` where it takes no more without saying why.
    pub async fn write_all(
        &self,
        file: &File,
        buffer: Buffer<'_>,
        offset: u64,
        durable: bool,
    ) -> io::Result<()> {
        self.write_parts(file, buffer, offset, (durable, false))
            .await
    }

    /// As [`write_all`](Self::write_all), for a file that lies in memory; see [`Operation::Write`].
    ///
    /// # Errors
    /// As there.
    pub async fn write_all_in_memory(
        &self,
        file: &File,
        buffer: Buffer<'_>,
        offset: u64,
        durable: bool,
    ) -> io::Result<()> {
        self.write_parts(file, buffer, offset, (durable, true))
            .await
    }

    /// Writes until everything is written.
    async fn write_parts(
        &self,
        file: &File,
        buffer: Buffer<'_>,
        offset: u64,
        (durable, in_memory): (bool, bool),
    ) -> io::Result<()> {
        let mut done = 0;
        while done < buffer.len() {
            let rest = rest(&buffer, done)?;
            let at = offset.saturating_add(done as u64);
            let operation = Operation::Write {
                file,
                buffer: rest,
                offset: at,
                durable,
                in_memory,
            };
            match self.submit(operation).await {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(count) => done += count as usize,
                Err(error) if again(&error) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Makes what was written to `file` durable.
    ///
    /// # Errors
    /// The kernel's. Linux reports a failed write-back once: data may be lost from then on.
    pub async fn sync(&self, file: &File) -> io::Result<()> {
        self.complete(Operation::Sync { file }).await
    }

    /// fallocate(2) with the FALLOC_FL_* bits of `mode`.
    ///
    /// # Errors
    /// The kernel's.
    pub async fn fallocate(&self, file: &File, mode: i32, extent: Extent) -> io::Result<()> {
        self.complete(Operation::Allocate { file, mode, extent })
            .await
    }

    /// Repeats an operation that has no parts until the kernel has a final answer.
    async fn complete(&self, operation: Operation<'_>) -> io::Result<()> {
        loop {
            match self.submit(operation).await {
                Ok(_) => return Ok(()),
                Err(error) if again(&error) => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Runs something that blocks on another thread and waits for its value.
    ///
    /// # Errors
    /// If the job panics.
    pub async fn blocking<T: Send + 'static>(
        &self,
        job: impl FnOnce() -> T + Send + 'static,
    ) -> io::Result<T> {
        let (sender, receiver) = oneshot::channel();
        self.engine.run_blocking(Box::new(move || {
            // The receiver is gone only if nobody waits for the value any more.
            let _ = sender.send(job());
        }));
        receiver
            .await
            .map_err(|_| io::Error::other("a blocking operation panicked"))
    }

    /// Begins an operation that somebody else does, such as a library with threads of its own; see
    /// the module [`external`](crate::external). `payload` is what has to live until it ends.
    pub fn external<T: Send + 'static>(&self, payload: T) -> (Completer, External<T>) {
        self.external.begin(payload)
    }

    /// How many external operations of this `Io` and its clones there are. Whoever runs backstores
    /// asks, before memory changes hands.
    pub fn external_work(&self) -> ExternalWork {
        self.external.work()
    }

    /// Page-aligned memory of exactly `len` bytes for a request's own needs; its bytes are zero.
    ///
    /// # Errors
    /// Where there is no memory left.
    pub fn allocate(&self, len: usize) -> io::Result<OwnedBuffer> {
        self.engine.allocate(len)
    }
}

impl std::fmt::Debug for Io {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Io").finish_non_exhaustive()
    }
}

/// What of `buffer` is still to do, as an operation's argument.
fn rest<'a>(buffer: &Buffer<'a>, done: usize) -> io::Result<Buffer<'a>> {
    buffer.slice(done..buffer.len()).map_err(io::Error::other)
}

/// Whether the kernel only asks to be asked again.
fn again(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock
    )
}

/// An operation under way; completes with the number of bytes done or the kernel's error.
pub struct IoFuture<'e> {
    engine: &'e dyn Engine,
    ticket: Option<Ticket>,
}

impl Future for IoFuture<'_> {
    type Output = io::Result<u32>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let Some(ticket) = self.ticket else {
            return Poll::Ready(Err(io::Error::other(
                "the operation was polled after its end",
            )));
        };
        let result = self.engine.poll(ticket, context);
        if result.is_ready() {
            self.ticket = None;
        }
        result
    }
}

impl Drop for IoFuture<'_> {
    fn drop(&mut self) {
        if let Some(ticket) = self.ticket {
            self.engine.forget(ticket);
        }
    }
}

impl std::fmt::Debug for IoFuture<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("IoFuture")
            .field("ticket", &self.ticket)
            .finish_non_exhaustive()
    }
}
