//! Numbers of devices that the kernel gives to others while the daemon has not heard that the devices
//! before are gone.

use std::fs;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use tcmu::discovery::Sysfs;
use tcmu_guest_tests::daemon::{Daemon, RUNNER_WITH_KILL_POINTS};
use tcmu_guest_tests::lun::leftovers;
use tcmu_guest_tests::{TestResult, guest_test};

use crate::storm::{Device, await_all_served};

/// Where the daemon's obstacles are (`hold_points.rs`).
const HOLD: &str = "/run/hold";

const PATIENCE: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(5);

/// The other handler of the daemon that can be held up.
const SUBTYPE: &str = "poisonous";

fn start(vars: &[(&str, &str)]) -> anyhow::Result<Daemon> {
    Daemon::start_with(RUNNER_WITH_KILL_POINTS, &[], vars)
}

/// A daemon that has just started and is held up at `point`, on its way to a device; and that device.
fn held_up(point: &str, device: Device) -> anyhow::Result<(Daemon, Device)> {
    fs::create_dir(HOLD)?;
    fs::write(format!("{HOLD}/{point}"), "")?;
    let daemon = start(&[("TCMU_HOLD", HOLD)])?;
    let deadline = Instant::now() + PATIENCE;
    while !fs::exists(format!("{HOLD}/{point}.held"))? {
        ensure!(Instant::now() < deadline, "nobody comes to `{point}`");
        thread::sleep(POLL);
    }
    Ok((daemon, device))
}

/// Removes a device without telling anybody, and begins to create another, which gets its number.
fn replace(device: Device, number: usize) -> anyhow::Result<JoinHandle<anyhow::Result<Device>>> {
    let module = Sysfs::system().module();
    module.block_netlink(true)?;
    drop(device);
    module.block_netlink(false)?;
    Ok(thread::spawn(move || Ok(Device::create(number, SUBTYPE)?)))
}

/// Lets the daemon go on: the new device is to be served, and to go in order.
fn go_on(daemon: Daemon, creator: JoinHandle<anyhow::Result<Device>>, number: usize) -> TestResult {
    fs::remove_dir_all(HOLD)?;
    let device = creator.join().ok().context("the creator panicked")?;
    let device = device.context("the new device was refused")?;
    await_all_served(&daemon, SUBTYPE)?;
    let serving = format!("serving lun=\"storm{number}\"");
    ensure!(daemon.log().contains(&serving), "not served by its name");
    drop(device);
    ensure!(leftovers()? == [""; 0], "left: {:?}", leftovers()?);
    daemon.stop()
}

guest_test!(a_device_does_not_hear_its_predecessors_error);
fn a_device_does_not_hear_its_predecessors_error() -> TestResult {
    const IMAGE: &str = "/run/gone.img";
    fs::write(IMAGE, vec![0; 1 << 20])?;
    let daemon = start(&[])?;
    let device = Device::create_as(0, &format!("file/{IMAGE}"))?;
    daemon.stop()?;
    fs::remove_file(IMAGE)?;

    let (daemon, device) = held_up("image", device)?;
    let creator = replace(device, 1)?;
    daemon.await_log(0, "opening lun=\"storm1\"")?;
    go_on(daemon, creator, 1)
}

guest_test!(a_number_passes_on_while_its_device_is_opened);
fn a_number_passes_on_while_its_device_is_opened() -> TestResult {
    // The other device has another name, or the same.
    for number in [1, 0] {
        let daemon = start(&[])?;
        let device = Device::create(0, SUBTYPE)?;
        daemon.stop()?;

        let (daemon, device) = held_up("opening", device)?;
        let creator = replace(device, number)?;
        daemon.await_log(0, "the device that had its number before is gone")?;
        go_on(daemon, creator, number)?;
    }
    Ok(())
}
