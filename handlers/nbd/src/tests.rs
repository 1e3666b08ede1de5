//! The handler against servers that follow a script, and against real ones.

mod fake;
mod handshakes;
mod outages;
mod real;
mod replies;
mod server;
mod tls;
mod workload;

use std::path::Path;

use tcmu_handler::testing::{block_on, buffer, contents, scattered};
use tcmu_handler::{Backstore, ErrorKind, Handler, Io, OpenRequest, Result, WriteFlags};

use crate::{NbdHandler, NbdImage};

/// Opens an image that lies behind a Unix socket.
fn open(socket: &Path, options: &str, size: u64) -> Result<NbdImage> {
    NbdHandler.open(&OpenRequest {
        config: format!("unix:{}{options}", socket.display()).parse()?,
        size,
        block_size: 512,
    })
}

fn write(image: &NbdImage, io: &Io, byte: u8, len: usize, offset: u64) -> Result<()> {
    let bytes = scattered(&vec![byte; len], 4096);
    block_on(image.write(io, bytes.view(), offset, WriteFlags::default()))
}

fn read(image: &NbdImage, io: &Io, len: usize, offset: u64) -> Result<Vec<u8>> {
    let bytes = buffer(len);
    bytes.view().fill(0xee);
    block_on(image.read(io, bytes.view(), offset))?;
    Ok(contents(&bytes))
}

/// Asks until the server answers in time, which a busy machine's may not at first.
fn until_answered<T>(ask: impl Fn() -> Result<T>) -> T {
    loop {
        match ask() {
            Ok(answer) => return answer,
            Err(error) => assert_eq!(error.kind(), ErrorKind::TimedOut, "{error}"),
        }
    }
}
