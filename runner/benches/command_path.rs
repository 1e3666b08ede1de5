//! What a command costs on its whole way through the runner: ring, reactor, device server, backstore,
//! publication and kick, on the mock kernel.
//!
//! `null` is the runner alone; `file` adds io_uring and the page cache; `qcow` adds the mapping of a
//! preallocated image, and where it is empty, the allocation of clusters. The mock kernel's own work is
//! not measured.
//!
//! ```text
//! cargo bench -p tcmu-runner
//! cargo bench -p tcmu-runner -- file_read --sample-count 1000
//! ```
#![allow(
    clippy::unwrap_used,
    reason = "a benchmark has nobody to report errors to"
)]

#[path = "../examples/support/mod.rs"]
mod support;

use divan::Bencher;
use divan::counter::ItemsCount;
use support::{EMPTY_QCOW, FILE, Lun, NULL, QCOW, Way};

const DEPTHS: [usize; 2] = [1, 32];

fn main() {
    divan::main();
}

#[divan::bench(args = DEPTHS)]
fn null_read(bencher: Bencher<'_, '_>, depth: usize) {
    measure(bencher, &mut NULL.lun(), Way::Read, depth);
}

#[divan::bench(args = DEPTHS)]
fn null_write(bencher: Bencher<'_, '_>, depth: usize) {
    measure(bencher, &mut NULL.lun(), Way::Write, depth);
}

#[divan::bench(args = DEPTHS)]
fn file_read(bencher: Bencher<'_, '_>, depth: usize) {
    measure(bencher, &mut FILE.lun(), Way::Read, depth);
}

#[divan::bench(args = DEPTHS)]
fn file_write(bencher: Bencher<'_, '_>, depth: usize) {
    measure(bencher, &mut FILE.lun(), Way::Write, depth);
}

#[divan::bench(args = DEPTHS)]
fn qcow_read(bencher: Bencher<'_, '_>, depth: usize) {
    measure(bencher, &mut QCOW.lun(), Way::Read, depth);
}

#[divan::bench(args = DEPTHS)]
fn qcow_write(bencher: Bencher<'_, '_>, depth: usize) {
    measure(bencher, &mut QCOW.lun(), Way::Write, depth);
}

/// 1024 clusters are allocated in all.
#[divan::bench(args = DEPTHS, sample_count = 32, sample_size = 1)]
fn empty_qcow_write(bencher: Bencher<'_, '_>, depth: usize) {
    measure(bencher, &mut EMPTY_QCOW.lun(), Way::Write, depth);
}

fn measure(bencher: Bencher<'_, '_>, lun: &mut Lun, way: Way, depth: usize) {
    let lun = std::cell::RefCell::new(lun);
    bencher
        .counter(ItemsCount::new(depth))
        .with_inputs(|| lun.borrow_mut().submit(way, depth))
        .bench_local_values(|()| lun.borrow_mut().serve(depth));
}
