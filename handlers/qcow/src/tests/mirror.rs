//! Every kind of image beside a raw one: the layer `verify` sends all requests of a random workload to
//! both, and compares what is read.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use tcmu_handler::testing::UnorderedEngine;
use tcmu_handler::{Error, ErrorKind, OpenRequest};
use tcmu_handler_file::FileHandler;
use tcmu_handler_layers::{AnyBackstore, Handlers, Layer};
use tempfile::{TempDir, tempdir};

use super::qemu;
use super::variants::{SIZE, VARIANTS, Variant};
use super::workload::{Workload, close, read_all, run};
use crate::QcowHandler;

/// An image's folder; its mirror there is a raw image that is called `mirror`.
struct Pair {
    folder: TempDir,
}

impl Pair {
    /// Makes an image, and a mirror that holds the same.
    fn new(variant: &Variant) -> Self {
        let folder = tempdir().unwrap();
        let path = variant.make(folder.path());
        fs::write(folder.path().join("mirror"), qemu::contents(&path)).unwrap();
        Self { folder }
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.folder.path().join(name)
    }

    fn open(&self) -> AnyBackstore {
        let handlers = Arc::new(Handlers::new());
        handlers.add(Arc::new(QcowHandler));
        handlers.add(Arc::new(FileHandler));
        for layer in Layer::all(&handlers) {
            handlers.add(Arc::new(layer));
        }
        let (image, mirror) = (self.path("a.qcow2"), self.path("mirror"));
        let config = format!(
            "compare=all/qcow/{};mirror=file/{}",
            image.display(),
            mirror.display()
        );
        let request = OpenRequest {
            config: config.parse().unwrap(),
            size: SIZE,
            block_size: 512,
        };
        handlers.open("verify", &request).unwrap()
    }
}

fn variant(name: &str) -> &'static Variant {
    VARIANTS
        .iter()
        .find(|variant| variant.name == name)
        .unwrap()
}

/// Inverts a byte of a file.
fn spoil(path: &Path, at: u64) {
    let file = File::options().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[!byte[0]], at).unwrap();
}

/// Takes every fourth variant from `first` on, so that tests run side by side.
fn quarter(first: usize) {
    for (number, variant) in VARIANTS.iter().enumerate().skip(first).step_by(4) {
        let pair = Pair::new(variant);
        for depth in [16, 32] {
            let seed = (number * 100 + depth + 7) as u64;
            eprintln!("{}, depth {depth}, seed {seed}", variant.name);
            let engine = UnorderedEngine::repeatable(seed);
            let image = pair.open();
            let mut model = fs::read(pair.path("mirror")).unwrap();
            let workload = Workload {
                seed,
                depth,
                requests: 250,
                longest: 256 << 10,
            };
            let outcome = run(&engine, &image, &mut model, workload);
            assert!(outcome.errors.is_empty(), "{:?}", outcome.errors);
            // Also what was never read.
            let shown = read_all(&engine, &image).unwrap();
            close(&engine, &image).unwrap();
            drop(image);
            assert!(shown == model, "{}", variant.name);
            assert!(
                fs::read(pair.path("mirror")).unwrap() == model,
                "{}: the mirror holds something else",
                variant.name
            );
        }
        qemu::check(&pair.path("a.qcow2"), false);
    }
}

#[test]
fn first_quarter() {
    quarter(0);
}

#[test]
fn second_quarter() {
    quarter(1);
}

#[test]
fn third_quarter() {
    quarter(2);
}

#[test]
fn fourth_quarter() {
    quarter(3);
}

/// It is about this byte.
fn assert_found(result: Result<Vec<u8>, Error>, at: u64) {
    let error = result.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Read, "{error}");
    assert!(
        error.to_string().contains(&format!("byte {at} is")),
        "{error}"
    );
}

#[test]
fn one_wrong_byte_is_found_wherever_it_is() {
    // Data, zeroes that have no storage, and the last byte.
    for at in [300 << 10, 3 << 20, SIZE - 1] {
        let pair = Pair::new(variant("v3 with data"));
        spoil(&pair.path("mirror"), at);
        assert_found(read_all(&UnorderedEngine::repeatable(1), &pair.open()), at);
    }
    // In the image's file, while it is served.
    let pair = Pair::new(variant("v3 with data"));
    let image = pair.open();
    let engine = UnorderedEngine::repeatable(1);
    read_all(&engine, &image).unwrap();
    let bytes = fs::read(pair.path("a.qcow2")).unwrap();
    let cluster = bytes.chunks(64 << 10).position(|bytes| bytes[0] == 18);
    spoil(
        &pair.path("a.qcow2"),
        cluster.unwrap() as u64 * (64 << 10) + 5,
    );
    assert_found(read_all(&engine, &image), (2 << 20) + 5);
}

#[test]
fn the_workload_meets_wrong_bytes() {
    let pair = Pair::new(variant("with a snapshot"));
    for at in (0..SIZE).step_by(64 << 10) {
        spoil(&pair.path("mirror"), at);
    }
    let mut model = qemu::contents(&pair.path("a.qcow2"));
    let workload = Workload {
        seed: 3,
        depth: 32,
        requests: 250,
        longest: 256 << 10,
    };
    let engine = UnorderedEngine::repeatable(3);
    let outcome = run(&engine, &pair.open(), &mut model, workload);
    assert!(!outcome.errors.is_empty(), "nothing was found");
    for (placed, error) in outcome.errors {
        assert!(error.to_string().contains("the mirror has"), "{error}");
        let range = placed.offset..placed.offset + placed.len;
        assert!(
            range.clone().any(|at| at % (64 << 10) == 0),
            "{range:?}: {error}"
        );
    }
}
