//! Images of a Ceph cluster, on a machine that has nothing of Ceph.

use std::fs::{self, File};
use std::process::Command;

use anyhow::ensure;
use tcmu_guest_tests::bus::{self, Bus, ROOT};
use tcmu_guest_tests::daemon::Daemon;
use tcmu_guest_tests::lun::{self, Disk, tcmuctl_fails};
use tcmu_guest_tests::{TestResult, guest_test, sh};

/// The first of Ceph's libraries that is loaded.
const LIBRARY: &str = "librados.so.2";
const NOTHING: &str = "/run/no-library";

/// Files that nobody can load as long as this lives.
struct Hidden(Vec<String>);

impl Hidden {
    /// Hides a library where it is installed.
    fn library(name: &str) -> anyhow::Result<Self> {
        File::create(NOTHING)?;
        // Too long for the log.
        let known = Command::new("ldconfig").arg("--print-cache").output()?;
        let known = String::from_utf8_lossy(&known.stdout).into_owned();
        let places = known.lines().filter_map(|line| line.split_once(" => "));
        let places = places.filter(|(library, _)| library.trim().starts_with(name));
        let mut hidden = Self(Vec::new());
        for (_, place) in places {
            let place = fs::canonicalize(place)?.display().to_string();
            sh::run(&["mount", "--bind", NOTHING, &place])?;
            hidden.0.push(place);
        }
        Ok(hidden)
    }
}

impl Drop for Hidden {
    fn drop(&mut self) {
        for place in &self.0 {
            // The test has said what was wrong already.
            let _ = sh::run(&["umount", place]);
        }
        let _ = fs::remove_file(NOTHING);
    }
}

fn check(config: &str) -> anyhow::Result<(bool, String)> {
    let object = format!("{ROOT}/rbd");
    bus::call(&object, "org.kernel.TCMUService1", "CheckConfig", &config)
}

guest_test!(a_machine_without_ceph_is_told_what_to_install);
fn a_machine_without_ceph_is_told_what_to_install() -> TestResult {
    let hidden = Hidden::library(LIBRARY)?;
    let installed = !hidden.0.is_empty();
    let _bus = Bus::start()?;
    let daemon = Daemon::start_on_bus()?;
    let other = Disk::create("other", "ram", "other", &["--size", "16M"])?;
    let (good, why) = check("rbd/pool/image")?;
    ensure!(!good, "it would open");
    for word in [LIBRARY, "apt-get install librbd1"] {
        ensure!(why.contains(word), "CheckConfig does not say {word}: {why}");
    }
    let what = ["--handler", "rbd", "--config", "pool/image"];
    let create = ["create", "far", "--loopback", "--size", "16M"];
    let message = tcmuctl_fails(&[&create[..], &what].concat())?;
    for word in [LIBRARY, "apt-get install librbd1"] {
        ensure!(message.contains(word), "it does not say {word}: {message}");
    }
    ensure!(lun::names()? == ["other"], "something was left");
    other.write(0, 9)?;
    ensure!(other.holds(0, 9)?, "the other LUN was disturbed");

    // Installed now, it needs no restart.
    drop(hidden);
    if installed {
        let (good, why) = check("rbd/pool/image;conf=/run/none.conf")?;
        ensure!(!good && why.contains("/run/none.conf"), "{good}: {why}");
    }
    other.delete()?;
    daemon.stop()
}
