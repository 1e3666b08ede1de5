//! Random requests to every kind of image; qemu then sees the same bytes, and nothing to repair. And
//! qemu's own engine, given the same requests, comes to the same disk.

use tcmu_handler::testing::UnorderedEngine;
use tempfile::tempdir;

use super::model::Request;
use super::nbd::Server;
use super::variants::{SIZE, VARIANTS};
use super::workload::{Workload, close, run};
use super::{open, qemu};

/// Takes every fourth variant from `first` on, so that tests run side by side.
fn quarter(first: usize) {
    for (number, variant) in VARIANTS.iter().enumerate().skip(first).step_by(4) {
        let folder = tempdir().unwrap();
        let path = variant.make(folder.path());
        let mut model = qemu::contents(&path);
        for (depth, requests) in [(16, 400), (32, 400)] {
            let seed = (number * 100 + depth) as u64;
            eprintln!("{}, depth {depth}, seed {seed}", variant.name);
            let engine = UnorderedEngine::repeatable(seed);
            let image = open(&path, "", SIZE).unwrap();
            let workload = Workload {
                seed,
                depth,
                requests,
                longest: 384 << 10,
            };
            let outcome = run(&engine, &image, &mut model, workload);
            assert!(outcome.errors.is_empty(), "{:?}", outcome.errors);
            close(&engine, &image).unwrap();
            drop(image);
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
}

/// What both engines do with the same requests to the same image.
fn both_engines(name: &str) {
    let variant = VARIANTS.iter().find(|variant| variant.name == name);
    let variant = variant.unwrap_or_else(|| panic!("no variant {name}"));
    let (ours, theirs) = (tempdir().unwrap(), tempdir().unwrap());
    let path = variant.make(ours.path());
    let mut model = qemu::contents(&path);
    for entry in std::fs::read_dir(ours.path()).unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), theirs.path().join(entry.file_name())).unwrap();
    }
    let engine = UnorderedEngine::repeatable(11);
    let image = open(&path, "", SIZE).unwrap();
    let workload = Workload {
        seed: 11,
        depth: 16,
        requests: 300,
        longest: 128 << 10,
    };
    let mut expected = model.clone();
    let outcome = run(&engine, &image, &mut model, workload);
    assert!(outcome.errors.is_empty(), "{:?}", outcome.errors);
    close(&engine, &image).unwrap();
    drop(image);

    let other = theirs.path().join("a.qcow2");
    let mut server = Server::start(&other, &[]);
    let mut client = server.connect();
    // Requests that overlap did not run together: one by one they come to the same.
    for ran in &outcome.history {
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
