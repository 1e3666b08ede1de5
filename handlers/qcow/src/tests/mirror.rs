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
use super::variants::{self, SIZE, Variant, in_quarters};
use super::workload::{Workload, read_all, run, run_through};
use crate::QcowHandler;

/// An image's folder; its mirror there is a raw image that is called `mirror`.
struct Pair {
    folder: TempDir,
}

impl Pair {
    /// The image in a folder, and a new mirror that holds the same.
    fn beside(folder: TempDir) -> Self {
        let pair = Self { folder };
        let contents = qemu::contents(&pair.path("a.qcow2"));
        fs::write(pair.path("mirror"), contents).unwrap();
        pair
    }

    /// Makes an image, and a mirror.
    fn of(variant: &str) -> Self {
        Self::beside(variants::make(variant).0)
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

/// Inverts a byte of a file.
fn spoil(path: &Path, at: u64) {
    let file = File::options().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[!byte[0]], at).unwrap();
}

in_quarters!(both_hold_the_same);
fn both_hold_the_same(number: usize, variant: &Variant) {
    let folder = tempdir().unwrap();
    variant.make(folder.path());
    let pair = Pair::beside(folder);
    for depth in [16, 32] {
        let workload = Workload {
            seed: (number * 100 + depth + 7) as u64,
            depth,
            requests: 250,
            longest: 256 << 10,
        };
        eprintln!("{}, {workload:?}", variant.name);
        let mut model = fs::read(pair.path("mirror")).unwrap();
        run_through(pair.open(), &mut model, workload);
        assert!(
            fs::read(pair.path("mirror")).unwrap() == model,
            "{}: the mirror holds something else",
            variant.name
        );
    }
    qemu::check(&pair.path("a.qcow2"), false);
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
        let pair = Pair::of("v3 with data");
        spoil(&pair.path("mirror"), at);
        assert_found(read_all(&UnorderedEngine::repeatable(1), &pair.open()), at);
    }
    // In the image's file, while it is served.
    let pair = Pair::of("v3 with data");
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
    let pair = Pair::of("with a snapshot");
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
