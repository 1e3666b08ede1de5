//! Random requests to every kind of image; qemu then sees the same bytes, and nothing to repair. And
//! qemu's own engine, given the same requests, comes to the same disk.

use tempfile::tempdir;

use super::model::Request;
use super::nbd::Server;
use super::variants::{self, SIZE, VARIANTS, Variant, in_quarters};
use super::workload::{Workload, run_through};
use super::{open, qemu};

in_quarters!(qemu_sees_the_same);
fn qemu_sees_the_same(number: usize, variant: &Variant) {
    let folder = tempdir().unwrap();
    let path = variant.make(folder.path());
    let mut model = qemu::contents(&path);
    for depth in [16, 32] {
        let workload = Workload {
            seed: (number * 100 + depth) as u64,
            depth,
            requests: 400,
            longest: 384 << 10,
        };
        eprintln!("{}, {workload:?}", variant.name);
        let image = open(&path, "", SIZE).unwrap();
        run_through(image, &mut model, workload);
        qemu::check(&path, false);
        assert!(
            qemu::contents(&path) == model,
            "{}: qemu sees other bytes",
            variant.name
        );
    }
    if variant.name == "external data, raw" {
        let data = std::fs::read(folder.path().join("data")).unwrap();
        // qemu makes it as long as its clusters.
        let (disk, rest) = data.split_at(model.len());
        assert!(disk == model, "the data file is not the disk");
        assert!(rest.iter().all(|byte| *byte == 0));
    }
}

/// What both engines do with the same requests to the same image.
fn both_engines(name: &str) {
    let (ours, path) = variants::make(name);
    let theirs = tempdir().unwrap();
    let mut model = qemu::contents(&path);
    for entry in std::fs::read_dir(ours.path()).unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), theirs.path().join(entry.file_name())).unwrap();
    }
    let image = open(&path, "", SIZE).unwrap();
    let workload = Workload {
        seed: 11,
        depth: 16,
        requests: 300,
        longest: 128 << 10,
    };
    let mut expected = model.clone();
    let history = run_through(image, &mut model, workload);

    let other = theirs.path().join("a.qcow2");
    let mut server = Server::start(&other, &[]);
    let mut client = server.connect();
    // Requests that overlap did not run together: one by one they come to the same.
    for ran in &history {
        let placed = &ran.placed;
        let range = placed.offset as usize..(placed.offset + placed.len) as usize;
        match (client.execute(placed), placed.request) {
            (Some(bytes), _) => assert!(bytes == expected[range], "{name}: {placed:?}"),
            (None, Request::Flush) => {}
            (None, _) => expected[range].copy_from_slice(&placed.bytes()),
        }
    }
    assert!(
        client.read(0, SIZE) == model,
        "{name}: qemu's engine comes to another disk"
    );
    drop((client, server));

    let mut server = Server::start(&path, &["--read-only"]);
    let shown = server.connect().read(0, SIZE);
    assert!(
        shown == model,
        "{name}: qemu-nbd shows another disk of ours"
    );
}

#[test]
fn qemus_engine_does_the_same() {
    for name in [
        "v3 with data",
        "v2 with data",
        "clusters of 512",
        "clusters of 2M",
        "subclusters of 512",
        "compressed, zstd",
        "on raw, v2",
        "on raw, subclusters",
        "on a chain",
        "with two snapshots, small clusters",
        "external data, on raw",
    ] {
        both_engines(name);
    }
}

#[test]
fn there_are_enough_variants() {
    assert!(VARIANTS.len() >= 32, "{}", VARIANTS.len());
}
