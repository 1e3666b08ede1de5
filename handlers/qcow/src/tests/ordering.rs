//! What has to be in the file, or on the medium, before something else may happen.

use std::rc::Rc;

use tcmu_handler::testing::{OperationKind, Random, Together, UnorderedEngine, scattered};
use tcmu_handler::{Backstore, Extent, WriteFlags};
use tempfile::tempdir;

use super::open;
use super::power_cut::{Left, Medium, errors, read_start};
use crate::QcowImage;

const SIZE: u64 = 4 << 20;
const CLUSTER: u64 = 4096;
const SECTOR: usize = 512;

/// Writes a sector full of `byte`.
fn write(engine: &Rc<UnorderedEngine>, image: &QcowImage, byte: u8, offset: u64, fua: bool) {
    let io = engine.io();
    let data = scattered(&[byte; SECTOR], SECTOR);
    let flags = WriteFlags { fua };
    engine
        .run(image.write(&io, data.view(), offset, flags))
        .unwrap();
}

/// An empty image in `folder`.
fn empty(folder: &std::path::Path, options: &str) -> QcowImage {
    let path = folder.join("a.qcow2");
    open(&path, &format!(";create=on{options}"), SIZE).unwrap()
}

#[test]
fn a_durable_write_is_found_again() {
    // The clusters: of another write that was not flushed; of its own; and of a flushed write, beside
    // another mapping that is not durable.
    for prepare in [Some(false), None, Some(true)] {
        let folder = tempdir().unwrap();
        let image = empty(folder.path(), ";cluster_size=4k");
        let engine = UnorderedEngine::repeatable(5);
        let io = engine.io();
        let medium = Medium::of(&image);
        engine.remember();
        if let Some(flush) = prepare {
            write(&engine, &image, 1, 0, false);
            if flush {
                engine.run(image.flush(&io)).unwrap();
            }
            write(&engine, &image, 2, 8 * CLUSTER, false);
        }
        write(&engine, &image, 3, SECTOR as u64, true);
        drop(image);
        let log = engine.take_log();
        let mut random = Random::new(1);
        for left in [Left::Nothing, Left::SomeWrites, Left::SomeSectors] {
            medium.after(&log, left, &mut random).store(folder.path());
            let path = folder.path().join("a.qcow2");
            assert!(errors(&path).is_empty(), "{prepare:?} {left:?}");
            let shown = read_start(&open(&path, ";readonly=on", SIZE).unwrap(), 2 * CLUSTER);
            let sector = &shown[SECTOR..2 * SECTOR];
            assert!(sector == [3; SECTOR], "{prepare:?} {left:?}: it is lost");
        }
    }
}

#[test]
fn no_write_ends_before_the_mapping_it_uses_is_in_the_file() {
    for fua in [false, true] {
        let folder = tempdir().unwrap();
        let image = empty(folder.path(), ";cluster_size=4k");
        let engine = UnorderedEngine::repeatable(5);
        let io = engine.io();
        // Clusters are ready from now on.
        write(&engine, &image, 1, 0, false);

        let data = scattered(&[2; SECTOR], SECTOR);
        let mut first = Together::new(&engine);
        first.add(image.write(&io, data.view(), 5 * CLUSTER, WriteFlags::default()));
        // Its data are under way; the next write that it begins is that of its mapping.
        assert!(first.poll().is_none());
        engine.hold(OperationKind::Write);
        assert!(first.poll().is_none());
        assert!(engine.holds(), "no mapping was written");

        let mut second = Together::new(&engine);
        let offset = 5 * CLUSTER + SECTOR as u64;
        second.add(image.write(&io, data.view(), offset, WriteFlags { fua }));
        assert!(
            second.run_dry().is_none(),
            "it ended before its mapping was written"
        );
        engine.release();
        first.finish_one().unwrap().unwrap();
        second.finish_one().unwrap().unwrap();
    }
}

#[test]
fn no_refcount_block_is_named_before_it_counts() {
    let folder = tempdir().unwrap();
    // A block counts 256 clusters of 512 bytes.
    let image = empty(folder.path(), ";cluster_size=512");
    let engine = UnorderedEngine::repeatable(5);
    let io = engine.io();
    let medium = Medium::of(&image);
    engine.remember();
    let data = scattered(&vec![1; 512 << 10], 1 << 16);
    engine
        .run(image.write(&io, data.view(), 0, WriteFlags::default()))
        .unwrap();
    drop(image);
    let log = engine.take_log();
    let mut random = Random::new(1);
    let path = folder.path().join("a.qcow2");
    for position in 0..=log.len() {
        for left in [Left::Nothing, Left::Everything] {
            let now = medium.after(&log[..position], left, &mut random);
            now.store(folder.path());
            let errors = errors(&path);
            assert!(
                errors.is_empty(),
                "{position} of {}, {left:?}: {errors:?}",
                log.len()
            );
        }
    }
}

#[test]
fn a_flush_that_began_before_counts_nothing_down() {
    let folder = tempdir().unwrap();
    let image = empty(folder.path(), ";cluster_size=4k");
    let engine = UnorderedEngine::repeatable(5);
    let io = engine.io();
    let disk = &image.top.disk;
    let allocator = &image.writer().unwrap().allocator;
    write(&engine, &image, 1, 0, false);
    engine.run(image.flush(&io)).unwrap();

    // The flush begins and ends while the new mapping is being written.
    let extent = Extent {
        offset: 0,
        len: CLUSTER,
    };
    engine.hold(OperationKind::Write);
    let mut unmap = Together::new(&engine);
    unmap.add(image.unmap(&io, extent));
    assert!(unmap.run_dry().is_none());
    engine.run(disk.pass_barrier(&io)).unwrap();
    engine.release();
    unmap.finish_one().unwrap().unwrap();
    engine.run(allocator.reclaim(&io, disk)).unwrap();
    assert_eq!(
        allocator.waiting(),
        1,
        "a cluster was counted down too early"
    );

    engine.run(disk.pass_barrier(&io)).unwrap();
    engine.run(allocator.reclaim(&io, disk)).unwrap();
    assert_eq!(allocator.waiting(), 0);
}
