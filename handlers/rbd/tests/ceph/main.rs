//! The handler on a real Ceph cluster: one monitor and one OSD, started for these tests.
//!
//! Needs Ceph's programs (Debian's ceph-mon, ceph-osd and ceph-common; `cargo xtask test` installs them)
//! and librbd1. Without them, the tests are skipped.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, reason = "these are tests")]

mod allocations;
mod contract;
mod data;
mod image;
mod locks;
mod opening;
mod outages;
mod sizes;

use std::path::Path;
use std::process::ExitCode;
use std::sync::{Arc, OnceLock};

use libtest_mimic::{Arguments, Completion, Failed, Trial};
use tcmu_ceph::Cluster;

type Test = fn(&Cluster) -> anyhow::Result<()>;

/// In this order, one after the other: some stop the OSD.
const TESTS: &[(&str, &[(&str, Test)])] = &[
    ("data", data::TESTS),
    ("allocations", allocations::TESTS),
    ("contract", contract::TESTS),
    ("opening", opening::TESTS),
    ("sizes", sizes::TESTS),
    ("locks", locks::TESTS),
    ("outages", outages::TESTS),
];

fn main() -> ExitCode {
    let mut words = std::env::args().skip(1);
    if words.next().as_deref() == Some(locks::HOLD) {
        return locks::hold(&words.next().unwrap_or_default());
    }
    let mut arguments = Arguments::from_args();
    arguments.test_threads = Some(1);
    let cluster: Arc<OnceLock<Result<Cluster, String>>> = Arc::default();
    let missing = tcmu_ceph::missing_programs();
    let trial = |group: &str, &(name, test): &(&str, Test)| {
        let (cluster, missing) = (Arc::clone(&cluster), missing.clone());
        Trial::ignorable_test(format!("{group}::{name}"), move || {
            if !missing.is_empty() {
                return Ok(Completion::ignored_with(format!(
                    "not installed: {} (cargo xtask test installs what is needed)",
                    missing.join(", ")
                )));
            }
            let started = cluster.get_or_init(|| {
                // Not below /tmp, which may be memory that direct I/O does not take.
                let parent = Path::new(env!("CARGO_TARGET_TMPDIR"));
                Cluster::start("127.0.0.1", parent).map_err(|error| format!("{error:#}"))
            });
            let cluster = started.as_ref().map_err(Failed::from)?;
            match test(cluster) {
                Ok(()) => Ok(Completion::Completed),
                Err(error) => Err(Failed::from(format!("{error:#}"))),
            }
        })
    };
    let trials = TESTS
        .iter()
        .flat_map(|(group, tests)| tests.iter().map(|test| trial(group, test)))
        .collect();
    let conclusion = libtest_mimic::run(&arguments, trials);
    // The cluster ends with its last owner, before the process does.
    drop(cluster);
    conclusion.exit_code()
}
