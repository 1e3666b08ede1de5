//! Regular files: bytes, space, and what happens when the storage below changes or ends.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Command;

use proptest::prelude::*;
use tcmu_handler::testing::{Disk, Step, block_on, io, steps};
use tcmu_handler::{Backstore, ErrorKind, Extent, Fua, ZeroFlags};
use tempfile::{TempDir, tempdir, tempdir_in};

use super::{config, open, read, skip, write};
use crate::FileImage;

const BLOCKS: u64 = 64;
const BLOCK: u32 = 4096;
const SIZE: u64 = BLOCKS * BLOCK as u64;

/// A fresh image in `dir`.
fn image(dir: &TempDir, options: &str) -> FileImage {
    let path = dir.path().join("image");
    let _ = fs::remove_file(&path);
    open(&config(&path, &format!(";create=on{options}")), SIZE, BLOCK).unwrap()
}

fn model(dir: &TempDir, options: &str, steps: &[Step]) {
    let image = image(dir, options);
    Disk::new(BLOCKS, BLOCK).run(&image, steps);
    block_on(image.close(&io())).unwrap();
}

/// Whether direct I/O works where temporary files are; says so if not.
fn has_direct_io(test: &str, dir: &TempDir) -> bool {
    let path = dir.path().join("probe");
    match open(&config(&path, ";create=on;direct=on"), SIZE, BLOCK) {
        Ok(_) => true,
        Err(error) => {
            skip(test, &error.to_string());
            false
        }
    }
}

/// A directory on tmpfs, which knows less of fallocate(2) than the file systems of disks.
fn on_tmpfs(test: &str) -> Option<TempDir> {
    let shm = Path::new("/dev/shm");
    let tmpfs = rustix::fs::statfs(shm).is_ok_and(|found| found.f_type == 0x0102_1994);
    if !tmpfs {
        skip(test, "/dev/shm is not a tmpfs");
        return None;
    }
    tempdir_in(shm)
        .map_err(|error| skip(test, &error.to_string()))
        .ok()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn a_buffered_file_is_a_disk(steps in steps(BLOCKS, 16)) {
        model(&tempdir().unwrap(), "", &steps);
    }

    #[test]
    fn a_direct_file_is_a_disk(steps in steps(BLOCKS, 16)) {
        let dir = tempdir().unwrap();
        if has_direct_io("a_direct_file_is_a_disk", &dir) {
            model(&dir, ";direct=on", &steps);
        }
    }

    #[test]
    fn a_file_without_zero_range_is_a_disk(steps in steps(BLOCKS, 16)) {
        if let Some(dir) = on_tmpfs("a_file_without_zero_range_is_a_disk") {
            model(&dir, "", &steps);
        }
    }
}

fn status(image: &FileImage, block: u64, blocks: u64) -> (u64, bool) {
    let unit = u64::from(BLOCK);
    let extent = Extent {
        offset: block * unit,
        len: blocks * unit,
    };
    let status = block_on(image.block_status(&io(), extent)).unwrap();
    assert_eq!(status.len % unit, 0);
    (status.len / unit, status.mapped)
}

#[test]
fn holes_are_known() {
    let dir = tempdir().unwrap();
    let image = image(&dir, "");
    if status(&image, 0, BLOCKS) == (BLOCKS, true) {
        return skip("holes_are_known", "the file system does not tell");
    }
    assert_eq!(status(&image, 0, BLOCKS), (BLOCKS, false));
    // Far enough apart for any file system's blocks.
    write(&image, 1, BLOCK as usize * 16, 16 * u64::from(BLOCK), false).unwrap();
    assert_eq!(status(&image, 0, BLOCKS), (16, false));
    assert_eq!(status(&image, 3, 5), (5, false));
    assert_eq!(status(&image, 16, BLOCKS - 16), (16, true));
    assert_eq!(status(&image, 20, 4), (4, true));
    assert_eq!(status(&image, 32, 32), (32, false));
    // The image has shrunk.
    let file = OpenOptions::new()
        .write(true)
        .open(dir.path().join("image"));
    file.unwrap().set_len(u64::from(BLOCK)).unwrap();
    assert_eq!(status(&image, 20, 4), (4, false));
}

#[test]
fn reading_ahead_changes_nothing() {
    let dir = tempdir().unwrap();
    let image = image(&dir, "");
    write(&image, 1, BLOCK as usize, 0, false).unwrap();
    let extent = Extent {
        offset: 0,
        len: SIZE,
    };
    block_on(image.prefetch(&io(), extent)).unwrap();
    assert_eq!(
        read(&image, BLOCK as usize, 0).unwrap(),
        [1; BLOCK as usize]
    );
}

#[test]
fn direct_io_goes_around_the_page_cache() {
    let dir = tempdir().unwrap();
    if !has_direct_io("direct_io_goes_around_the_page_cache", &dir) {
        return;
    }
    let flags = |options| {
        let image = image(&dir, options);
        rustix::fs::fcntl_getfl(image.opened()).unwrap()
    };
    assert!(flags(";direct=on").contains(rustix::fs::OFlags::DIRECT));
    assert!(!flags(";direct=off").contains(rustix::fs::OFlags::DIRECT));
    assert!(!flags("").contains(rustix::fs::OFlags::DIRECT));
}

fn blocks_of(dir: &TempDir) -> u64 {
    fs::metadata(dir.path().join("image")).unwrap().blocks()
}

fn unmaps_truly(dir: &TempDir) {
    let image = image(dir, "");
    let capabilities = image.capabilities();
    let Some(unmap) = capabilities.unmap else {
        return skip("unmapping", "the file system punches no holes");
    };
    assert!(unmap.reads_zeroes && capabilities.write_zeroes);
    assert!(unmap.granularity >= capabilities.block_size.into());
    write(&image, 7, SIZE as usize, 0, true).unwrap();
    let full = blocks_of(dir);
    let half = Extent {
        offset: SIZE / 2,
        len: SIZE / 2,
    };
    block_on(image.unmap(&io(), half)).unwrap();
    assert!(
        blocks_of(dir) <= full - half.len / 512,
        "{}",
        blocks_of(dir)
    );
    assert_eq!(read(&image, 4096, SIZE / 2 - 4096).unwrap(), [7; 4096]);
    assert_eq!(
        read(&image, half.len as usize, half.offset).unwrap(),
        vec![0; half.len as usize]
    );

    write(&image, 7, SIZE as usize, 0, true).unwrap();
    let zero = |may_unmap| {
        let flags = ZeroFlags {
            fua: true,
            may_unmap,
        };
        block_on(image.write_zeroes(&io(), half, flags)).unwrap();
        assert_eq!(read(&image, 4096, SIZE - 4096).unwrap(), [0; 4096]);
        blocks_of(dir)
    };
    assert!(
        zero(false) >= full,
        "zeroing without unmapping gave storage back"
    );
    assert!(zero(true) <= full - half.len / 512);
    assert_eq!(read(&image, 4096, SIZE / 2 - 4096).unwrap(), [7; 4096]);
    assert_eq!(image.capabilities().size, SIZE);
}

#[test]
fn unmapping_gives_storage_back_and_reads_zeroes() {
    unmaps_truly(&tempdir().unwrap());
}

#[test]
fn unmapping_works_without_zero_range_too() {
    if let Some(dir) = on_tmpfs("unmapping_works_without_zero_range_too") {
        unmaps_truly(&dir);
    }
}

#[test]
fn opening_an_image_changes_none_of_it() {
    let dir = tempdir().unwrap();
    let path = dir.path().join("image");
    // Not a multiple of any block: the hole that is tried must not reach into the last one.
    let bytes: Vec<u8> = (0..SIZE as usize - 1000).map(|at| at as u8 | 1).collect();
    fs::write(&path, &bytes).unwrap();
    let before = fs::metadata(&path).unwrap().blocks();
    drop(open(&config(&path, ""), SIZE - 4096, 512).unwrap());
    assert_eq!(fs::read(&path).unwrap(), bytes);
    assert_eq!(fs::metadata(&path).unwrap().blocks(), before);
}

#[test]
fn says_what_a_file_is_like() {
    let dir = tempdir().unwrap();
    let capabilities = image(&dir, "").capabilities();
    assert_eq!(capabilities.block_size, 512);
    assert!(capabilities.physical_block_size.is_power_of_two());
    assert!((512..=4096).contains(&capabilities.physical_block_size));
    assert!(capabilities.volatile_cache && !capabilities.read_only);
    assert_eq!(capabilities.fua, Fua::Native);
}

#[test]
fn grows_when_asked_to_and_never_shrinks() {
    let dir = tempdir().unwrap();
    let image = image(&dir, "");
    let len = || fs::metadata(dir.path().join("image")).unwrap().len();
    write(&image, 7, 4096, SIZE - 4096, false).unwrap();
    block_on(image.resize(&io(), 2 * SIZE)).unwrap();
    assert_eq!((image.capabilities().size, len()), (2 * SIZE, 2 * SIZE));
    write(&image, 8, 4096, 2 * SIZE - 4096, false).unwrap();
    block_on(image.resize(&io(), SIZE / 2)).unwrap();
    assert_eq!((image.capabilities().size, len()), (2 * SIZE, 2 * SIZE));
    assert_eq!(read(&image, 4096, SIZE - 4096).unwrap(), [7; 4096]);
    assert_eq!(read(&image, 4096, 2 * SIZE - 4096).unwrap(), [8; 4096]);
}

#[test]
fn a_file_that_shrinks_is_an_error_where_it_is_missing() {
    let dir = tempdir().unwrap();
    let image = image(&dir, "");
    write(&image, 7, SIZE as usize, 0, false).unwrap();
    let other = OpenOptions::new()
        .write(true)
        .open(dir.path().join("image"))
        .unwrap();
    other.set_len(SIZE / 2 + 100).unwrap();
    for (len, offset) in [(4096, SIZE / 2), (8192, SIZE - 8192), (SIZE as usize, 0)] {
        let error = read(&image, len, offset).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Read, "{error}");
        assert!(error.to_string().contains("shrunk"), "{error}");
    }
    assert_eq!(read(&image, 4096, SIZE / 2 - 4096).unwrap(), [7; 4096]);
}

#[test]
fn a_direct_file_that_shrinks_is_an_error_too() {
    let dir = tempdir().unwrap();
    if !has_direct_io("a_direct_file_that_shrinks_is_an_error_too", &dir) {
        return;
    }
    let image = image(&dir, ";direct=on");
    let path = dir.path().join("image");
    let other = OpenOptions::new().write(true).open(path).unwrap();
    other.set_len(SIZE / 2 + 100).unwrap();
    for (len, offset) in [(4096, SIZE / 2), (8192, SIZE - 8192), (SIZE as usize, 0)] {
        let error = read(&image, len, offset).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Read, "{error}");
    }
}

/// A file system of 128 KiB, gone with the value.
struct SmallDisk(TempDir);

impl SmallDisk {
    fn mount() -> Result<Self, String> {
        let dir = tempdir().map_err(|error| error.to_string())?;
        let mount = Command::new("mount")
            .args(["-t", "tmpfs", "-o", "size=128k", "tmpfs"])
            .arg(dir.path())
            .output()
            .map_err(|error| format!("mount: {error}"))?;
        if mount.status.success() {
            Ok(Self(dir))
        } else {
            Err(String::from_utf8_lossy(&mount.stderr).trim().to_owned())
        }
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(self.0.path()).status();
    }
}

#[test]
fn a_full_disk_is_no_space() {
    let disk = match SmallDisk::mount() {
        Ok(disk) => disk,
        Err(why) => return skip("a_full_disk_is_no_space", &why),
    };
    let image = image(&disk.0, "");
    write(&image, 7, 64 << 10, 0, false).unwrap();
    let error = write(&image, 7, 128 << 10, 64 << 10, false).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NoSpace, "{error}");
    let keep = ZeroFlags::default();
    let all = Extent {
        offset: 0,
        len: SIZE,
    };
    let error = block_on(image.write_zeroes(&io(), all, keep)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NoSpace, "{error}");
    block_on(image.unmap(&io(), all)).unwrap();
    write(&image, 8, 64 << 10, 128 << 10, false).unwrap();
    assert_eq!(read(&image, 64 << 10, 128 << 10).unwrap(), [8; 64 << 10]);
}

#[test]
fn direct_io_is_tried_where_the_file_system_does_not_tell() {
    let Some(dir) = on_tmpfs("direct_io_is_tried_where_the_file_system_does_not_tell") else {
        return;
    };
    let path = dir.path().join("image");
    match open(&config(&path, ";create=on;direct=on"), SIZE, BLOCK) {
        Ok(image) => {
            let least = image.capabilities().block_size;
            assert!(least.is_power_of_two() && (512..=BLOCK).contains(&least));
            write(&image, 7, least as usize, least.into(), true).unwrap();
            let bytes = read(&image, 2 * least as usize, 0).unwrap();
            assert_eq!(bytes[least as usize..], vec![7; least as usize]);
        }
        // Before Linux 6.6.
        Err(error) => {
            assert_eq!(error.kind(), ErrorKind::InvalidConfig, "{error}");
            assert!(error.to_string().contains("direct=off"), "{error}");
            assert!(!path.exists());
        }
    }
}

#[test]
fn usage_is_what_the_file_takes() {
    let dir = tempdir().unwrap();
    let image = image(&dir, "");
    assert!(image.capabilities().usage);
    let usage = || block_on(image.usage(&io())).unwrap();
    let empty = usage();
    assert!(empty.used < SIZE && empty.available > 0);
    write(&image, 7, SIZE as usize, 0, false).unwrap();
    block_on(image.flush(&io())).unwrap();
    assert!(usage().used >= SIZE);
    let extent = Extent {
        offset: 0,
        len: SIZE,
    };
    block_on(image.unmap(&io(), extent)).unwrap();
    assert!(usage().used < SIZE);
}
