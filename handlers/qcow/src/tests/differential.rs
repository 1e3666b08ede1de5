//! Random requests to every kind of image; qemu then sees the same bytes, and nothing to repair.

use tempfile::tempdir;

use super::engine::Disordered;
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
            let engine = Disordered::new(seed);
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
