//! Who may call: root, and the user that the daemon runs as.

use zbus::Connection;
use zbus::fdo::{DBusProxy, Error, Result};
use zbus::message::Header;
use zbus::names::BusName;

/// Refuses callers that are not allowed to call.
///
/// The bus's policy keeps them away already; it is a file, though, that can be missing or changed.
pub(super) async fn admit(connection: &Connection, header: &Header<'_>) -> Result<()> {
    let sender = header
        .sender()
        .ok_or_else(|| Error::AccessDenied("the bus does not say who is calling".to_owned()))?;
    if is_trusted(connection, sender.clone().into()).await? {
        return Ok(());
    }
    tracing::warn!(caller = %sender, "a D-Bus call was refused: the caller is not root");
    Err(Error::AccessDenied("only root may do this".to_owned()))
}

/// Whether the owner of a name is root or the user that we are.
pub(super) async fn is_trusted(connection: &Connection, name: BusName<'_>) -> Result<bool> {
    let bus = DBusProxy::new(connection).await?;
    let user = bus.get_connection_unix_user(name).await?;
    Ok(user == 0 || user == rustix::process::geteuid().as_raw())
}
