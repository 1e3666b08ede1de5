//! What each layer is for.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tcmu_handler::testing::{block_on, buffer, contents, io, scattered};
use tcmu_handler::{
    Backstore, Buffer, Capabilities, Config, Error, ErrorKind, Extent, Handler, Io, OpenRequest,
    Result, WriteFlags, ZeroFlags,
};
use tempfile::{TempDir, tempdir};

use super::{SIZE, handlers};
use crate::{AnyBackstore, Handlers};

fn open_with(handlers: &Handlers, config: &str) -> Result<AnyBackstore> {
    let (subtype, rest) = config.split_once('/').unwrap();
    handlers.open(
        subtype,
        &OpenRequest {
            config: rest.parse()?,
            size: SIZE,
            block_size: 512,
        },
    )
}

fn open(config: &str) -> Result<AnyBackstore> {
    let handlers = handlers();
    open_with(&handlers, config)
}

fn check(config: &str) -> Result<()> {
    let (subtype, rest) = config.split_once('/').unwrap();
    handlers().check(subtype, rest)
}

fn write(image: &AnyBackstore, byte: u8, offset: u64, len: usize) -> Result<()> {
    let bytes = scattered(&vec![byte; len], 512);
    block_on(image.write(&io(), bytes.view(), offset, WriteFlags::default()))
}

fn read(image: &AnyBackstore, offset: u64, len: usize) -> Result<Vec<u8>> {
    let bytes = buffer(len);
    block_on(image.read(&io(), bytes.view(), offset))?;
    Ok(contents(&bytes))
}

fn holds(image: &AnyBackstore, byte: u8, offset: u64, len: usize) -> bool {
    read(image, offset, len).unwrap() == vec![byte; len]
}

fn close(image: AnyBackstore) {
    block_on(image.close(&io())).unwrap();
}

/// A file of zeroes.
fn image() -> (TempDir, PathBuf) {
    let folder = tempdir().unwrap();
    let path = folder.path().join("image");
    let file = fs::File::create(&path).unwrap();
    file.set_len(SIZE).unwrap();
    (folder, path)
}

/// A layer's configuration over the file.
fn over(layer: &str, path: &Path) -> String {
    format!("{layer}/file/{}", path.display())
}

fn kind(result: Result<impl Sized>) -> ErrorKind {
    result.map(drop).unwrap_err().kind()
}

#[test]
fn a_fault_keeps_the_request_from_the_image() {
    let image = open("fault/op=write/nth=2/error=ENOSPC/ram/").unwrap();
    write(&image, 1, 0, 1024).unwrap();
    assert_eq!(kind(write(&image, 2, 0, 1024)), ErrorKind::NoSpace);
    assert!(holds(&image, 1, 0, 1024));
    write(&image, 3, 0, 1024).unwrap();
    assert!(holds(&image, 3, 0, 1024));
}

#[test]
fn a_delay_takes_its_time() {
    let image = open("delay/ms=20/op=flush+read/ram/").unwrap();
    write(&image, 1, 0, 512).unwrap();
    let begun = Instant::now();
    assert!(holds(&image, 1, 0, 512));
    assert!(begun.elapsed() >= Duration::from_millis(20));
}

#[test]
fn a_throttle_makes_requests_wait() {
    let image = open("throttle/iops=100/ram/").unwrap();
    let begun = Instant::now();
    for _ in 0..7 {
        write(&image, 1, 0, 512).unwrap();
    }
    // Six times 10 ms, less what may be used up at once.
    assert!(begun.elapsed() >= Duration::from_millis(40));
}

#[test]
fn a_log_says_what_was_asked_and_how_it_ended() {
    let folder = tempdir().unwrap();
    let path = folder.path().join("log");
    let file = Arc::new(fs::File::create(&path).unwrap());
    let subscriber = tracing_subscriber::fmt()
        .with_writer(file)
        .with_ansi(false)
        .finish();
    tracing::subscriber::with_default(subscriber, || {
        let image = open("log/op=write+flush/fault/nth=2/error=EROFS/ram/x").unwrap();
        write(&image, 1, 4096, 1024).unwrap();
        write(&image, 1, 8192, 512).unwrap_err();
        read(&image, 0, 512).unwrap();
    });
    let log = fs::read_to_string(path).unwrap();
    let lines: Vec<&str> = log.lines().collect();
    let [done, failed] = lines[..] else {
        panic!("not two lines: {log}");
    };
    for word in [
        "operation=\"write\"",
        "offset=4096",
        "len=1024",
        "us=",
        "fault/nth=2",
    ] {
        assert!(done.contains(word), "{word}: {done}");
    }
    for word in ["failed", "offset=8192", "len=512", "kind=ReadOnly"] {
        assert!(failed.contains(word), "{word}: {failed}");
    }
}

#[test]
fn a_read_only_image_takes_no_change() {
    let (_folder, path) = image();
    fs::write(&path, vec![7; SIZE as usize]).unwrap();
    let image = open(&over("readonly", &path)).unwrap();
    let claims = image.capabilities();
    assert!(claims.read_only && claims.unmap.is_none() && !claims.write_zeroes);
    assert!(!claims.volatile_cache);
    let extent = Extent {
        offset: 0,
        len: 512,
    };
    assert_eq!(kind(write(&image, 1, 0, 512)), ErrorKind::ReadOnly);
    assert_eq!(
        kind(block_on(image.unmap(&io(), extent))),
        ErrorKind::ReadOnly
    );
    let io = io();
    let zero = image.write_zeroes(&io, extent, ZeroFlags::default());
    assert_eq!(kind(block_on(zero)), ErrorKind::ReadOnly);
    assert!(image.file().is_none(), "the kernel could go past the layer");
    assert!(holds(&image, 7, 0, SIZE as usize));
}

#[test]
fn a_mirror_finds_what_has_changed() {
    let (_folder, path) = image();
    let image = open(&over("verify", &path)).unwrap();
    write(&image, 5, 8192, 4096).unwrap();
    assert!(holds(&image, 5, 8192, 4096));
    // Read, and so known from now on.
    assert!(holds(&image, 0, 1 << 20, 512));
    let file = fs::File::options().write(true).open(&path).unwrap();
    for at in [8192 + 100, 1 << 20, 2 << 20] {
        file.write_all_at(&[9], at).unwrap();
    }
    let error = read(&image, 4096, 16384).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Read);
    let text = error.to_string();
    assert!(
        text.contains("byte 8292 is 0x09") && text.contains("has 0x05"),
        "{text}"
    );
    assert_eq!(kind(read(&image, 1 << 20, 512)), ErrorKind::Read);
    // Never read before: that is how it is.
    assert_eq!(read(&image, 2 << 20, 512).unwrap()[0], 9);
    // Written again, it is right again.
    write(&image, 6, 8192, 4096).unwrap();
    assert!(holds(&image, 6, 8192, 4096));
    let zeroed = Extent {
        offset: 1 << 20,
        len: 4096,
    };
    block_on(image.write_zeroes(&io(), zeroed, ZeroFlags::default())).unwrap();
    assert!(holds(&image, 0, 1 << 20, 512));
    file.write_all_at(&[1], 1 << 20).unwrap();
    assert_eq!(kind(read(&image, 1 << 20, 512)), ErrorKind::Read);
}

#[test]
fn a_trusted_mirror_is_compared_from_the_beginning() {
    let (folder, path) = image();
    let mirror = folder.path().join("mirror");
    let mut bytes = vec![0; SIZE as usize];
    bytes[777] = 1;
    fs::write(&mirror, &bytes).unwrap();
    let behind = format!(";mirror=file/{}", mirror.display());
    let trusting = open(&format!("{}{behind}", over("verify/compare=all", &path))).unwrap();
    assert_eq!(kind(read(&trusting, 0, 4096)), ErrorKind::Read);
    assert!(holds(&trusting, 0, 4096, 4096));
    write(&trusting, 3, 0, 4096).unwrap();
    assert!(holds(&trusting, 3, 0, 4096));
    close(trusting);
    assert_eq!(fs::read(&mirror).unwrap()[..4096], vec![3; 4096]);
}

#[test]
fn what_was_not_flushed_is_lost() {
    let (_folder, path) = image();
    let config = over("volatile", &path);
    let image = open(&config).unwrap();
    write(&image, 1, 0, 4096).unwrap();
    block_on(image.flush(&io())).unwrap();
    write(&image, 2, 0, 2048).unwrap();
    write(&image, 3, 1 << 20, 2048).unwrap();
    let bytes = scattered(&[4; 512], 512);
    let fua = WriteFlags { fua: true };
    block_on(image.write(&io(), bytes.view(), 512, fua)).unwrap();
    assert!(holds(&image, 2, 0, 512) && holds(&image, 4, 512, 512));
    close(image);

    let image = open(&config).unwrap();
    assert!(
        holds(&image, 1, 0, 512),
        "a write that was not flushed survived"
    );
    assert!(
        holds(&image, 4, 512, 512),
        "a write with FUA did not survive"
    );
    assert!(holds(&image, 1, 1024, 3072) && holds(&image, 0, 1 << 20, 2048));
    write(&image, 5, 0, 512).unwrap();
    // The daemon dies.
    drop(image);
    assert!(holds(&open(&config).unwrap(), 1, 0, 512));
}

#[test]
fn the_power_is_cut_when_it_was_to_be() {
    let (_folder, path) = image();
    let image = open(&over("volatile/cut=3/left=some", &path)).unwrap();
    write(&image, 1, 0, 512).unwrap();
    write(&image, 1, 4096, 1024).unwrap();
    assert_eq!(kind(write(&image, 1, 8192, 512)), ErrorKind::Gone);
    assert_eq!(kind(read(&image, 0, 512)), ErrorKind::Gone);
    assert_eq!(kind(block_on(image.flush(&io()))), ErrorKind::Gone);
    close(image);
    // Every second one of three blocks.
    let image = open(&over("volatile", &path)).unwrap();
    assert!(holds(&image, 0, 0, 512) && holds(&image, 1, 4096, 512));
    assert!(holds(&image, 0, 4608, 512) && holds(&image, 0, 8192, 512));
}

#[test]
fn a_cache_that_is_full_is_written_down() {
    let (_folder, path) = image();
    let image = open(&over("volatile/limit=64k", &path)).unwrap();
    for number in 0..32 {
        write(&image, 1, number * 4096, 4096).unwrap();
    }
    drop(image);
    let bytes = fs::read(&path).unwrap();
    let kept = bytes.iter().filter(|byte| **byte == 1).count();
    assert!((64 << 10..=128 << 10).contains(&kept), "{kept}");
}

#[test]
fn checks_go_all_the_way_down() {
    let (folder, path) = image();
    let path = path.display();
    for good in [
        format!("delay/ms=5/file/{path};direct=off"),
        format!(
            "verify/file/{path};mirror=file/{}/new\\;create=on",
            folder.path().display()
        ),
        format!("fault/delay/ms=1/log/op=read/volatile/readonly/throttle/iops=3/file/{path}"),
    ] {
        check(&good).unwrap_or_else(|error| panic!("{good}: {error}"));
        open(&good).unwrap_or_else(|error| panic!("{good}: {error}"));
    }
    for (bad, word) in [
        (format!("delay/file/{path}"), "delay/ms=VALUE"),
        (format!("delay/ms=5/tape/{path}"), "\"tape\""),
        (format!("delay/s=5/file/{path}"), "unknown option \"s\""),
        (
            format!("delay/ms=5/file/{path};sync=on"),
            "unknown option \"sync\"",
        ),
        (
            format!("delay/ms=5/fault/error=E/file/{path}"),
            "EIO, ENOSPC",
        ),
        (
            format!("delay/ms=5/file/{path};mirror=ram/"),
            "unknown option \"mirror\"",
        ),
        (format!("verify/file/{path};mirror=ram"), "SUBTYPE/CONFIG"),
        (
            format!("verify/file/{path};mirror=ram/;oops=1"),
            "unknown option \"oops\"",
        ),
        (
            format!("verify/file/{path};mirror=ram/\\;oops=1"),
            "unknown option \"oops\"",
        ),
        (format!("verify/compare=some/file/{path}"), "compare"),
        (format!("volatile/close=loose/file/{path}"), "lose or keep"),
        (format!("throttle/bandwidth=0/file/{path}"), "from 1 on"),
        (format!("readonly/op=read/file/{path}"), "takes none"),
    ] {
        for result in [check(&bad), open(&bad).map(drop)] {
            let error = result.expect_err(&bad);
            assert_eq!(error.kind(), ErrorKind::InvalidConfig, "{bad}: {error}");
            assert!(error.to_string().contains(word), "{bad}: {error}");
        }
    }
    let missing = format!("delay/ms=5/file/{path}.missing");
    assert_eq!(kind(check(&missing)), ErrorKind::NotFound);
}

#[test]
fn what_lies_below_may_be_refused() {
    let handlers = Arc::new(Handlers::with_parser(|subtype, text| match subtype {
        "ram" => Err(Error::new(ErrorKind::PermissionDenied, "no memory for you")),
        _ => Ok(text.parse()?),
    }));
    handlers.add(Arc::new(tcmu_handler_ram::RamHandler));
    for layer in crate::Layer::all(&handlers) {
        handlers.add(Arc::new(layer));
    }
    for config in ["log/ram/", "log/delay/ms=1/ram/"] {
        assert_eq!(
            kind(open_with(&handlers, config)),
            ErrorKind::PermissionDenied
        );
    }
}

struct Tape;

impl Handler for Tape {
    type Backstore = Self;

    fn subtype(&self) -> &str {
        "tape"
    }

    fn help(&self) -> &str {
        ""
    }

    fn check(&self, _config: &Config) -> Result<()> {
        Ok(())
    }

    fn open(&self, _request: &OpenRequest) -> Result<Self> {
        Ok(Self)
    }
}

impl Backstore for Tape {
    fn capabilities(&self) -> Capabilities {
        Capabilities {
            device_type: Some(1),
            ..Capabilities::new(0)
        }
    }

    async fn read(&self, _io: &Io, _buffer: Buffer<'_>, _offset: u64) -> Result<()> {
        Ok(())
    }

    async fn write(&self, _: &Io, _: Buffer<'_>, _: u64, _: WriteFlags) -> Result<()> {
        Ok(())
    }
}

#[test]
fn layers_lie_over_disks() {
    let handlers = handlers();
    handlers.add(Arc::new(Tape));
    let error = open_with(&handlers, "log/tape/").unwrap_err();
    assert!(error.to_string().contains("no disk"), "{error}");
}
