//! What opens, and what is refused, with which words.

use std::fs;

use anyhow::ensure;
use tcmu_ceph::Cluster;
use tcmu_handler::{Backstore, ErrorKind, Handler};

use crate::Test;
use crate::image::{MIB, handler, is, open, refused};

pub(crate) const TESTS: &[(&str, Test)] = &[
    ("what_is_not_there_is_named", missing),
    ("a_wrong_key_is_told_from_a_missing_one", keys),
    (
        "a_monitor_that_is_down_is_told_within_the_limit",
        monitor_down,
    ),
    ("a_user_without_rights_is_told_which_are_needed", rights),
    ("a_namespace_is_a_place_of_its_own", namespace),
    ("a_snapshot_shows_the_past_and_takes_no_write", snapshot),
    ("an_image_opened_read_only_takes_no_write", read_only),
    ("a_check_changes_nothing", check),
];

fn missing(cluster: &Cluster) -> anyhow::Result<()> {
    let name = cluster.image(MIB)?;
    let config = |target: &str| cluster.config(target, "");
    for (config, says) in [
        (config("nopool/image"), "no pool nopool"),
        (config("rbd/noimage"), "no image rbd/noimage"),
        (config("rbd/nospace/image"), "no namespace nospace"),
        (config(&format!("{name}@nosnap")), "@nosnap"),
        (
            format!("{name};conf=/nonexistent/ceph.conf"),
            "/nonexistent/ceph.conf",
        ),
    ] {
        is(&refused(&config, MIB)?, ErrorKind::NotFound, says)?;
        let error = handler().check(&config.parse()?).unwrap_err();
        is(&error, ErrorKind::NotFound, says)?;
    }
    let error = refused(&config(&name), 2 * MIB)?;
    is(&error, ErrorKind::OutOfRange, "rbd resize")
}

fn keys(cluster: &Cluster) -> anyhow::Result<()> {
    let name = cluster.image(MIB)?;
    let keyring = cluster.path("wrong-keyring");
    fs::write(
        &keyring,
        "[client.admin]\n\tkey = AQC1mEVnAAAAABAAr5YZ1p0tq4yHGNlBl2yZHA==\n",
    )?;
    let line = format!("keyring = {}", keyring.display());
    let wrong =
        cluster.configuration_with("wrong-key.conf", |own| match own.split_once(" = ") {
            Some(("keyring", _)) => line.clone(),
            _ => own.to_owned(),
        })?;
    let error = refused(&format!("{name};conf={}", wrong.display()), MIB)?;
    is(&error, ErrorKind::PermissionDenied, "client.admin")?;
    let error = refused(&cluster.config(&name, ";id=nobody"), MIB)?;
    is(&error, ErrorKind::PermissionDenied, "client.nobody")?;
    fs::remove_file(&keyring)?;
    let error = refused(&format!("{name};conf={}", wrong.display()), MIB)?;
    is(&error, ErrorKind::NotFound, "no key for client.admin")
}

fn monitor_down(cluster: &Cluster) -> anyhow::Result<()> {
    let name = cluster.image(MIB)?;
    // Nobody listens there.
    let down = cluster.configuration_with("down.conf", |own| match own.split_once(" = ") {
        Some(("mon host", _)) => "mon host = [v2:127.0.0.1:1,v1:127.0.0.1:2]".to_owned(),
        _ => own.to_owned(),
    })?;
    let config = format!("{name};conf={};osd_op_timeout=2", down.display());
    let error = refused(&config, MIB)?;
    is(&error, ErrorKind::TimedOut, "within 2 s")?;
    let error = handler().check(&config.parse()?).unwrap_err();
    is(&error, ErrorKind::TimedOut, "mon_host")
}

fn rights(cluster: &Cluster) -> anyhow::Result<()> {
    let name = cluster.image(MIB)?;
    let error = refused(&cluster.config(&name, ";id=elsewhere"), MIB)?;
    is(&error, ErrorKind::PermissionDenied, "profile rbd pool=rbd")
}

fn namespace(cluster: &Cluster) -> anyhow::Result<()> {
    cluster.rbd(&["namespace", "create", "rbd/tenant"])?;
    cluster.create("rbd/tenant/same", MIB)?;
    cluster.create("rbd/same", MIB)?;
    let inside = open(&cluster.config("rbd/tenant/same", ""), MIB)?;
    let outside = open(&cluster.config("rbd/same", ""), MIB)?;
    inside.write(0, 1)?;
    outside.write(0, 2)?;
    ensure!(inside.holds(0, 1)? && outside.holds(0, 2)?);
    inside.close()?;
    outside.close()
}

fn snapshot(cluster: &Cluster) -> anyhow::Result<()> {
    let name = cluster.image(2 * MIB)?;
    let head = open(&cluster.config(&name, ""), 2 * MIB)?;
    head.write(MIB, 1)?;
    cluster.rbd(&["snap", "create", &format!("{name}@before")])?;
    head.write(MIB, 2)?;
    let snapshot = open(&cluster.config(&format!("{name}@before"), ""), 2 * MIB)?;
    ensure!(snapshot.image.capabilities().read_only);
    ensure!(snapshot.image.capabilities().unmap.is_none());
    ensure!(snapshot.holds(MIB, 1)? && head.holds(MIB, 2)?);
    is(
        &snapshot.write(MIB, 3).unwrap_err(),
        ErrorKind::ReadOnly,
        "only read",
    )?;
    ensure!(snapshot.holds(MIB, 1)? && head.holds(MIB, 2)?);
    snapshot.close()?;
    head.close()
}

fn read_only(cluster: &Cluster) -> anyhow::Result<()> {
    let name = cluster.image(MIB)?;
    let reader = open(&cluster.config(&name, ";readonly=on"), MIB)?;
    ensure!(reader.image.capabilities().read_only && reader.holds(0, 0)?);
    is(
        &reader.write(0, 3).unwrap_err(),
        ErrorKind::ReadOnly,
        "only read",
    )?;
    reader.close()
}

fn check(cluster: &Cluster) -> anyhow::Result<()> {
    let name = cluster.image(MIB)?;
    // Somebody else has it, with its lock.
    let owner = open(&cluster.config(&name, ";lock=open"), MIB)?;
    handler().check(&cluster.config(&name, "").parse()?)?;
    owner.write(0, 1)?;
    ensure!(owner.holds(0, 1)?);
    owner.close()
}
