//! What every backstore must obey.

use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::ensure;
use tcmu_ceph::{Cluster, POOL};
use tcmu_handler::testing::{Contract, Kept, Rule};

use crate::Test;
use crate::image::handler;

pub(crate) const TESTS: &[(&str, Test)] = &[("every_rule_is_kept", rules)];

fn rules(cluster: &Cluster) -> anyhow::Result<()> {
    let conf = cluster.path("ceph.conf");
    let number = AtomicU32::new(0);
    let make = move |_: &_| {
        let name = format!("{POOL}/contract{}", number.fetch_add(1, Ordering::Relaxed));
        let made = Command::new("rbd")
            .arg("-c")
            .arg(&conf)
            .args(["create", &name, "--size", "4M", "--object-size", "512K"])
            .status();
        assert!(made.unwrap().success(), "no image");
        format!("{name};conf={}", conf.display())
    };
    let contract = Contract::new(handler(), make).read_only(";readonly=on");
    let mut tried = 0;
    for rule in Rule::ALL {
        match contract.check(rule) {
            Ok(Kept::Tried) => tried += 1,
            Ok(Kept::Skipped(why)) => eprintln!("skipped: {rule:?}: {why}"),
            Err(broken) => anyhow::bail!("{broken}"),
        }
    }
    ensure!(tried >= 14, "only {tried} rules apply");
    Ok(())
}
