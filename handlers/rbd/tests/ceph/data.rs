//! What is written is what is read.

use anyhow::ensure;
use futures_util::future::join_all;
use proptest::strategy::{Strategy, ValueTree};
use proptest::test_runner::TestRunner;
use tcmu_ceph::Cluster;
use tcmu_handler::testing::{Disk, block_on, steps};
use tcmu_handler::{Backstore, Comparison, Extent};

use crate::Test;
use crate::image::{KIB, MIB, Opened, open};

pub(crate) const TESTS: &[(&str, Test)] = &[
    ("every_request_does_what_a_disk_does", every_request),
    ("sixteen_at_once_do_not_disturb_each_other", sixteen_at_once),
    ("a_parents_bytes_show_through_and_can_be_zeroed", clone),
    ("what_was_never_written_has_no_storage", block_status),
    ("a_flush_empties_the_librarys_cache", flush),
    ("of_two_swaps_of_the_same_sector_one_wins", swaps),
];

fn every_request(cluster: &Cluster) -> anyhow::Result<()> {
    let blocks = 8192;
    let mut runner = TestRunner::deterministic();
    let steps = steps(blocks, 4096);
    for _ in 0..4 {
        let config = cluster.config(&cluster.image(blocks * 512)?, "");
        let opened = open(&config, blocks * 512)?;
        let capabilities = opened.image.capabilities();
        ensure!(capabilities.compare_and_write == 512 && capabilities.write_zeroes);
        let steps = steps.new_tree(&mut runner).unwrap().current();
        Disk::new(blocks, 512).run(&opened.image, &steps);
        opened.close()?;
    }
    Ok(())
}

/// A source of numbers that is the same every time.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }

    fn bytes(&mut self, len: usize) -> Vec<u8> {
        std::iter::repeat_with(|| self.below(256) as u8)
            .take(len)
            .collect()
    }
}

/// What one of those who work at once owns of the image.
const SHARE: u64 = 640 * KIB;

/// One of those who work at once: has a part of the image for itself, and knows what must be there.
async fn work(opened: &Opened, lane: u64, requests: usize) -> anyhow::Result<()> {
    let begin = lane * SHARE;
    let mut model = vec![0; SHARE as usize];
    let mut numbers = Numbers(0x9e37_79b9 + lane);
    for request in 0..requests {
        let len = 512 * (1 + numbers.below(256));
        let at = 512 * numbers.below((SHARE - len) / 512 + 1);
        let here = at as usize..(at + len) as usize;
        let extent = Extent {
            offset: begin + at,
            len,
        };
        match numbers.below(10) {
            0..=3 => {
                let bytes = numbers.bytes(len as usize);
                opened.write_bytes(extent.offset, &bytes).await?;
                model[here].copy_from_slice(&bytes);
            }
            4..=6 => {
                let bytes = opened.read_bytes(extent.offset, len as usize).await?;
                ensure!(
                    bytes == model[here],
                    "lane {lane}, request {request}: {extent:?}"
                );
            }
            7 => {
                opened.image.unmap(&opened.io, extent).await?;
                model[here].fill(0);
            }
            8 => {
                opened.zero(extent, request % 2 == 0).await?;
                model[here].fill(0);
            }
            _ => {
                let sector = &mut model[at as usize..at as usize + 512];
                let mut expected = sector.to_vec();
                let wrong = numbers.below(1024) as usize;
                if let Some(byte) = expected.get_mut(wrong) {
                    *byte ^= 1;
                }
                let new = numbers.bytes(512);
                let swapped = opened.swap(extent.offset, &expected, &new).await?;
                if wrong < 512 {
                    ensure!(
                        swapped == Comparison::DiffersAt(wrong),
                        "{swapped:?}, {wrong}"
                    );
                } else {
                    ensure!(swapped == Comparison::Equal, "{swapped:?}");
                    sector.copy_from_slice(&new);
                }
            }
        }
    }
    let all = opened.read_bytes(begin, SHARE as usize).await?;
    ensure!(all == model, "lane {lane} in the end");
    Ok(())
}

fn sixteen_at_once(cluster: &Cluster) -> anyhow::Result<()> {
    let size = 16 * SHARE;
    let opened = open(&cluster.config(&cluster.image(size)?, ""), size)?;
    let lanes = (0..16).map(|lane| work(&opened, lane, 120));
    for result in block_on(join_all(lanes)) {
        result?;
    }
    opened.close()
}

fn clone(cluster: &Cluster) -> anyhow::Result<()> {
    let parent = cluster.image(4 * MIB)?;
    let opened = open(&cluster.config(&parent, ""), 4 * MIB)?;
    for at in 0..8 {
        opened.write(at * 512 * KIB, 1 + at as u8)?;
    }
    opened.close()?;
    cluster.rbd(&["snap", "create", &format!("{parent}@s")])?;
    let child = format!("{parent}-child");
    let make = ["clone", "--rbd-default-clone-format", "2"];
    cluster.rbd(&[&make[..], &[&format!("{parent}@s"), &child]].concat())?;

    let opened = open(&cluster.config(&child, ""), 4 * MIB)?;
    ensure!(opened.holds(0, 1)? && opened.holds(3584 * KIB, 8)?);
    opened.write(512 * KIB, 0x55)?;
    let one = |offset| Extent { offset, len: 4096 };
    block_on(opened.image.unmap(&opened.io, one(MIB)))?;
    block_on(opened.zero(one(1536 * KIB), false))?;
    let all = Extent {
        offset: 3 * MIB,
        len: MIB,
    };
    block_on(opened.image.unmap(&opened.io, all))?;
    for (at, value) in [1, 0x55, 0, 0, 5, 6, 0, 0].into_iter().enumerate() {
        ensure!(opened.holds(at as u64 * 512 * KIB, value)?, "{at}");
    }
    opened.close()?;
    let opened = open(&cluster.config(&parent, ""), 4 * MIB)?;
    for at in 0..8 {
        ensure!(
            opened.holds(at * 512 * KIB, 1 + at as u8)?,
            "the parent changed"
        );
    }
    opened.close()
}

fn block_status(cluster: &Cluster) -> anyhow::Result<()> {
    let opened = open(&cluster.config(&cluster.image(8 * MIB)?, ""), 8 * MIB)?;
    opened.write(2 * MIB + 4096, 7)?;
    let status = |offset, len| {
        block_on(
            opened
                .image
                .block_status(&opened.io, Extent { offset, len }),
        )
    };
    let hole = status(MIB, 4 * MIB)?;
    ensure!(!hole.mapped && hole.len == MIB, "{hole:?}");
    let data = status(2 * MIB, 4 * MIB)?;
    ensure!(data.mapped && data.len == MIB, "{data:?}");
    let rest = status(3 * MIB, 5 * MIB)?;
    ensure!(!rest.mapped && rest.len == 5 * MIB, "{rest:?}");
    let inside = status(2 * MIB + 8192, 4096)?;
    ensure!(inside.mapped && inside.len == 4096, "{inside:?}");
    opened.close()
}

fn flush(cluster: &Cluster) -> anyhow::Result<()> {
    let name = cluster.image(4 * MIB)?;
    let plain = open(&cluster.config(&name, ""), 4 * MIB)?;
    ensure!(!plain.image.capabilities().volatile_cache);
    plain.close()?;
    cluster.rbd(&["config", "image", "set", &name, "rbd_cache", "true"])?;
    let through = [
        "config",
        "image",
        "set",
        &name,
        "rbd_cache_writethrough_until_flush",
        "false",
    ];
    cluster.rbd(&through)?;
    let opened = open(&cluster.config(&name, ""), 4 * MIB)?;
    ensure!(
        opened.image.capabilities().volatile_cache,
        "the cache is not known"
    );
    opened.write(MIB, 9)?;
    block_on(opened.image.flush(&opened.io))?;
    // Somebody who only reads sees what is in the cluster, and not the other's cache.
    let reader = open(&cluster.config(&name, ";readonly=on"), 4 * MIB)?;
    ensure!(reader.holds(MIB, 9)?, "the flush left it in the cache");
    reader.close()?;
    opened.close()
}

fn swaps(cluster: &Cluster) -> anyhow::Result<()> {
    let opened = open(&cluster.config(&cluster.image(MIB)?, ""), MIB)?;
    for round in 0..20u8 {
        let (old, new) = ([round; 512], [round + 1; 512]);
        let swaps = (0..4).map(|_| opened.swap(4096, &old, &new));
        let mut won = 0;
        for result in block_on(join_all(swaps)) {
            match result? {
                Comparison::Equal => won += 1,
                Comparison::DiffersAt(at) => ensure!(at == 0, "{at}"),
            }
        }
        ensure!(won == 1, "{won} won");
    }
    opened.close()
}
