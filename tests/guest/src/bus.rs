//! A system bus of the guest's own, and calls over it.

use std::fs::{self, File};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use serde::Serialize;
use serde::de::DeserializeOwned;
use zbus::{Connection, Message, Type};

use crate::{TestResult, sh};

/// The service's name.
pub const NAME: &str = "org.kernel.TCMUService1";
/// The object above those of the handlers.
pub const ROOT: &str = "/org/kernel/TCMUService1";

/// The policy that is installed with the daemon.
const POLICY: &str = include_str!("../../../systemd/org.kernel.TCMUService1.conf");
/// The service that is installed with the daemon: what the bus starts for a call to its name.
const SERVICE: &str = include_str!("../../../systemd/org.kernel.TCMUService1.service");
/// Where the daemon is installed.
const INSTALLED: &str = "/usr/bin/tcmu-runner";
/// A folder of services that the bus knows, and that is the administrator's.
const SERVICES: &str = "/usr/local/share/dbus-1/system-services";
/// A policy that keeps nobody away.
const NO_POLICY: &str = r#"<busconfig><policy context="default">
    <allow own_prefix="org.kernel.TCMUService1"/>
    <allow send_destination="*"/>
    <allow receive_sender="*"/>
</policy></busconfig>"#;

const SOCKET: &str = "/run/dbus/system_bus_socket";
const LOG: &str = "/run/guest-test-bus.log";
const PATIENCE: Duration = Duration::from_secs(30);
const POLL: Duration = Duration::from_millis(5);

/// A running `dbus-daemon --system`. Dropped, it is killed.
#[derive(Debug)]
pub struct Bus(Child);

impl Bus {
    /// Starts it with the policy that the daemon is installed with.
    ///
    /// # Errors
    /// If it does not come up.
    pub fn start() -> anyhow::Result<Self> {
        Self::with_policy(POLICY)
    }

    /// Starts it with a policy that lets everybody in.
    ///
    /// # Errors
    /// If it does not come up.
    pub fn start_open() -> anyhow::Result<Self> {
        Self::with_policy(NO_POLICY)
    }

    /// Starts it with the policy and the service that the daemon is installed with, so that a call
    /// starts this program. There is no systemd that it could leave that to.
    ///
    /// # Errors
    /// If it does not come up.
    pub fn start_activating(program: &Path) -> anyhow::Result<Self> {
        let service = SERVICE.replace(INSTALLED, &program.display().to_string());
        ensure!(service != SERVICE, "the service names another program");
        fs::create_dir_all(SERVICES)?;
        fs::write(service_file(), service)?;
        Self::with_policy(POLICY)
    }

    fn with_policy(policy: &str) -> anyhow::Result<Self> {
        fs::create_dir_all("/etc/dbus-1/system.d")?;
        fs::write("/etc/dbus-1/system.d/tcmu-runner.conf", policy)?;
        fs::create_dir_all("/run/dbus")?;
        let _ = fs::remove_file(SOCKET);
        let log = File::options().create(true).append(true).open(LOG)?;
        let mut process = Command::new("dbus-daemon")
            .args(["--system", "--nofork", "--nopidfile", "--nosyslog"])
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .context("cannot run dbus-daemon (Debian's package of the same name)")?;
        let deadline = Instant::now() + PATIENCE;
        while UnixStream::connect(SOCKET).is_err() {
            if let Some(status) = process.try_wait()? {
                bail!(
                    "dbus-daemon ended with {status}: {}",
                    fs::read_to_string(LOG).unwrap_or_default()
                );
            }
            if Instant::now() > deadline {
                bail!("dbus-daemon has no socket after {} s", PATIENCE.as_secs());
            }
            thread::sleep(POLL);
        }
        Ok(Bus(process))
    }
}

impl Drop for Bus {
    fn drop(&mut self) {
        // Without it, nobody is started for the next test.
        let _ = fs::remove_file(service_file());
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn service_file() -> String {
    format!("{SERVICES}/{NAME}.service")
}

/// A new connection to the bus.
///
/// # Errors
/// If there is no bus.
pub fn connect() -> anyhow::Result<Connection> {
    zbus::block_on(Connection::system()).context("connecting to the bus")
}

/// Calls a method of the service and waits for the answer.
///
/// # Errors
/// The error that the service answers with.
pub fn call<B, R>(path: &str, interface: &str, method: &str, body: &B) -> anyhow::Result<R>
where
    B: Serialize + Type,
    R: DeserializeOwned + Type,
{
    let connection = connect()?;
    let answer =
        zbus::block_on(connection.call_method(Some(NAME), path, Some(interface), method, body))?;
    result(&answer)
}

fn result<R: DeserializeOwned + Type>(answer: &Message) -> anyhow::Result<R> {
    answer
        .body()
        .deserialize()
        .context("the answer has another type")
}

/// Waits until the service's name has an owner, or has none.
///
/// # Errors
/// If that takes more than half a minute.
pub fn await_name(name: &str, owned: bool) -> TestResult {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let connection = connect()?;
        let is_owned = zbus::block_on(async {
            zbus::fdo::DBusProxy::new(&connection)
                .await?
                .name_has_owner(name.try_into()?)
                .await
                .map_err(zbus::Error::from)
        })?;
        if is_owned == owned {
            return Ok(());
        }
        if Instant::now() > deadline {
            bail!(
                "after {} s, {name} is owned: {is_owned}",
                PATIENCE.as_secs()
            );
        }
        thread::sleep(POLL);
    }
}

/// The process that owns a name.
///
/// # Errors
/// If nobody does.
pub fn owner(name: &str) -> anyhow::Result<u32> {
    let connection = connect()?;
    let owner = zbus::block_on(async {
        zbus::fdo::DBusProxy::new(&connection)
            .await?
            .get_connection_unix_process_id(name.try_into()?)
            .await
            .map_err(zbus::Error::from)
    });
    Ok(owner?)
}

/// Runs a command as a user without rights; returns whether it succeeded, and what it said.
///
/// # Errors
/// If it cannot be run.
pub fn as_nobody(words: &[&str]) -> anyhow::Result<(bool, String)> {
    let switch = [
        "setpriv",
        "--reuid=65534",
        "--regid=65534",
        "--clear-groups",
    ];
    let output = sh::run_any(&[&switch, words].concat())?;
    let said = [&output.stdout[..], &output.stderr].concat();
    Ok((
        output.status.success(),
        String::from_utf8_lossy(&said).into_owned(),
    ))
}
