//! What the daemon needs of the system around it before it can begin.

use std::os::unix::net::UnixStream;
use std::process::Command;

use anyhow::Context;
use tcmu::discovery::Sysfs;

/// Lets go whoever waits for the answer of a daemon that is gone.
pub(super) fn release_predecessors_waiters(sysfs: &Sysfs) -> anyhow::Result<()> {
    let module = sysfs.module();
    if module.is_loaded() {
        module
            .reset_netlink()
            .context("resetting TCMU's netlink interface")?;
    }
    Ok(())
}

/// SIGTERM and SIGINT, as bytes in a stream.
pub(super) fn catch_signals() -> anyhow::Result<UnixStream> {
    let (read, write) = UnixStream::pair()?;
    read.set_nonblocking(true)?;
    for signal in [signal_hook::consts::SIGTERM, signal_hook::consts::SIGINT] {
        signal_hook::low_level::pipe::register(signal, write.try_clone()?)?;
    }
    Ok(read)
}

/// Loads the kernel module where it is one and is not loaded; that it cannot be is reported by
/// whoever needs it.
pub(super) fn load_module(sysfs: &Sysfs) {
    if !sysfs.module().is_loaded() {
        let result = Command::new("modprobe")
            .args(["--quiet", "target_core_user"])
            .status();
        tracing::debug!(?result, "modprobe target_core_user");
    }
}
