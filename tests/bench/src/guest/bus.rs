//! A system bus for the daemons that are measured.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};

use super::process::{Daemon, output, wait_for};

/// The environment variable that leads a daemon to the bus.
pub(super) const ADDRESS_VAR: &str = "DBUS_SYSTEM_BUS_ADDRESS";

const LIMIT: Duration = Duration::from_secs(60);

/// A running bus.
#[derive(Debug)]
pub(super) struct Bus {
    address: String,
    _daemon: Daemon,
}

impl Bus {
    /// Starts it, with its socket in `folder`.
    ///
    /// # Errors
    /// A bus that does not come up.
    pub(super) fn start(folder: &Path) -> Result<Self> {
        let socket = folder.join("bus");
        let address = format!("unix:path={}", socket.display());
        let config = folder.join("bus.conf");
        fs::write(&config, bus_config(&address)).context("the bus's configuration")?;
        let mut command = Command::new("dbus-daemon");
        command.args(["--nofork", "--config-file"]).arg(&config);
        let daemon = Daemon::start("dbus-daemon", &mut command, folder)?;
        wait_for("the bus's socket", LIMIT, || {
            Ok(socket.exists().then_some(()))
        })?;
        Ok(Self {
            address,
            _daemon: daemon,
        })
    }

    /// The value of [`ADDRESS_VAR`].
    #[must_use]
    pub(super) fn address(&self) -> &str {
        &self.address
    }

    /// Waits until a tcmu-runner owns its name.
    ///
    /// # Errors
    /// None does within `limit`.
    pub(super) fn await_service(&self, limit: Duration) -> Result<()> {
        wait_for("tcmu-runner on its bus", limit, || {
            let said = output(
                Command::new("dbus-send").args([
                    &format!("--bus={}", self.address),
                    "--print-reply=literal",
                    "--dest=org.freedesktop.DBus",
                    "/org/freedesktop/DBus",
                    "org.freedesktop.DBus.NameHasOwner",
                    "string:org.kernel.TCMUService1",
                ]),
                LIMIT,
            )?;
            Ok(said.contains("true").then_some(()))
        })
    }
}

/// A bus on which everybody may do everything: it lives in the guest only.
fn bus_config(address: &str) -> String {
    format!(
        r#"<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN"
 "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig>
  <type>system</type>
  <listen>{address}</listen>
  <auth>EXTERNAL</auth>
  <policy context="default">
    <allow user="*"/>
    <allow own="*"/>
    <allow send_type="method_call"/>
    <allow send_type="signal"/>
    <allow send_requested_reply="true" send_type="method_return"/>
    <allow send_requested_reply="true" send_type="error"/>
    <allow receive_type="method_call"/>
    <allow receive_type="method_return"/>
    <allow receive_type="error"/>
    <allow receive_type="signal"/>
  </policy>
</busconfig>
"#
    )
}
