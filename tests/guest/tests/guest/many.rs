//! Many LUNs at once.

use std::thread;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use tcmu_guest_tests::daemon::Daemon;
use tcmu_guest_tests::lun::{Disk, leftovers, names};
use tcmu_guest_tests::{TestResult, guest_test};

const LUNS: usize = 200;
const CREATORS: usize = 16;

guest_test!(
    two_hundred_luns_are_created_in_parallel,
    limit = Duration::from_secs(600)
);
fn two_hundred_luns_are_created_in_parallel() -> TestResult {
    let daemon = Daemon::start()?;
    let creators: Vec<_> = (0..CREATORS)
        .map(|creator| {
            thread::spawn(move || -> anyhow::Result<Vec<Disk>> {
                (creator..LUNS)
                    .step_by(CREATORS)
                    .map(|n| Disk::create(&format!("lun{n}"), "ram", "many", &["--size", "4M"]))
                    .collect()
            })
        })
        .collect();
    let mut disks = Vec::new();
    for creator in creators {
        disks.extend(creator.join().ok().context("a creator panicked")??);
    }
    ensure!(disks.len() == LUNS);
    ensure!(names()?.len() == LUNS, "tcmuctl does not list them all");
    for disk in &disks {
        ensure!(disk.size()? == 4 << 20, "{} has another size", disk.name());
    }
    let last = disks.last().context("no disk")?;
    last.write(0, 0xee)?;
    ensure!(
        last.holds(0, 0xee)? && disks[0].holds(0, 0)?,
        "LUNs are mixed up"
    );
    for disk in disks {
        disk.delete()?;
    }
    ensure!(leftovers()?.is_empty(), "something was left in configfs");
    daemon.stop()
}
