//! New images, as qemu sees them.

use std::fs;

use tcmu_handler::testing::UnorderedEngine;
use tempfile::tempdir;

use super::workload::{Workload, close, run};
use super::{open, qemu};

#[test]
fn every_kind_is_as_good_as_qemus() {
    let folder = tempdir().unwrap();
    fs::write(folder.path().join("base"), vec![5; 3 << 20]).unwrap();
    let path = folder.path().join("a.qcow2");
    for (number, (options, size)) in [
        ("", 1 << 20),
        ("", 5 << 40),
        (";cluster_size=512", 9 << 20),
        (";cluster_size=512", 1 << 30),
        (";cluster_size=2M", 9 << 20),
        (";extended_l2=on", 4 << 20),
        (
            ";cluster_size=16k;extended_l2=on;preallocation=metadata",
            4 << 20,
        ),
        (";preallocation=metadata", 4_211_200),
        (";preallocation=falloc;cluster_size=4k", 4_211_200),
        (";preallocation=full;cluster_size=1k", 4_211_200),
        (";preallocation=full;cluster_size=512", 1 << 20),
        (";backing=base;backing_format=raw", 4_211_200),
    ]
    .into_iter()
    .enumerate()
    {
        let image = open(&path, &format!(";create=on{options}"), size)
            .unwrap_or_else(|error| panic!("{options}, {size}: {error}"));
        drop(image);
        qemu::check(&path, false);
        if size < 1 << 24 {
            let mut model = qemu::contents(&path);
            assert_eq!(model.len() as u64, size);
            let expected = u8::from(options.contains("backing")) * 5;
            assert!(model[..1 << 20].iter().all(|byte| *byte == expected));
            let engine = UnorderedEngine::repeatable(number as u64);
            let image = open(&path, "", size).unwrap();
            let workload = Workload {
                seed: number as u64,
                depth: 16,
                requests: 100,
                longest: 64 << 10,
            };
            run(&engine, &image, &mut model, workload);
            close(&engine, &image).unwrap();
            drop(image);
            qemu::check(&path, false);
            assert!(qemu::contents(&path) == model, "{options}");
        }
        fs::remove_file(&path).unwrap();
    }
}

#[test]
fn what_is_there_is_left_alone() {
    let folder = tempdir().unwrap();
    let path = folder.path().join("a.qcow2");
    qemu::img_in(folder.path(), &["create", "-f", "qcow2", "a.qcow2", "2M"]);
    let before = fs::read(&path).unwrap();
    drop(open(&path, ";create=on", 1 << 20).unwrap());
    assert!(fs::read(&path).unwrap() == before);
    fs::write(&path, b"something else").unwrap();
    assert!(open(&path, ";create=on", 1 << 20).is_err());
    assert_eq!(fs::read(&path).unwrap(), b"something else");
}

#[test]
fn what_cannot_be_made_leaves_nothing() {
    let folder = tempdir().unwrap();
    let path = folder.path().join("a.qcow2");
    fs::write(folder.path().join("raw"), [1; 512]).unwrap();
    let used = open(&folder.path().join("used"), ";create=on", 1 << 20);
    for (options, size) in [
        (";cluster_size=512", 1 << 40),
        (";backing=missing;backing_format=raw", 1 << 20),
        (";backing=raw;backing_format=qcow2", 1 << 20),
        (";backing=used;backing_format=qcow2", 1 << 20),
    ] {
        assert!(open(&path, &format!(";create=on{options}"), size).is_err());
        assert!(!path.exists(), "{options}");
    }
    drop(used.unwrap());
}
