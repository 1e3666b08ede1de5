//! A qcow2 image of somebody else's.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tcmu_handler::{
    AllowedPaths, Backstore, Config, Extent, Handler, Io, OpenRequest, WriteFlags, ZeroFlags,
    testing,
};
use tcmu_handler_qcow::{QcowHandler, QcowImage};
use tempfile::TempDir;

/// What is read and written of a disk, however large it says that it is.
const LOOKED_AT: u64 = 256 << 10;
/// An image grows by the clusters that are written to, and by those made ready for more.
const GROWTH: u64 = 64 << 20;

/// The bytes of an image file: it is refused and stays as it is, or it is served without a panic and
/// without growing out of bounds.
pub fn qcow(data: &[u8]) {
    let folder = folder();
    let path = folder.path().join("image");
    fs::write(&path, data).expect("a temporary file can be written");
    let Some(image) = open(&folder, ";readonly=on") else {
        assert!(open(&folder, "").is_none(), "it can be written, not read");
        assert_unchanged(&path, data);
        return;
    };
    let io = testing::io();
    read(&io, &image);
    for snapshot in image.snapshots() {
        if let Some(shown) = open(&folder, &format!(";snapshot={}", snapshot.id)) {
            read(&io, &shown);
        }
    }
    drop(image);
    assert_unchanged(&path, data);

    let Some(image) = open(&folder, "") else {
        assert_unchanged(&path, data);
        return;
    };
    change(&io, &image);
    drop(image);
    let file = fs::metadata(&path).expect("the file is still there");
    let (len, storage) = (file.len(), file.blocks() * 512);
    assert!(storage <= data.len() as u64 + GROWTH, "{storage} bytes");
    // A mapping may lead anywhere, and is followed as far as the refcounts go.
    let known = counted_end(data).max(data.len() as u64);
    assert!(len <= known + GROWTH, "a file of {len} bytes");
    if let Some(image) = open(&folder, ";readonly=on") {
        read(&io, &image);
    }
}

/// In memory where that is possible: each run flushes.
fn folder() -> TempDir {
    tempfile::tempdir_in("/dev/shm")
        .or_else(|_| tempfile::tempdir())
        .expect("a temporary folder")
}

/// Opens the image; its header leads to no file outside of the folder.
fn open(folder: &TempDir, options: &str) -> Option<QcowImage> {
    let path: PathBuf = folder.path().join("image");
    let mut config: Config = format!("{}{options}", path.display()).parse().ok()?;
    let allowed = AllowedPaths::new([folder.path().to_owned()]);
    config.restrict(Arc::new(allowed)).ok()?;
    let request = OpenRequest {
        config,
        size: 512,
        block_size: 512,
    };
    QcowHandler.open(&request).ok()
}

/// The end of the last cluster that the refcounts of an image count.
fn counted_end(image: &[u8]) -> u64 {
    let number = |at: u64, len: usize| {
        let bytes = (at as usize..).take(len).map(|at| image.get(at));
        bytes.fold(0, |value: u64, byte| {
            value << 8 | u64::from(byte.copied().unwrap_or(0))
        })
    };
    let bits = number(20, 4);
    let width = match number(4, 4) {
        2 => 16,
        _ => 1 << number(96, 4),
    };
    let (table, len) = (number(48, 8), number(56, 4) << bits);
    let in_file = (image.len() as u64).saturating_sub(table).min(len);
    let mut end = 0;
    for entry in 0..in_file / 8 {
        let block = (number(table + entry * 8, 8) & !0x1ff) as usize;
        let rest = image.get(block..).unwrap_or(&[]);
        let counts = &rest[..rest.len().min(1 << bits)];
        if block != 0
            && let Some(last) = counts.iter().rposition(|byte| *byte != 0)
        {
            let per_block = (8 << bits) / width;
            let counted = ((last as u64 + 1) * 8).div_ceil(width);
            end = end.max((entry * per_block + counted) << bits);
        }
    }
    end
}

fn assert_unchanged(path: &Path, data: &[u8]) {
    let now = fs::read(path).expect("the file is still there");
    assert!(
        now == data,
        "an image was changed that was not to be written"
    );
}

/// Reads the beginning and the end; what fails, fails.
fn read(io: &Io, image: &QcowImage) {
    let size = image.capabilities().size;
    let len = size.min(LOOKED_AT);
    let buffer = testing::buffer(len as usize);
    for offset in [0, size - len] {
        let _ = testing::block_on(image.read(io, buffer.view(), offset));
    }
    let all = Extent {
        offset: 0,
        len: size,
    };
    let _ = testing::block_on(image.block_status(io, all));
}

/// All kinds of requests, some within a cluster and some over many.
fn change(io: &Io, image: &QcowImage) {
    let size = image.capabilities().size;
    let len = size.min(LOOKED_AT);
    let (block, half) = (512, (len / 1024 * 512).max(512));
    let data = testing::scattered(&vec![0x5a; len as usize], 4096);
    let part = |len: u64| data.view().slice(0..len as usize).unwrap_or(data.view());
    let last = size - block;
    testing::block_on(async {
        for (offset, len, fua) in [
            (0, block, false),
            (last, block, true),
            (len / 3 / 512 * 512, block, false),
            (0, half, false),
        ] {
            let _ = image.write(io, part(len), offset, WriteFlags { fua }).await;
        }
        let _ = image.flush(io).await;
        let extent = Extent {
            offset: block.min(last),
            len: half.min(size - block.min(last)),
        };
        let _ = image.unmap(io, extent).await;
        let flags = ZeroFlags {
            fua: true,
            may_unmap: false,
        };
        let _ = image.write_zeroes(io, extent, flags).await;
        let _ = image
            .write(io, part(len), size - len, WriteFlags::default())
            .await;
        let _ = image.resize(io, size.saturating_add(1 << 20)).await;
        let _ = image.close(io).await;
    });
}
