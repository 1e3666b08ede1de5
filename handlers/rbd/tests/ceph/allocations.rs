//! Requests allocate nothing here once as many have been under way as ever are; what librbd allocates for
//! itself does not go through Rust's allocator.

use std::cell::Cell;
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::task::Poll;

use anyhow::ensure;
use futures_util::future::join_all;
use tcmu_allocations::{Counting, allocations};
use tcmu_ceph::Cluster;
use tcmu_handler::testing::{block_on, buffer};
use tcmu_handler::{Backstore, WriteFlags};

use crate::Test;
use crate::image::{KIB, MIB, Opened, open};

pub(crate) const TESTS: &[(&str, Test)] = &[("requests_allocate_nothing", nothing)];

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Adds what `future` allocates to `sum`.
async fn counted<F: Future>(future: F, sum: &Cell<usize>) -> F::Output {
    let mut future = pin!(future);
    poll_fn(|context| {
        let mut result = Poll::Pending;
        let count = allocations(|| result = future.as_mut().poll(context));
        sum.set(sum.get() + count);
        result
    })
    .await
}

/// Sixteen writes at once, then sixteen reads; returns how often they allocated.
fn round(opened: &Opened) -> anyhow::Result<usize> {
    let buffers: Vec<_> = (0..16).map(|_| buffer(16 << 10)).collect();
    let sum = Cell::new(0);
    let (image, io) = (&opened.image, &opened.io);
    let flags = WriteFlags::default();
    let lanes = || buffers.iter().zip(0..);
    let writes = lanes().map(|(buffer, lane)| {
        counted(image.write(io, buffer.view(), lane * 32 * KIB, flags), &sum)
    });
    for written in block_on(join_all(writes)) {
        written?;
    }
    let reads =
        lanes().map(|(buffer, lane)| counted(image.read(io, buffer.view(), lane * 32 * KIB), &sum));
    for read in block_on(join_all(reads)) {
        read?;
    }
    Ok(sum.get())
}

fn nothing(cluster: &Cluster) -> anyhow::Result<()> {
    let opened = open(&cluster.config(&cluster.image(MIB)?, ""), MIB)?;
    let first = round(&opened)?;
    ensure!(
        first > 0,
        "nothing was allocated even at first: the count does not work"
    );
    round(&opened)?;
    for number in 0..20 {
        let count = round(&opened)?;
        ensure!(count == 0, "round {number} has allocated {count} times");
    }
    opened.close()
}
