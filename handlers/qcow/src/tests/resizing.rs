//! Larger images.

use tcmu_handler::testing::UnorderedEngine;
use tcmu_handler::{Backstore, ErrorKind};

use super::variants::{self, SIZE};
use super::workload::{Workload, close, run};
use super::{open, qemu};

#[test]
fn what_is_new_reads_as_zeroes() {
    for name in [
        "v3 with data",
        "v2 with data",
        "clusters of 512",
        "clusters of 2M",
        "subclusters",
        "on a longer raw",
        "on a chain",
        "with two snapshots, small clusters",
        "preallocated tables",
        "external data, raw",
    ] {
        let (_folder, path) = variants::make(name);
        let mut model = qemu::contents(&path);
        let image = open(&path, "", SIZE).unwrap();
        let engine = UnorderedEngine::repeatable(3);
        let io = engine.io();
        for size in [SIZE + 512, 5 << 20, 40 << 20, 41 << 20] {
            engine.run(image.resize(&io, size)).unwrap();
            assert_eq!(image.capabilities().size, size);
            model.resize(size as usize, 0);
            let workload = Workload {
                seed: size,
                depth: 8,
                requests: 40,
                longest: 64 << 10,
            };
            run(&engine, &image, &mut model, workload);
        }
        // Smaller is no request at all: the LUN just shows less.
        engine.run(image.resize(&io, SIZE)).unwrap();
        assert_eq!(image.capabilities().size, 41 << 20);
        close(&engine, &image).unwrap();
        drop(image);
        qemu::check(&path, false);
        assert!(qemu::contents(&path) == model, "{name}");
    }
}

#[test]
fn what_cannot_grow_says_so() {
    for (name, options, kind) in [
        ("with bitmaps", "", ErrorKind::Unsupported),
        ("with a snapshot, v2", "", ErrorKind::Unsupported),
        ("v3", ";readonly=on", ErrorKind::OutOfRange),
    ] {
        let (_folder, path) = variants::make(name);
        let image = open(&path, options, SIZE).unwrap();
        let engine = UnorderedEngine::repeatable(3);
        let io = engine.io();
        let error = engine.run(image.resize(&io, SIZE + 512)).unwrap_err();
        assert_eq!(error.kind(), kind, "{name}: {error}");
        assert_eq!(image.capabilities().size, SIZE);
    }
}
