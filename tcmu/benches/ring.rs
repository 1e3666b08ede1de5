//! What the ring costs per batch of commands: fetch, complete, publish.
//!
//! The mock kernel's work, and the data's way, are not measured.
//!
//! ```text
//! cargo bench -p tcmu
//! cargo bench -p tcmu -- out_of_order --sample-count 1000
//! ```
#![allow(
    clippy::unwrap_used,
    reason = "a benchmark has nobody to report errors to"
)]

use std::cell::RefCell;
use std::sync::Arc;

use divan::Bencher;
use divan::counter::ItemsCount;
use tcmu::abi;
use tcmu::mock::{Config, Data, MockKernel};
use tcmu::ring::{Command, Completion, Entry, Ring};

const READ_16: [u8; 16] = [0x88, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 8, 0, 0];
const DEPTHS: [usize; 3] = [1, 32, 256];

fn main() {
    divan::main();
}

fn measure(
    bencher: Bencher<'_, '_>,
    depth: usize,
    flags: u16,
    serve: fn(&mut Ring, &mut Vec<Command>),
) {
    let config = Config {
        flags,
        poison: false,
        ..Config::default()
    };
    let (mut kernel, device) = MockKernel::new(config).unwrap();
    let mut ring = Ring::new(Arc::clone(device.memory())).unwrap();
    // Events are no part of this: nobody listens.
    kernel.plug();
    let kernel = RefCell::new(kernel);
    let mut commands = Vec::with_capacity(depth);
    bencher
        .counter(ItemsCount::new(depth))
        .with_inputs(|| {
            let mut kernel = kernel.borrow_mut();
            kernel.reap();
            for _ in 0..depth {
                kernel.submit(&READ_16, Data::In(4096)).unwrap();
            }
        })
        .bench_local_values(|()| serve(&mut ring, &mut commands));
    assert_eq!(kernel.borrow().broken(), None);
}

fn fetch(ring: &mut Ring, commands: &mut Vec<Command>) {
    while let Some(Entry::Command(command)) = ring.next().unwrap() {
        commands.push(command);
    }
}

// One batch per sample, because the ring cannot hold the inputs of more.

#[divan::bench(args = DEPTHS, sample_size = 1, sample_count = 5000)]
fn in_order(bencher: Bencher<'_, '_>, depth: usize) {
    measure(bencher, depth, Config::default().flags, |ring, commands| {
        fetch(ring, commands);
        for command in commands.drain(..) {
            ring.complete(command, Completion::GOOD);
        }
        divan::black_box(ring.publish());
    });
}

#[divan::bench(args = DEPTHS, sample_size = 1, sample_count = 5000)]
fn out_of_order(bencher: Bencher<'_, '_>, depth: usize) {
    measure(bencher, depth, Config::default().flags, |ring, commands| {
        fetch(ring, commands);
        while let Some(command) = commands.pop() {
            ring.complete(command, Completion::GOOD);
        }
        divan::black_box(ring.publish());
    });
}

#[divan::bench(args = DEPTHS, sample_size = 1, sample_count = 5000)]
fn held_back(bencher: Bencher<'_, '_>, depth: usize) {
    let flags = Config::default().flags & !abi::FLAG_OUT_OF_ORDER;
    measure(bencher, depth, flags, |ring, commands| {
        fetch(ring, commands);
        while let Some(command) = commands.pop() {
            ring.complete(command, Completion::GOOD);
        }
        divan::black_box(ring.publish());
    });
}
