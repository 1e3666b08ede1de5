//! The OSD stops, and comes back.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use futures_util::future::join_all;
use tcmu_ceph::Cluster;
use tcmu_handler::testing::block_on;
use tcmu_handler::{Backstore, ErrorKind, Extent};

use crate::Test;
use crate::image::{KIB, MIB, Opened, is, open, try_open};

pub(crate) const TESTS: &[(&str, Test)] = &[
    ("a_short_stop_delays_and_loses_nothing", short_stop),
    ("a_long_stop_ends_requests_within_the_limit", long_stop),
    ("an_image_closes_while_the_osd_has_stopped", close),
    (
        "an_osd_that_is_killed_loses_no_write_that_had_completed",
        killed,
    ),
];

/// Writes blocks of its own, 4 KiB each, until it is told to stop; returns what the last write to each
/// place was.
async fn write_on(opened: &Opened, lane: u64, stop: &AtomicBool) -> Vec<(u64, u8)> {
    let mut written = vec![None; 16];
    for round in 0.. {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let (place, value) = (round % 16, (round % 251) as u8 + 1);
        let offset = (lane * 16 + place as u64) * 4 * KIB;
        // An initiator repeats what has timed out, too.
        while let Err(error) = opened.write_bytes(offset, &[value; 4096]).await {
            assert_eq!(error.kind(), ErrorKind::TimedOut, "{error}");
        }
        written[place] = Some((offset, value));
    }
    written.into_iter().flatten().collect()
}

/// Has eight write at once while `disturb` does what it does to the cluster, and looks for what they
/// wrote.
fn under_writes(
    cluster: &Cluster,
    options: &str,
    disturb: impl FnOnce(&Cluster) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let config = cluster.config(&cluster.image(MIB)?, options);
    let stop = AtomicBool::new(false);
    let (result, written) = thread::scope(|scope| {
        let writers = scope.spawn(|| {
            let opened = open(&config, MIB)?;
            let lanes = (0..8).map(|lane| write_on(&opened, lane, &stop));
            let written = block_on(join_all(lanes));
            opened.close()?;
            anyhow::Ok(written)
        });
        thread::sleep(Duration::from_millis(300));
        // On this thread: the daemons die with the one that started them.
        let result = disturb(cluster);
        thread::sleep(Duration::from_millis(300));
        stop.store(true, Ordering::Relaxed);
        (result, writers.join())
    });
    result?;
    let written = written.map_err(|_| anyhow::anyhow!("a writer panicked"))??;
    let opened = open(&config, MIB)?;
    let mut count = 0;
    for (offset, value) in written.into_iter().flatten() {
        ensure!(
            opened.holds(offset, value)?,
            "the write at {offset} is lost"
        );
        count += 1;
    }
    ensure!(count >= 8, "only {count} blocks were written");
    opened.close()
}

fn short_stop(cluster: &Cluster) -> anyhow::Result<()> {
    under_writes(cluster, "", |cluster| {
        cluster.freeze_osd()?;
        thread::sleep(Duration::from_secs(1));
        cluster.thaw_osd()
    })
}

fn long_stop(cluster: &Cluster) -> anyhow::Result<()> {
    let opened = open(
        &cluster.config(&cluster.image(MIB)?, ";osd_op_timeout=5"),
        MIB,
    )?;
    opened.write(0, 1)?;
    cluster.freeze_osd()?;
    let begin = Instant::now();
    let (write, read, zero) = block_on(async {
        let extent = Extent {
            offset: 8192,
            len: 4096,
        };
        futures_util::future::join3(
            opened.write_bytes(4096, &[2; 4096]),
            opened.read_bytes(0, 4096),
            opened.image.unmap(&opened.io, extent),
        )
        .await
    });
    let took = begin.elapsed();
    cluster.thaw_osd()?;
    for error in [write.unwrap_err(), read.unwrap_err(), zero.unwrap_err()] {
        is(&error, ErrorKind::TimedOut, "within 5 s")?;
    }
    // Ceph counts from a clock that may be some milliseconds behind (CLOCK_MONOTONIC_COARSE).
    ensure!(
        took >= Duration::from_millis(4900),
        "it gave up after {took:?}"
    );
    // As if nothing had been.
    let deadline = Instant::now() + Duration::from_secs(60);
    while let Err(error) = opened.write(4096, 3) {
        ensure!(Instant::now() < deadline, "it does not come back: {error}");
    }
    ensure!(opened.holds(0, 1)? && opened.holds(4096, 3)?);
    opened.close()
}

fn close(cluster: &Cluster) -> anyhow::Result<()> {
    let config = cluster.config(&cluster.image(MIB)?, ";osd_op_timeout=3");
    let opened = open(&config, MIB)?;
    opened.write(0, 1)?;
    cluster.freeze_osd()?;
    let closed = opened.close();
    let refused = try_open(&config, MIB).map(drop);
    cluster.thaw_osd()?;
    closed?;
    let error = refused.err().context("it opened")?;
    is(&error, ErrorKind::TimedOut, "not answered")?;
    let opened = open(&config, MIB)?;
    ensure!(opened.holds(0, 1)?);
    opened.close()
}

fn killed(cluster: &Cluster) -> anyhow::Result<()> {
    for _ in 0..2 {
        under_writes(cluster, ";osd_op_timeout=60", |cluster| {
            cluster.kill_osd()?;
            cluster.restart_osd()
        })?;
    }
    Ok(())
}
