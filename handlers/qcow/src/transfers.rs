//! Several transfers of one request at once, without an allocation.

use std::io;

use tcmu_handler::{Buffer, Error, ErrorKind, Io, IoFuture, Operation, Result};

use crate::fault::failed;
use crate::storage::Storage;

/// How many transfers of a request run at the same time.
const WIDTH: usize = 16;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    Read,
    Write { durable: bool },
}

struct Transfer<'a> {
    future: IoFuture<'a>,
    way: Way,
    storage: &'a Storage,
    buffer: Buffer<'a>,
    offset: u64,
}

/// The transfers of one request that are under way.
///
/// [`finish`](Self::finish) must be awaited before the request ends, also after an error: the
/// kernel uses the request's memory until then.
pub(crate) struct Transfers<'a> {
    io: &'a Io,
    running: [Option<Transfer<'a>>; WIDTH],
    oldest: usize,
    error: Option<Error>,
}

impl<'a> Transfers<'a> {
    pub(crate) fn new(io: &'a Io) -> Self {
        Self {
            io,
            running: [const { None }; WIDTH],
            oldest: 0,
            error: None,
        }
    }

    /// Starts filling `buffer` from `offset` on. What lies beyond the end of the file is zero.
    pub(crate) async fn read(&mut self, storage: &'a Storage, buffer: Buffer<'a>, offset: u64) {
        self.start(Way::Read, storage, buffer, offset).await;
    }

    /// Starts writing `buffer` at `offset`.
    pub(crate) async fn write(
        &mut self,
        storage: &'a Storage,
        buffer: Buffer<'a>,
        offset: u64,
        durable: bool,
    ) {
        self.start(Way::Write { durable }, storage, buffer, offset)
            .await;
    }

    async fn start(&mut self, way: Way, storage: &'a Storage, buffer: Buffer<'a>, offset: u64) {
        let place = self.oldest;
        if let Some(transfer) = self.running[place].take() {
            self.complete(transfer).await;
        }
        let future = self.io.submit(operation(way, storage, buffer, offset));
        self.running[place] = Some(Transfer {
            future,
            way,
            storage,
            buffer,
            offset,
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

    /// Waits for a transfer, and for what the kernel left of it.
    async fn complete(&mut self, transfer: Transfer<'a>) {
        let Transfer {
            future,
            way,
            storage,
            mut buffer,
            mut offset,
        } = transfer;
        let mut result = future.await;
        loop {
            let error = match result {
                Ok(0) if way == Way::Read => {
                    buffer.fill(0);
                    return;
                }
                Ok(0) => io::ErrorKind::WriteZero.into(),
                Ok(count) => {
                    let count = count as usize;
                    if count >= buffer.len() {
                        return;
                    }
                    offset += count as u64;
                    match buffer.slice(count..buffer.len()) {
                        Ok(rest) => buffer = rest,
                        Err(error) => return self.note(way, storage, io::Error::other(error)),
                    }
                    result = self
                        .io
                        .submit(operation(way, storage, buffer, offset))
                        .await;
                    continue;
                }
                Err(error) if again(&error) => {
                    result = self
                        .io
                        .submit(operation(way, storage, buffer, offset))
                        .await;
                    continue;
                }
                Err(error) => error,
            };
            return self.note(way, storage, error);
        }
    }

    fn note(&mut self, way: Way, storage: &Storage, error: io::Error) {
        let (kind, doing) = match way {
            Way::Read => (ErrorKind::Read, "reading"),
            Way::Write { .. } => (ErrorKind::Write, "writing"),
        };
        let error = failed(kind, doing, &storage.path, error);
        self.error.get_or_insert(error);
    }
}

/// Fills `buffer` from `offset` on. What lies beyond the end of the file is zero.
pub(crate) async fn read(
    io: &Io,
    storage: &Storage,
    buffer: Buffer<'_>,
    offset: u64,
) -> Result<()> {
    let mut transfers = Transfers::new(io);
    transfers.read(storage, buffer, offset).await;
    transfers.finish().await
}

/// Writes `buffer` at `offset`.
pub(crate) async fn write(
    io: &Io,
    storage: &Storage,
    buffer: Buffer<'_>,
    offset: u64,
    durable: bool,
) -> Result<()> {
    let mut transfers = Transfers::new(io);
    transfers.write(storage, buffer, offset, durable).await;
    transfers.finish().await
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
