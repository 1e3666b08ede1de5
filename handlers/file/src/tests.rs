//! Images of all kinds, on whatever the machine that runs the tests has.

mod devices;
mod files;
mod opening;
mod operations;

use std::fs::File;
use std::path::Path;

use tcmu_handler::testing::{Contract, Image, block_on, buffer, contents, io, scattered};
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

/// An image for the contract's tests, with these options; none where it cannot be opened so.
fn contract(options: &'static str, block_size: u32) -> Contract<FileHandler> {
    const SIZE: u64 = 4 << 20;
    let make = move |folder: &Path| {
        let path = folder.join("image");
        let file = File::create(&path);
        file.and_then(|file| file.set_len(SIZE)).unwrap();
        let config = config(&path, options);
        match open(&config, SIZE, block_size) {
            Ok(_) => Image::from(config),
            Err(error) => Image::missing(error.to_string()),
        }
    };
    let contract = Contract::new(FileHandler, make).size(SIZE);
    contract.block_size(block_size).read_only(";readonly=on")
}

tcmu_handler::contract_tests!(contract_buffered: contract("", 512));
tcmu_handler::contract_tests!(contract_direct: contract(";direct=on", 4096));
