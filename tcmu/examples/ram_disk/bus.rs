//! How a handler in a process of its own makes itself known to targetcli: it owns a name on the system
//! bus, answers there whether a configuration would open, and registers with tcmu-runner, which asks it.
//! All else is between it and the kernel. It is forgotten when its name goes.

use std::error::Error;

use zbus::Connection;
use zbus::connection::Builder;

use crate::SUBTYPE;

const NAME: &str = "org.kernel.TCMUService1";
const ROOT: &str = "/org/kernel/TCMUService1";
const MANAGER: &str = "org.kernel.TCMUService1.HandlerManager1";

/// Shown by targetcli.
const DESCRIPTION: &str = "ramdisk/NAME: a disk in the memory of the example ram_disk";

struct Handler;

#[zbus::interface(name = "org.kernel.TCMUService1")]
impl Handler {
    /// Whether `config`, subtype included, would open, and why it would not.
    fn check_config(&self, config: &str) -> (bool, String) {
        match config.split_once('/') {
            Some((SUBTYPE, name)) if !name.is_empty() => (true, String::new()),
            _ => (false, format!("\"{config}\" is not {SUBTYPE}/NAME")),
        }
    }
}

/// Registers the handler; it stays so as long as the connection lives.
pub(crate) fn register() -> Result<Connection, Box<dyn Error>> {
    let connection = zbus::block_on(
        Builder::system()
            .serve_at(format!("{ROOT}/HandlerManager1/{SUBTYPE}"), Handler)
            .name(format!("{MANAGER}.{SUBTYPE}"))
            .build(),
    )?;
    let answer = zbus::block_on(connection.call_method(
        Some(NAME),
        format!("{ROOT}/HandlerManager1"),
        Some(MANAGER),
        "RegisterHandler",
        &(SUBTYPE, DESCRIPTION),
    ))?;
    let (registered, reason): (bool, String) = answer.body().deserialize()?;
    match registered {
        true => Ok(connection),
        false => Err(format!("tcmu-runner does not register the handler: {reason}").into()),
    }
}
