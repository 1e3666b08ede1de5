//! Two clients of one image, and clients that are shut out.

use std::io::{BufRead as _, BufReader};
use std::process::{Command, ExitCode, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use tcmu_ceph::Cluster;
use tcmu_handler::ErrorKind;

use crate::Test;
use crate::image::{KIB, MIB, Opened, is, open, refused};

pub(crate) const TESTS: &[(&str, Test)] = &[
    ("two_clients_hand_the_lock_to_and_fro", to_and_fro),
    ("who_locks_at_opening_keeps_others_out", kept),
    (
        "a_client_that_was_shut_out_comes_back_when_nobody_else_came",
        comes_back,
    ),
    ("a_client_whose_image_was_taken_over_stays_out", taken_over),
    ("an_image_without_a_lock_stays_closed", no_lock),
    ("the_lock_of_a_dead_daemon_is_broken_at_once", dead),
];

fn to_and_fro(cluster: &Cluster) -> anyhow::Result<()> {
    let name = cluster.image(MIB)?;
    let first = open(&cluster.config(&name, ""), MIB)?;
    let second = open(&cluster.config(&name, ""), MIB)?;
    for round in 0..6u8 {
        let (writer, reader) = if round % 2 == 0 {
            (&first, &second)
        } else {
            (&second, &first)
        };
        writer.write(u64::from(round) * 4 * KIB, round + 1)?;
        ensure!(reader.holds(u64::from(round) * 4 * KIB, round + 1)?);
    }
    first.close()?;
    second.close()
}

fn kept(cluster: &Cluster) -> anyhow::Result<()> {
    let name = cluster.image(MIB)?;
    let owner = open(&cluster.config(&name, ";lock=open"), MIB)?;
    owner.write(0, 1)?;
    let other = open(&cluster.config(&name, ""), MIB)?;
    ensure!(other.holds(0, 1)?, "reading needs no lock");
    is(
        &other.write(0, 2).unwrap_err(),
        ErrorKind::InUse,
        "another client",
    )?;
    let error = refused(&cluster.config(&name, ";lock=open"), MIB)?;
    is(&error, ErrorKind::InUse, "another client")?;
    owner.write(4096, 1)?;
    ensure!(owner.holds(0, 1)?, "who was refused has written");
    owner.close()?;
    other.write(0, 2)?;
    ensure!(other.holds(0, 2)?);
    other.close()?;

    let bare = cluster.image(MIB)?;
    let features = ["object-map", "fast-diff", "exclusive-lock"];
    cluster.rbd(&[&["feature", "disable", &bare], &features[..]].concat())?;
    let error = refused(&cluster.config(&bare, ";lock=open"), MIB)?;
    is(&error, ErrorKind::InvalidConfig, "rbd feature enable")
}

/// The address of the one client that watches an image.
fn client_of(cluster: &Cluster, image: &str) -> anyhow::Result<String> {
    let status = cluster.rbd(&["status", image])?;
    let watcher = status
        .split("watcher=")
        .nth(1)
        .context("nobody has it open")?;
    let address = watcher.split_whitespace().next().unwrap_or_default();
    Ok(address.to_owned())
}

/// Writes until the client notices that it was shut out.
fn until_shut_out(opened: &Opened) -> anyhow::Result<tcmu_handler::Error> {
    let deadline = Instant::now() + Duration::from_secs(60);
    while Instant::now() < deadline {
        if let Err(error) = opened.write(512 * KIB, 0xbb) {
            return Ok(error);
        }
        thread::sleep(Duration::from_millis(20));
    }
    anyhow::bail!("it still writes")
}

/// Writes until that succeeds again.
fn until_it_writes(opened: &Opened, value: u8) -> anyhow::Result<()> {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        match opened.write(512 * KIB, value) {
            Ok(()) => return Ok(()),
            Err(error) => ensure!(Instant::now() < deadline, "it does not come back: {error}"),
        }
        thread::sleep(Duration::from_millis(100));
    }
}

fn comes_back(cluster: &Cluster) -> anyhow::Result<()> {
    for options in ["", ";lock=open"] {
        let name = cluster.image(MIB)?;
        let opened = open(&cluster.config(&name, options), MIB)?;
        opened.write(0, 1)?;
        let before = client_of(cluster, &name)?;
        cluster.ceph(&["osd", "blocklist", "add", &before, "3600"])?;
        let error = until_shut_out(&opened)?;
        is(&error, ErrorKind::Gone, "blocklist")?;
        until_it_writes(&opened, 7)?;
        ensure!(opened.holds(0, 1)? && opened.holds(512 * KIB, 7)?);
        let now = client_of(cluster, &name)?;
        ensure!(now != before, "it is the client that was shut out: {now}");
        // It still hears of news.
        cluster.rbd(&["resize", &name, "--size", "2M"])?;
        let resized = tcmu_handler::Backstore::resized(&opened.image, &opened.io, MIB);
        tcmu_handler::testing::block_on(resized);
        opened.close()?;
    }
    Ok(())
}

fn taken_over(cluster: &Cluster) -> anyhow::Result<()> {
    let name = cluster.image(MIB)?;
    let old = open(&cluster.config(&name, ""), MIB)?;
    old.write(0, 1)?;
    let address = client_of(cluster, &name)?;
    cluster.ceph(&["osd", "blocklist", "add", &address, "3600"])?;
    let new = open(&cluster.config(&name, ";lock=open"), MIB)?;
    new.write(0, 2)?;
    is(&until_shut_out(&old)?, ErrorKind::Gone, "blocklist")?;
    let error = old.write(0, 3).unwrap_err();
    is(&error, ErrorKind::InUse, "has taken")?;
    ensure!(old.holds(0, 2).is_err(), "it reads what it may not");
    ensure!(new.holds(0, 2)?, "the old client has written");
    new.close()?;
    // Now it may.
    until_it_writes(&old, 4)?;
    ensure!(old.holds(0, 2)?);
    old.close()
}

fn no_lock(cluster: &Cluster) -> anyhow::Result<()> {
    let name = cluster.image(MIB)?;
    let features = ["object-map", "fast-diff", "exclusive-lock"];
    cluster.rbd(&[&["feature", "disable", &name], &features[..]].concat())?;
    let opened = open(&cluster.config(&name, ""), MIB)?;
    opened.write(0, 1)?;
    let address = client_of(cluster, &name)?;
    cluster.ceph(&["osd", "blocklist", "add", &address, "3600"])?;
    is(&until_shut_out(&opened)?, ErrorKind::Gone, "blocklist")?;
    is(
        &opened.write(0, 2).unwrap_err(),
        ErrorKind::Gone,
        "no exclusive lock",
    )?;
    opened.close()
}

/// First argument: be a process that holds the lock of the image of the configuration named next.
pub(crate) const HOLD: &str = "--hold";

/// Says that it holds the lock, and is there until it is killed.
pub(crate) fn hold(config: &str) -> ExitCode {
    let opened = open(config, MIB).unwrap();
    opened.write(0, 1).unwrap();
    println!("held");
    loop {
        thread::park();
    }
}

fn dead(cluster: &Cluster) -> anyhow::Result<()> {
    let name = cluster.image(MIB)?;
    let config = cluster.config(&name, "");
    let mut holder = Command::new(std::env::current_exe()?)
        .args([HOLD, &config])
        .stdout(Stdio::piped())
        .spawn()?;
    let mut said = String::new();
    let output = holder.stdout.take().context("no output")?;
    BufReader::new(output).read_line(&mut said)?;
    ensure!(said == "held\n", "{said}");
    let address = client_of(cluster, &name)?;
    // A daemon that lives is left alone.
    let other = open(&config, MIB)?;
    ensure!(!is_blocklisted(cluster, &address)?, "it was alive");
    other.close()?;
    holder.kill()?;
    holder.wait()?;
    let successor = open(&config, MIB)?;
    ensure!(
        is_blocklisted(cluster, &address)?,
        "the cluster waits for it"
    );
    successor.write(0, 2)?;
    ensure!(successor.holds(0, 2)?);
    successor.close()
}

fn is_blocklisted(cluster: &Cluster, address: &str) -> anyhow::Result<bool> {
    Ok(cluster.ceph(&["osd", "blocklist", "ls"])?.contains(address))
}
