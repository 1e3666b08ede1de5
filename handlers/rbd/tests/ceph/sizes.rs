//! Images that become larger and smaller while they are used.

use std::pin::pin;

use anyhow::ensure;
use futures_util::future::{Either, select};
use tcmu_ceph::Cluster;
use tcmu_handler::testing::block_on;
use tcmu_handler::{Backstore, ErrorKind};

use crate::Test;
use crate::image::{MIB, is, open};

pub(crate) const TESTS: &[(&str, Test)] = &[
    ("a_size_that_somebody_changes_is_noticed", resized_elsewhere),
    ("a_larger_lun_gets_a_larger_image", resized_here),
];

fn resized_elsewhere(cluster: &Cluster) -> anyhow::Result<()> {
    let name = cluster.image(4 * MIB)?;
    let opened = open(&cluster.config(&name, ""), 4 * MIB)?;
    opened.write(3 * MIB, 3)?;
    for (size, shrink) in [(8, None), (2, Some("--allow-shrink")), (6, None)] {
        let known = opened.image.capabilities().size;
        let bytes = format!("{size}M");
        let resize = ["resize", &name, "--size", &bytes];
        cluster.rbd(&[&resize[..], shrink.as_slice()].concat())?;
        block_on(opened.image.resized(&opened.io, known));
        ensure!(
            opened.image.capabilities().size == size * MIB,
            "not {size} MiB"
        );
        let last = size * MIB - 4096;
        opened.write(last, 9)?;
        ensure!(opened.holds(last, 9)?);
        let beyond = opened.holds(size * MIB, 0).unwrap_err();
        is(&beyond, ErrorKind::OutOfRange, "beyond the end")?;
    }
    // What was cut off is gone.
    ensure!(opened.holds(3 * MIB, 0)?);
    opened.close()
}

fn resized_here(cluster: &Cluster) -> anyhow::Result<()> {
    let name = cluster.image(4 * MIB)?;
    let opened = open(&cluster.config(&name, ""), 4 * MIB)?;
    block_on(opened.image.resize(&opened.io, 6 * MIB))?;
    ensure!(opened.image.capabilities().size == 6 * MIB);
    opened.write(6 * MIB - 4096, 1)?;
    // A smaller LUN leaves the image alone.
    block_on(opened.image.resize(&opened.io, MIB))?;
    ensure!(opened.image.capabilities().size == 6 * MIB && opened.holds(6 * MIB - 4096, 1)?);
    opened.close()?;

    let reader = open(&cluster.config(&name, ";readonly=on"), MIB)?;
    let error = block_on(reader.image.resize(&reader.io, 8 * MIB)).unwrap_err();
    is(&error, ErrorKind::OutOfRange, "rbd resize")?;
    // Nobody tells who only reads; waiting for it disturbs nothing.
    let (waiting, reading) = (
        reader.image.resized(&reader.io, 6 * MIB),
        reader.read_bytes(0, 512),
    );
    match block_on(select(pin!(waiting), pin!(reading))) {
        Either::Left(_) => anyhow::bail!("nothing has changed"),
        Either::Right((read, _)) => ensure!(read?.len() == 512),
    }
    reader.close()
}
