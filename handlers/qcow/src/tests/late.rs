//! Transfers that take very long: what they were sent to must not become anything else meanwhile.

use tcmu_handler::testing::{
    OperationKind, Together, UnorderedEngine, buffer, contents, scattered,
};
use tcmu_handler::{Backstore, Extent, WriteFlags, ZeroFlags};
use tempfile::tempdir;

use super::workload::close;
use super::{open, qemu};

const CLUSTER: u64 = 4096;
const SIZE: u64 = 4 << 20;

#[test]
fn a_late_write_hits_nobody_elses_cluster() {
    let folder = tempdir().unwrap();
    let path = folder.path().join("a.qcow2");
    let image = open(&path, ";create=on;cluster_size=4k", SIZE).unwrap();
    let engine = UnorderedEngine::repeatable(5);
    let io = engine.io();
    let flags = WriteFlags::default();
    let full = |byte: u8, len: u64| scattered(&vec![byte; len as usize], 4096);
    let half = full(1, SIZE / 2);
    engine.run(image.write(&io, half.view(), 0, flags)).unwrap();
    engine.run(image.flush(&io)).unwrap();

    // The write finds the cluster, and then waits in the kernel.
    let late = full(0xee, CLUSTER);
    engine.hold(OperationKind::Write);
    let mut together = Together::new(&engine);
    together.add(image.write(&io, late.view(), 0, flags));
    together.poll();
    assert!(engine.holds(), "no write was begun");

    // Meanwhile it is unmapped, and so many others are written for the first time that its cluster
    // would be used again.
    let zeroed = Extent {
        offset: 0,
        len: CLUSTER,
    };
    engine.run(image.unmap(&io, zeroed)).unwrap();
    engine.run(image.flush(&io)).unwrap();
    let others = full(5, SIZE / 2);
    engine
        .run(image.write(&io, others.view(), SIZE / 2, flags))
        .unwrap();
    engine.release();
    together.finish_one().unwrap().unwrap();
    drop(together);

    let shown = buffer((SIZE / 2) as usize);
    engine.run(image.read(&io, shown.view(), SIZE / 2)).unwrap();
    assert!(contents(&shown).iter().all(|byte| *byte == 5));
    close(&engine, &image).unwrap();
    drop(image);
    qemu::check(&path, false);
}

#[test]
fn the_futures_of_requests_are_small() {
    let folder = tempdir().unwrap();
    let image = open(&folder.path().join("a.qcow2"), ";create=on", SIZE).unwrap();
    let engine = UnorderedEngine::repeatable(5);
    let io = engine.io();
    let data = buffer(512);
    let extent = Extent {
        offset: 0,
        len: CLUSTER,
    };
    let sizes = [
        size_of_val(&image.read(&io, data.view(), 0)),
        size_of_val(&image.write(&io, data.view(), 0, WriteFlags::default())),
        size_of_val(&image.flush(&io)),
        size_of_val(&image.unmap(&io, extent)),
        size_of_val(&image.write_zeroes(&io, extent, ZeroFlags::default())),
        size_of_val(&image.block_status(&io, extent)),
    ];
    assert!(sizes.iter().all(|size| *size <= 512), "{sizes:?} bytes");
}
