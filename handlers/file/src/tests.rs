//! Images of all kinds, on whatever the machine that runs the tests has.

mod devices;
mod files;
mod opening;
mod operations;

use std::path::Path;

use tcmu_handler::testing::{block_on, buffer, contents, io, scattered};
use tcmu_handler::{Backstore, Handler, OpenRequest, Result, WriteFlags};

use crate::{FileHandler, FileImage};

fn open(config: &str, size: u64, block_size: u32) -> Result<FileImage> {
    FileHandler.open(&OpenRequest {
        config: config.parse()?,
        size,
        block_size,
    })
}

/// The configuration string of a path.
fn config(path: &Path, options: &str) -> String {
    format!("{}{options}", path.to_str().unwrap())
}

fn write(image: &FileImage, byte: u8, len: usize, offset: u64, fua: bool) -> Result<()> {
    let bytes = scattered(&vec![byte; len], 4096);
    block_on(image.write(&io(), bytes.view(), offset, WriteFlags { fua }))
}

fn read(image: &FileImage, len: usize, offset: u64) -> Result<Vec<u8>> {
    let bytes = buffer(len);
    bytes.view().fill(0xee);
    block_on(image.read(&io(), bytes.view(), offset))?;
    Ok(contents(&bytes))
}

/// Says that a test could not be done.
fn skip(test: &str, why: &str) {
    eprintln!("skipped: {test}: {why}");
}
