//! Block devices: loop devices, where the machine has them.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::process::Command;

use proptest::prelude::*;
use tcmu_handler::testing::{Disk, block_on, io, steps};
use tcmu_handler::{Backstore, ErrorKind, Extent, Handler};
use tempfile::{TempDir, tempdir};

use super::{config, open, read, skip, write};
use crate::FileHandler;

const SIZE: u64 = 1 << 20;

/// A loop device on a sparse file of [`SIZE`] bytes, detached with the value.
struct Loop {
    device: PathBuf,
    dir: TempDir,
}

impl Loop {
    /// Attaches one, or says why `test` is skipped.
    fn attach(test: &str, options: &[&str]) -> Option<Self> {
        Self::try_attach(options)
            .map_err(|why| skip(test, &why))
            .ok()
    }

    fn try_attach(options: &[&str]) -> Result<Self, String> {
        let dir = tempdir().map_err(|error| error.to_string())?;
        let file = dir.path().join("file");
        File::create(&file)
            .and_then(|file| file.set_len(SIZE))
            .map_err(|error| error.to_string())?;
        let losetup = Command::new("losetup")
            .args(["--find", "--show"])
            .args(options)
            .arg(&file)
            .output()
            .map_err(|error| format!("losetup: {error}"))?;
        if !losetup.status.success() {
            return Err(String::from_utf8_lossy(&losetup.stderr).trim().to_owned());
        }
        let device = String::from_utf8_lossy(&losetup.stdout).trim().into();
        Ok(Self { device, dir })
    }

    fn config(&self, options: &str) -> String {
        config(&self.device, options)
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = Command::new("losetup").arg("-d").arg(&self.device).status();
    }
}

fn file_blocks(device: &Loop) -> u64 {
    std::fs::metadata(device.dir.path().join("file"))
        .unwrap()
        .blocks()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(8))]

    #[test]
    fn a_device_is_a_disk(steps in steps(SIZE / 512, 64)) {
        if let Some(device) = Loop::attach("a_device_is_a_disk", &[]) {
            let image = open(&device.config(""), SIZE, 512).unwrap();
            Disk::new(SIZE / 512, 512).run(&image, &steps);
            block_on(image.close(&io())).unwrap();
        }
    }

    #[test]
    fn a_buffered_device_is_a_disk(steps in steps(SIZE / 4096, 16)) {
        if let Some(device) = Loop::attach("a_buffered_device_is_a_disk", &["-b", "4096"]) {
            let image = open(&device.config(";direct=off"), SIZE, 4096).unwrap();
            Disk::new(SIZE / 4096, 4096).run(&image, &steps);
            block_on(image.close(&io())).unwrap();
        }
    }
}

#[test]
fn a_device_has_its_own_sectors_and_size() {
    let Some(device) = Loop::attach("a_device_has_its_own_sectors_and_size", &["-b", "4096"])
    else {
        return;
    };
    let image = open(&device.config(""), SIZE, 4096).unwrap();
    let capabilities = image.capabilities();
    assert_eq!(capabilities.size, SIZE);
    assert_eq!(capabilities.block_size, 4096);
    assert!(capabilities.physical_block_size >= 4096);
    let flags = rustix::fs::fcntl_getfl(image.opened()).unwrap();
    assert!(flags.contains(rustix::fs::OFlags::DIRECT));
    drop(image);
    for options in ["", ";direct=off", ";readonly=on"] {
        let error = open(&device.config(options), SIZE, 512)
            .map(drop)
            .unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidConfig, "{error}");
        assert!(error.to_string().contains("4096"), "{error}");
    }
    let error = open(&device.config(""), SIZE + 4096, 4096)
        .map(drop)
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::OutOfRange, "{error}");
}

#[test]
fn a_writable_device_is_held_alone() {
    let Some(device) = Loop::attach("a_writable_device_is_held_alone", &[]) else {
        return;
    };
    let image = open(&device.config(""), SIZE, 512).unwrap();
    let error = open(&device.config(""), SIZE, 512).map(drop).unwrap_err();
    assert_eq!(
        (error.kind(), error.errno()),
        (ErrorKind::InUse, 16),
        "{error}"
    );
    let beside = open(&device.config(";readonly=on"), SIZE, 512).unwrap();
    drop(image);
    open(&device.config(""), SIZE, 512).unwrap();
    assert_eq!(read(&beside, 512, 0).unwrap(), [0; 512]);
}

#[test]
fn a_device_that_can_only_be_read_wants_to_be_asked_so() {
    let test = "a_device_that_can_only_be_read_wants_to_be_asked_so";
    let Some(device) = Loop::attach(test, &["-r"]) else {
        return;
    };
    for options in ["", ";create=on"] {
        let error = open(&device.config(options), SIZE, 512)
            .map(drop)
            .unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ReadOnly, "{error}");
        assert!(error.to_string().contains("readonly=on"), "{error}");
        let config = device.config(options).parse().unwrap();
        let error = FileHandler.check(&config).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ReadOnly, "{error}");
    }
    let config = device.config(";readonly=on");
    FileHandler.check(&config.parse().unwrap()).unwrap();
    let image = open(&config, SIZE, 512).unwrap();
    assert!(image.capabilities().read_only);
    assert_eq!(image.capabilities().unmap, None);
    assert!(!image.capabilities().write_zeroes);
}

#[test]
fn unmapping_a_device_gives_storage_back_and_reads_zeroes() {
    let test = "unmapping_a_device_gives_storage_back_and_reads_zeroes";
    let Some(device) = Loop::attach(test, &[]) else {
        return;
    };
    let image = open(&device.config(""), SIZE, 512).unwrap();
    assert!(image.capabilities().write_zeroes);
    let Some(unmap) = image.capabilities().unmap else {
        return skip(test, "the device does not give storage back");
    };
    assert!(unmap.reads_zeroes);
    write(&image, 7, SIZE as usize, 0, true).unwrap();
    let full = file_blocks(&device);
    let half = Extent {
        offset: SIZE / 2,
        len: SIZE / 2,
    };
    block_on(image.unmap(&io(), half)).unwrap();
    block_on(image.flush(&io())).unwrap();
    assert!(file_blocks(&device) <= full - half.len / 512);
    assert_eq!(read(&image, 4096, SIZE / 2 - 4096).unwrap(), [7; 4096]);
    assert_eq!(read(&image, 4096, SIZE / 2).unwrap(), [0; 4096]);
}

#[test]
fn a_device_is_as_large_as_it_is() {
    let Some(device) = Loop::attach("a_device_is_as_large_as_it_is", &[]) else {
        return;
    };
    let image = open(&device.config(""), SIZE, 512).unwrap();
    let error = block_on(image.resize(&io(), 2 * SIZE)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::OutOfRange, "{error}");
    assert_eq!(image.capabilities().size, SIZE);
    let file = device.dir.path().join("file");
    let file = OpenOptions::new().write(true).open(file).unwrap();
    file.set_len(2 * SIZE).unwrap();
    let losetup = Command::new("losetup")
        .arg("-c")
        .arg(&device.device)
        .status();
    assert!(losetup.unwrap().success());
    block_on(image.resize(&io(), 2 * SIZE)).unwrap();
    assert_eq!(image.capabilities().size, 2 * SIZE);
    write(&image, 7, 4096, 2 * SIZE - 4096, false).unwrap();
}

/// A file system whose direct I/O takes 4096 bytes at least, gone with the value.
struct LargeSectors {
    mounted: TempDir,
    device: Loop,
}

impl LargeSectors {
    fn mount(test: &str) -> Option<Self> {
        let device = Loop::attach(test, &["-b", "4096"])?;
        let mounted = tempdir().unwrap();
        let run = |command: &mut Command| match command.output() {
            Ok(output) if output.status.success() => true,
            Ok(output) => {
                skip(test, String::from_utf8_lossy(&output.stderr).trim());
                false
            }
            Err(error) => {
                skip(test, &format!("{command:?}: {error}"));
                false
            }
        };
        let done = run(Command::new("mkfs.ext4").arg("-q").arg(&device.device))
            && run(Command::new("mount")
                .arg(&device.device)
                .arg(mounted.path()));
        done.then_some(Self { mounted, device })
    }
}

impl Drop for LargeSectors {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(self.mounted.path()).status();
    }
}

#[test]
fn direct_io_sets_the_least_block_size() {
    let Some(disk) = LargeSectors::mount("direct_io_sets_the_least_block_size") else {
        return;
    };
    let path = disk.mounted.path().join("image");
    let direct = config(&path, ";create=on;direct=on");
    let error = open(&direct, 65536, 512).map(drop).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidConfig, "{error}");
    assert!(error.to_string().contains("direct=off"), "{error}");
    assert!(!path.exists());
    let image = open(&direct, 65536, 4096).unwrap();
    assert_eq!(image.capabilities().block_size, 4096);
    write(&image, 7, 4096, 4096, true).unwrap();
    assert_eq!(read(&image, 8192, 0).unwrap()[4096..], [7; 4096]);
    drop(image);
    open(&config(&path, ""), 65536, 512).unwrap();
}

#[test]
fn a_mounted_device_is_in_use() {
    let Some(disk) = LargeSectors::mount("a_mounted_device_is_in_use") else {
        return;
    };
    let config = disk.device.config("");
    let error = open(&config, SIZE, 4096).map(drop).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InUse, "{error}");
    assert!(error.to_string().contains("mounted"), "{error}");
}
