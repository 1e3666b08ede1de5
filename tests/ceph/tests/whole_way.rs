//! The whole way: a disk of the kernel's, LIO, the runner, librbd, a network, and a Ceph cluster.
//!
//! The cluster and the guest share a network namespace of their own: the cluster listens at one end of a
//! tap device, the guest's kernel is at the other.
#![forbid(unsafe_code)]

use std::path::Path;
use std::process::{Command, ExitCode};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use libtest_mimic::{Arguments, Completion, Failed, Trial};
use tcmu_ceph::Cluster;
use tcmu_guest_tests::daemon::Daemon;
use tcmu_guest_tests::lun::{Disk, MIB};
use tcmu_guest_tests::sh;
use tcmu_rig::{Guest, Kernel};

/// First argument: be the process in the network namespace.
const IN_NAMESPACE: &str = "--in-namespace";
/// First argument: be the program in the guest, for the image named next.
const IN_GUEST: &str = "--in-guest";

/// Where the cluster is, and where the guest is.
const CLUSTER: &str = "192.168.77.1";
const GUEST: &str = "192.168.77.2/24";

/// The kernel that has a network. It is Debian's own, and needs no building.
const KERNEL: Kernel = Kernel::Uml;

fn main() -> ExitCode {
    tcmu_rig::enter();
    let mut args = std::env::args().skip(1);
    let result = match args.next().as_deref() {
        Some(IN_NAMESPACE) => in_namespace(),
        Some(IN_GUEST) => in_guest(&args.next().unwrap_or_default()),
        _ => return on_host(),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("Error: {error:?}");
            ExitCode::FAILURE
        }
    }
}

fn on_host() -> ExitCode {
    let arguments = Arguments::from_args();
    let name = "a_disk_is_kept_in_a_cluster_beyond_a_network";
    let trial = Trial::ignorable_test(name, || {
        if let Some(reason) = why_not() {
            return Ok(Completion::ignored_with(reason));
        }
        whole_way()
            .map(|()| Completion::Completed)
            .map_err(|error| Failed::from(format!("{error:?}")))
    });
    libtest_mimic::run(&arguments, vec![trial]).exit_code()
}

/// Why the test cannot be run here, if it cannot.
fn why_not() -> Option<String> {
    let missing = tcmu_ceph::missing_programs();
    if !missing.is_empty() {
        let missing = missing.join(", ");
        return Some(format!(
            "not installed: {missing} (cargo xtask test installs what is needed)"
        ));
    }
    if !KERNEL.is_ready().unwrap_or(false) {
        return Some(format!(
            "the kernel {KERNEL} is not there (cargo xtask test installs it)"
        ));
    }
    let unshared = Command::new("unshare").args(["--net", "true"]).output();
    if !unshared.is_ok_and(|output| output.status.success()) || !Path::new("/dev/net/tun").exists()
    {
        return Some(
            "no network namespace with a tap device can be made here; are you root?".into(),
        );
    }
    None
}

fn whole_way() -> anyhow::Result<()> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let packages = ["--package", "tcmu-runner", "--package", "tcmu-configfs"];
    let built = Command::new(cargo)
        .args(["build", "--quiet", "--target-dir"])
        .arg(target()?)
        .args(packages)
        .status()
        .context("cannot run cargo")?;
    ensure!(built.success(), "the programs do not build");
    let output = Command::new("unshare")
        .arg("--net")
        .arg(std::env::current_exe()?)
        .arg(IN_NAMESPACE)
        .output()
        .context("cannot run unshare")?;
    let said = String::from_utf8_lossy(&output.stdout);
    let wrong = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{}: {said}{wrong}", output.status);
    Ok(())
}

/// cargo's target folder, and what it has of this build.
fn target() -> anyhow::Result<&'static Path> {
    Path::new(env!("CARGO_TARGET_TMPDIR"))
        .parent()
        .context("the temporary folder is in no target folder")
}

fn in_namespace() -> anyhow::Result<()> {
    let address = format!("{CLUSTER}/24");
    for words in [
        "link set lo up",
        "tuntap add dev tap0 mode tap",
        &format!("address add {address} dev tap0"),
        "link set tap0 up",
    ] {
        ip(words)?;
    }
    let parent = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let cluster = Cluster::start(CLUSTER, parent)?;
    let image = cluster.image(64 * MIB)?;
    let outcome = Guest::builder(std::env::current_exe()?)
        .arg(IN_GUEST)
        .arg(cluster.config(&image, ""))
        .env(
            "TCMU_GUEST_PROGRAMS",
            target()?.join("debug").display().to_string(),
        )
        .kernel(KERNEL)
        .kernel_arg("vec0:transport=tap,ifname=tap0,depth=128,gro=1")
        .timeout(Duration::from_secs(240))
        .on_line(|line| println!("{line}"))
        .run()?;
    ensure!(outcome.success(), "{outcome}");
    // What the guest has written is in the cluster.
    let copy = cluster.path("copy");
    let path = copy.display().to_string();
    cluster.rbd(&["export", "--no-progress", &image, &path])?;
    let bytes = std::fs::read(&copy)?;
    ensure!(bytes.len() as u64 == 96 * MIB, "{} bytes", bytes.len());
    for (block, value) in [(1, 1), (40, 40), (90, 7), (50, 0)] {
        let at = (block * MIB) as usize;
        let is = bytes[at..at + 4096].iter().all(|&byte| byte == value);
        ensure!(is, "the block at {block} MiB is {:x?}", &bytes[at..at + 8]);
    }
    Ok(())
}

fn in_guest(config: &str) -> anyhow::Result<()> {
    ip("link set lo up")?;
    ip(&format!("address add {GUEST} dev vec0"))?;
    ip("link set vec0 up")?;
    let daemon = Daemon::start()?;
    let disk = Disk::create("far", "rbd", config, &["--size", "64M"])?;
    ensure!(disk.size()? == 64 * MIB);
    for block in [1u8, 40, 50] {
        disk.write(u64::from(block) * MIB, block)?;
    }
    ensure!(disk.holds(40 * MIB, 40)? && disk.holds(41 * MIB, 0)?);
    let (offset, length) = ((50 * MIB).to_string(), MIB.to_string());
    sh::run(&[
        "blkdiscard",
        "--offset",
        &offset,
        "--length",
        &length,
        disk.path(),
    ])?;
    ensure!(disk.holds(50 * MIB, 0)? && disk.holds(40 * MIB, 40)?);

    // Somebody makes the image larger.
    let (image, rest) = config
        .split_once(";conf=")
        .context("no conf= in the configuration")?;
    let conf = rest.split(';').next().unwrap_or_default();
    sh::run(&[
        "rbd",
        "-c",
        conf,
        "resize",
        "--no-progress",
        image,
        "--size",
        "96M",
    ])?;
    let rescan = disk.path().replace("/dev", "/sys/block") + "/device/rescan";
    while disk.size()? != 96 * MIB {
        std::fs::write(&rescan, "1")?;
        std::thread::sleep(Duration::from_millis(50));
    }
    let kernels = sh::run(&[
        "sh",
        "-c",
        "cat /sys/kernel/config/target/core/user_*/far/attrib/dev_size",
    ])?;
    ensure!(
        kernels.trim() == (96 * MIB).to_string(),
        "the kernel has {kernels}"
    );
    disk.write(90 * MIB, 7)?;
    ensure!(disk.holds(90 * MIB, 7)?);

    // A daemon that is killed is succeeded by one that opens the image anew.
    daemon.kill()?;
    let daemon = Daemon::start()?;
    ensure!(disk.holds(MIB, 1)? && disk.holds(90 * MIB, 7)?);
    disk.delete()?;
    daemon.stop()
}

fn ip(words: &str) -> anyhow::Result<()> {
    let words: Vec<&str> = std::iter::once("ip").chain(words.split(' ')).collect();
    sh::run(&words).map(drop)
}
