//! Transfers between a request's memory and the files: one, or several at once.

use std::io;
use std::ops::Range;

use tcmu_handler::{Buffer, Error, ErrorKind, Io, IoFuture, Operation, Result};

use crate::fault::failed;
use crate::storage::Storage;

/// How many transfers of a request run at the same time.
const WIDTH: usize = 16;

/// Where the bytes go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    /// To memory.
    Read,
    /// To the file; with `durable`, they are durable afterwards.
    Write { durable: bool },
}

/// A transfer that is under way.
struct Transfer<'a> {
    future: IoFuture<'a>,
    storage: &'a Storage,
    offset: u64,
    part: Range<usize>,
    way: Way,
}

/// The transfers of one request that are under way.
///
/// [`finish`](Self::finish) must be awaited before the request ends, also after an error: the
/// kernel uses the request's memory until then.
pub(crate) struct Transfers<'a> {
    io: &'a Io,
    /// The memory that all of them are parts of.
    buffer: Buffer<'a>,
    running: [Option<Transfer<'a>>; WIDTH],
    oldest: usize,
    error: Option<Error>,
}

impl<'a> Transfers<'a> {
    /// Transfers of parts of `buffer`.
    pub(crate) fn new(io: &'a Io, buffer: Buffer<'a>) -> Self {
        Self {
            io,
            buffer,
            running: [const { None }; WIDTH],
            oldest: 0,
            error: None,
        }
    }

    /// Starts filling a part of the buffer from `offset` on. What lies beyond the end of the file is
    /// zero.
    pub(crate) async fn read(&mut self, storage: &'a Storage, part: Range<usize>, offset: u64) {
        self.start(Way::Read, storage, part, offset).await;
    }

    /// Starts writing a part of the buffer at `offset`.
    pub(crate) async fn write(
        &mut self,
        storage: &'a Storage,
        part: Range<usize>,
        offset: u64,
        durable: bool,
    ) {
        self.start(Way::Write { durable }, storage, part, offset)
            .await;
    }

    async fn start(&mut self, way: Way, storage: &'a Storage, part: Range<usize>, offset: u64) {
        let place = self.oldest;
        if let Some(transfer) = self.running[place].take() {
            self.complete(transfer).await;
        }
        let buffer = self.part(&part);
        let future = self.io.submit(operation(way, storage, buffer, offset));
        self.running[place] = Some(Transfer {
            future,
            storage,
            offset,
            part,
            way,
        });
        self.oldest = (place + 1) % WIDTH;
    }

    /// Waits for all transfers; returns the first error.
    pub(crate) async fn finish(&mut self) -> Result<()> {
        for step in 0..WIDTH {
            let place = (self.oldest + step) % WIDTH;
            if let Some(transfer) = self.running[place].take() {
                self.complete(transfer).await;
            }
        }
        self.error.take().map_or(Ok(()), Err)
    }

    async fn complete(&mut self, transfer: Transfer<'a>) {
        let Transfer {
            future,
            storage,
            offset,
            part,
            way,
        } = transfer;
        let buffer = self.part(&part);
        let result = future.await;
        if let Err(error) = complete(self.io, way, storage, buffer, offset, result).await {
            self.error.get_or_insert(error);
        }
    }

    fn part(&self, part: &Range<usize>) -> Buffer<'a> {
        self.buffer.slice(part.clone()).unwrap_or(self.buffer)
    }
}

/// Fills `buffer` from `offset` on. What lies beyond the end of the file is zero.
pub(crate) async fn read(
    io: &Io,
    storage: &Storage,
    buffer: Buffer<'_>,
    offset: u64,
) -> Result<()> {
    let result = start(io, Way::Read, storage, buffer, offset).await;
    complete(io, Way::Read, storage, buffer, offset, result).await
}

/// Writes `buffer` at `offset`.
pub(crate) async fn write(
    io: &Io,
    storage: &Storage,
    buffer: Buffer<'_>,
    offset: u64,
    durable: bool,
) -> Result<()> {
    let way = Way::Write { durable };
    let result = start(io, way, storage, buffer, offset).await;
    complete(io, way, storage, buffer, offset, result).await
}

/// Starts a transfer whose result needs no more, as a rule: what [is whole](is_whole) is done, and
/// [`complete`] does the rest of all others.
pub(crate) fn start<'a>(
    io: &'a Io,
    way: Way,
    storage: &Storage,
    buffer: Buffer<'_>,
    offset: u64,
) -> IoFuture<'a> {
    io.submit(operation(way, storage, buffer, offset))
}

/// Whether a transfer has done all that it was to do.
pub(crate) fn is_whole(result: &io::Result<u32>, buffer: &Buffer<'_>) -> bool {
    matches!(result, Ok(count) if *count as usize >= buffer.len())
}

/// Sees to what the kernel has left of a transfer.
pub(crate) async fn complete(
    io: &Io,
    way: Way,
    storage: &Storage,
    mut buffer: Buffer<'_>,
    mut offset: u64,
    mut result: io::Result<u32>,
) -> Result<()> {
    loop {
        let error = match result {
            _ if is_whole(&result, &buffer) => return Ok(()),
            Ok(0) if way == Way::Read => {
                buffer.fill(0);
                return Ok(());
            }
            Ok(0) => io::ErrorKind::WriteZero.into(),
            Ok(count) => {
                let count = count as usize;
                offset += count as u64;
                buffer = buffer.slice(count..buffer.len()).unwrap_or(buffer);
                result = io.submit(operation(way, storage, buffer, offset)).await;
                continue;
            }
            Err(error) if again(&error) => {
                result = io.submit(operation(way, storage, buffer, offset)).await;
                continue;
            }
            Err(error) => error,
        };
        let (kind, doing) = match way {
            Way::Read => (ErrorKind::Read, "reading"),
            Way::Write { .. } => (ErrorKind::Write, "writing"),
        };
        return Err(failed(kind, doing, &storage.path, error));
    }
}

fn operation<'a>(way: Way, storage: &'a Storage, buffer: Buffer<'a>, offset: u64) -> Operation<'a> {
    let file = &storage.file;
    match way {
        Way::Read => Operation::Read {
            file,
            buffer,
            offset,
        },
        Way::Write { durable } => Operation::Write {
            file,
            buffer,
            offset,
            durable,
            in_memory: false,
        },
    }
}

/// Whether the kernel only asks to be asked again.
fn again(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock
    )
}
