//! The `qcow` handler without a client, beside `qemu-img bench`, which has none either.
//!
//! Ours takes the whole way of a command, from the ring to the completion, on a mock kernel whose own
//! work counts too; qemu's is a loop over its block layer. Both write through the page cache, and
//! touch the clusters of an image of 64 KiB clusters in the same order.

use std::fmt::Write as _;
use std::fs;
use std::num::NonZeroU32;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use tcmu::mock::{Config, Data, MockKernel};
use tcmu_handler::{Handler, OpenRequest};
use tcmu_handler_qcow::QcowHandler;
use tcmu_runner::LocalReactor;
use tcmu_runner::device_server::{Geometry, Identity};

use crate::command::output;
use crate::host::require;
use crate::stats::Spread;

const CLUSTER: u64 = 64 << 10;
/// A power of two, so that an odd number of clusters as a step leads to every one of them.
const CLUSTERS: u64 = 1 << 14;
const STEP: u64 = 6_361;
const BLOCK: u32 = 512;
const TRANSFER: usize = 4096;
const DEPTH: usize = 32;

/// What is asked of both.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Work {
    Allocate,
    Overwrite,
    Read,
}

impl Work {
    const ALL: [Self; 3] = [Self::Allocate, Self::Overwrite, Self::Read];

    fn title(self) -> &'static str {
        match self {
            Self::Allocate => "writes that allocate",
            Self::Overwrite => "writes in place",
            Self::Read => "reads",
        }
    }
}

/// Measures in `folder`, both in turn, and returns a table.
///
/// # Errors
/// No qemu-img, and a folder that takes no images.
pub fn compare(folder: &Path, rounds: u32) -> Result<String> {
    require("qemu-img", "qemu-utils")?;
    let mut table = format!(
        "4k, depth {DEPTH}, {CLUSTERS} requests, one per cluster of 64 KiB, in {}: medians of \
         {rounds} rounds [smallest to largest]\n\n\
         | | ours | qemu-img bench | ratio |\n| --- | --: | --: | --: |\n",
        folder.display()
    );
    let folder = tempfile::tempdir_in(folder).context("temporary folder")?;
    let image = folder.path().join("image.qcow2");
    for work in Work::ALL {
        let (mut ours, mut theirs) = (Vec::new(), Vec::new());
        for _ in 0..rounds {
            prepare(work, &image)?;
            ours.push(measure_ours(work, &image)?);
            prepare(work, &image)?;
            theirs.push(measure_qemu(work, &image)?);
        }
        let (ours, theirs) = Spread::of(ours)
            .zip(Spread::of(theirs))
            .context("no rounds")?;
        let cell = |spread: Spread| {
            format!(
                "{:.0} IOPS [{:.0} to {:.0}]",
                spread.median, spread.min, spread.max
            )
        };
        writeln!(
            table,
            "| {} | {} | {} | {:.2} |",
            work.title(),
            cell(ours),
            cell(theirs),
            ours.median / theirs.median
        )
        .context("the table")?;
    }
    Ok(table)
}

/// Makes the image anew: empty, or with data in every cluster.
fn prepare(work: Work, image: &Path) -> Result<()> {
    let size = (CLUSTERS * CLUSTER).to_string();
    let preallocation = match work {
        Work::Allocate => "off",
        Work::Overwrite | Work::Read => "falloc",
    };
    if image.exists() {
        if work == Work::Read {
            return Ok(());
        }
        fs::remove_file(image).context("the image of the round before")?;
    }
    output(
        Command::new("qemu-img")
            .args(["create", "-q", "-f", "qcow2", "-o"])
            .arg(format!("preallocation={preallocation}"))
            .arg(image)
            .arg(size),
    )
    .map(drop)
}

/// Requests per second of `qemu-img bench`.
fn measure_qemu(work: Work, image: &Path) -> Result<f64> {
    let mut command = Command::new("qemu-img");
    command
        .args(["bench", "-f", "qcow2", "-t", "writeback", "-i", "io_uring"])
        .args(["-c", &CLUSTERS.to_string(), "-d", &DEPTH.to_string()])
        .args(["-s", &TRANSFER.to_string()])
        .args(["-S", &(STEP * CLUSTER).to_string()]);
    if work != Work::Read {
        command.arg("-w");
    }
    let said = output(command.arg(image))?;
    let seconds = seconds(&said).with_context(|| format!("qemu-img bench says {said:?}"))?;
    Ok(CLUSTERS as f64 / seconds)
}

/// The time in "Run completed in 1.234 seconds."
fn seconds(said: &str) -> Option<f64> {
    let (_, rest) = said.split_once("Run completed in ")?;
    rest.split_ascii_whitespace().next()?.parse().ok()
}

/// Requests per second of the `qcow` handler.
fn measure_ours(work: Work, image: &Path) -> Result<f64> {
    let size = CLUSTERS * CLUSTER;
    let request = OpenRequest {
        config: image.display().to_string().parse()?,
        size,
        block_size: BLOCK,
    };
    let backstore = QcowHandler.open(&request)?;
    let config = Config {
        poison: false,
        ..Config::default()
    };
    let (mut kernel, device) = MockKernel::new(config).context("the mock kernel")?;
    let mut reactor = LocalReactor::new(1).context("the reactor")?;
    let memory = Arc::clone(device.memory());
    let geometry = Geometry {
        size,
        block_size: NonZeroU32::new(BLOCK).context("a block of no bytes")?,
        max_transfer_blocks: 0,
    };
    let identity = Identity::default();
    reactor.attach(
        Box::new(device),
        memory,
        backstore,
        identity,
        geometry,
        true,
    )?;

    let data = [0u8; TRANSFER];
    let blocks = TRANSFER as u32 / BLOCK;
    let (mut sent, mut done) = (0, 0);
    let start = Instant::now();
    let room = |sent: u64, done: u64| sent < CLUSTERS && sent - done < DEPTH as u64;
    while done < CLUSTERS {
        let has_more = room(sent, done);
        if has_more {
            kernel.plug();
        }
        while room(sent, done) {
            let cluster = sent * STEP % CLUSTERS;
            let block = (cluster * CLUSTER / u64::from(BLOCK)) as u32;
            let mut cdb = [0; 10];
            cdb[2..6].copy_from_slice(&block.to_be_bytes());
            cdb[8] = blocks as u8;
            let data = if work == Work::Read {
                cdb[0] = tcmu::scsi::opcode::READ_10;
                Data::In(TRANSFER)
            } else {
                cdb[0] = tcmu::scsi::opcode::WRITE_10;
                Data::Out(&data)
            };
            kernel.submit(&cdb, data).context("the ring")?;
            sent += 1;
        }
        if has_more {
            kernel.unplug();
        }
        reactor.turn(true)?;
        for finished in kernel.reap() {
            ensure!(finished.status == 0, "a command failed");
            done += 1;
        }
    }
    Ok(CLUSTERS as f64 / start.elapsed().as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_cluster_is_met_once() {
        let mut met = vec![false; CLUSTERS as usize];
        for number in 0..CLUSTERS {
            met[(number * STEP % CLUSTERS) as usize] = true;
        }
        assert!(met.iter().all(|met| *met));
    }

    #[test]
    fn qemus_words_are_understood() {
        let said = "Sending 5 write requests\nRun completed in 0.125 seconds.\n";
        assert_eq!(seconds(said), Some(0.125));
        assert_eq!(seconds("qemu-img: no"), None);
    }
}
