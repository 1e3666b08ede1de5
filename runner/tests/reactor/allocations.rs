//! Reads and writes allocate nothing once the LUN has warmed up.

use tcmu::mock::Config;
use tcmu_allocations::{Counting, allocations};
use tcmu_handler::{Backstore, Handler, OpenRequest};
use tcmu_handler_qcow::QcowHandler;
use tcmu_nbd_servers::Server;

use crate::external::Foreign;
use crate::lun::{BLOCK, Lun, SIZE, image, pattern};
use crate::nbd::open;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

#[test]
fn the_count_counts() {
    assert_eq!(allocations(|| drop(std::hint::black_box(Box::new(1)))), 1);
}

#[test]
fn reads_and_writes_allocate_nothing() {
    let folder = tempfile::tempdir().unwrap();
    check(image(folder.path()));
}

#[test]
fn reads_and_writes_of_mapped_clusters_allocate_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("image.qcow2");
    let request = OpenRequest {
        config: format!("{};create=on;preallocation=full", path.display())
            .parse()
            .unwrap(),
        size: SIZE,
        block_size: BLOCK as u32,
    };
    check(QcowHandler.open(&request).unwrap());
}

#[test]
fn what_a_library_reads_and_writes_allocates_nothing() {
    check(Foreign::new());
}

#[test]
fn reads_and_writes_of_an_nbd_export_allocate_nothing() {
    let server = Server::nbdkit_on_a_file(&[], SIZE);
    check(open(&server, ""));
}

fn check(backstore: impl Backstore) {
    // Poisoning is the mock's own work, and slow.
    let config = Config {
        blocks: 4096,
        poison: false,
        ..Config::default()
    };
    let mut lun = Lun::with_config(backstore, config);
    let data = pattern(5, 64 * BLOCK);
    let round = |lun: &mut Lun| {
        let mut tags = Vec::new();
        for number in 0..16 {
            tags.push(lun.write(number * 64, &data));
            tags.push(lun.read(number * 64, 64));
            tags.push(lun.read(number * 64 + 3, 8));
        }
        // Only what the runner does is counted, not what the mock kernel does.
        let mut count = 0;
        let mut finished = 0;
        let mut wait = true;
        while finished < tags.len() {
            count += allocations(|| {
                lun.reactor.turn(wait).unwrap();
            });
            let reaped = lun.kernel.reap();
            assert!(reaped.iter().all(|finished| finished.status == 0));
            finished += reaped.len();
            wait = reaped.is_empty();
        }
        count
    };
    let first = round(&mut lun);
    assert!(
        first > 0,
        "nothing was allocated even at first: the count does not work"
    );
    for _ in 0..10 {
        round(&mut lun);
    }
    // When the kernel is slower than ever before, more is in flight than ever before, and lists grow
    // once. What a command allocates shows in every round.
    let counts: Vec<_> = (0..50).map(|_| round(&mut lun)).collect();
    let grown = counts.iter().filter(|count| **count > 0).count();
    assert!(grown <= 5, "{counts:?}");
}
