//! The way of a command through the ring needs no heap once it is warm.
#![allow(clippy::unwrap_used, reason = "this is a test")]

use std::sync::Arc;

use tcmu::abi;
use tcmu::mock::{Config, Data, MockKernel};
use tcmu::ring::{Command, Completion, Entry, Ring};
use tcmu_allocations::{Counting, allocations};

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const DEPTH: usize = 32;
const READ_16: [u8; 16] = [0x88, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 32, 0, 0];

/// Serves one batch: newest first, with the segments taken away and given back as an I/O engine
/// does.
fn serve(ring: &mut Ring, commands: &mut Vec<Command>) {
    while let Some(Entry::Command(command)) = ring.next().unwrap() {
        commands.push(command);
    }
    assert_eq!(commands.len(), DEPTH);
    while let Some(mut command) = commands.pop() {
        let (data, bidi_in) = command.take_segments();
        assert!(!data.is_empty());
        ring.recycle(data);
        ring.recycle(bidi_in);
        ring.complete(
            command,
            Completion {
                read_len: Some(4096),
                ..Completion::GOOD
            },
        );
    }
    assert!(ring.publish());
}

fn count_in_steady_state(flags: u16) -> usize {
    const WARM_UP: usize = 20;
    let (mut kernel, device) = MockKernel::new(Config {
        flags,
        ..Config::default()
    })
    .unwrap();
    let mut ring = Ring::new(Arc::clone(device.memory())).unwrap();
    let mut commands = Vec::with_capacity(DEPTH);
    let mut count = 0;
    for round in 0..WARM_UP + 200 {
        for _ in 0..DEPTH {
            kernel.submit(&READ_16, Data::In(16384)).unwrap();
        }
        let allocations = allocations(|| serve(&mut ring, &mut commands));
        if round >= WARM_UP {
            count += allocations;
        }
        assert_eq!(kernel.reap().len(), DEPTH);
    }
    assert_eq!(kernel.broken(), None);
    count
}

#[test]
fn allocations_are_counted() {
    assert_eq!(allocations(|| drop(std::hint::black_box(Box::new(1)))), 1);
}

#[test]
fn a_warm_ring_does_not_allocate() {
    let flags = Config::default().flags;
    assert_eq!(count_in_steady_state(flags), 0);
    assert_eq!(count_in_steady_state(flags & !abi::FLAG_OUT_OF_ORDER), 0);
}
