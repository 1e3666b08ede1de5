//! `org.kernel.TCMUService1.HandlerManager1`: handlers in other processes.
//!
//! Such a process owns the name `org.kernel.TCMUService1.HandlerManager1.SUBTYPE`, hears the kernel
//! itself, and serves its devices itself. Here it only makes itself known, so that targetcli finds
//! it. It is forgotten when it gives its name up or dies.

use std::sync::Arc;

use futures_util::StreamExt;
use zbus::fdo::{self, DBusProxy};
use zbus::message::Header;
use zbus::names::BusName;
use zbus::{Connection, MatchRule, MessageStream};
use zruntime::lock::Mutex;

use super::access::{admit, is_trusted};
use super::checks::Checks;
use super::external::Externals;
use super::handler::{HandlerObject, Place};
use super::object_manager::{tell_added, tell_removed};
use super::subtype::Subtype;
use crate::daemon::{Petition, Petitioner};
use crate::registry::Registry;

/// The interface's name, which the names of the handlers' processes begin with.
pub(super) const INTERFACE: &str = "org.kernel.TCMUService1.HandlerManager1";

/// The handlers in other processes, on one bus.
pub(super) struct Manager {
    pub(super) registry: Arc<Registry>,
    pub(super) externals: Arc<Externals>,
    pub(super) checks: Arc<Checks>,
    pub(super) petitioner: Petitioner,
    /// Held while the handlers change, so that their objects follow in the same order.
    pub(super) changing: Mutex<()>,
}

/// The object to call.
pub(super) struct HandlerManager(pub(super) Arc<Manager>);

#[zbus::interface(
    name = "org.kernel.TCMUService1.HandlerManager1",
    introspection_docs = false
)]
impl HandlerManager {
    /// Makes a handler known whose process owns its name already.
    #[zbus(out_args("succeeded", "reason"))]
    async fn register_handler(
        &self,
        subtype: &str,
        cfg_desc: &str,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &Connection,
    ) -> fdo::Result<(bool, String)> {
        admit(connection, &header).await?;
        let registered = self.0.register(connection, subtype, cfg_desc).await;
        if let Err(reason) = &registered {
            tracing::warn!(subtype, reason, "a handler was not registered");
        }
        Ok(answer(registered))
    }

    /// Forgets a handler.
    #[zbus(out_args("succeeded", "reason"))]
    async fn unregister_handler(
        &self,
        subtype: &str,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &Connection,
    ) -> fdo::Result<(bool, String)> {
        admit(connection, &header).await?;
        let unregistered = match Subtype::new(subtype) {
            Ok(subtype) if self.0.forget(connection, &subtype).await => Ok(()),
            Ok(subtype) => Err(format!("no handler {subtype} is registered")),
            Err(error) => Err(error.to_string()),
        };
        Ok(answer(unregistered))
    }
}

fn failed(error: impl std::fmt::Display) -> String {
    format!("the bus failed: {error}")
}

fn answer(result: Result<(), String>) -> (bool, String) {
    match result {
        Ok(()) => (true, "succeeded".to_owned()),
        Err(reason) => (false, reason),
    }
}

impl Manager {
    async fn register(
        &self,
        connection: &Connection,
        subtype: &str,
        description: &str,
    ) -> Result<(), String> {
        let subtype = Subtype::new(subtype).map_err(|error| error.to_string())?;
        if self.registry.serves(subtype.as_str()) {
            return Err(format!("tcmu-runner has a handler {subtype} of its own"));
        }
        let _changing = self.changing.lock().await;
        // First, so that an owner who goes from now on is noticed.
        self.externals.add(&subtype, description)?;
        if let Err(reason) = self.appear(connection, &subtype, description).await {
            self.externals.remove(&subtype);
            return Err(reason);
        }
        tracing::info!(%subtype, "a handler in another process was registered");
        self.petitioner.send(Petition::HandlersChanged);
        // Who does not hear of it finds it when asking.
        let _ = tell_added(connection, &subtype, description.to_owned()).await;
        Ok(())
    }

    /// Makes the object of an external handler, if a process that may be one owns its name.
    async fn appear(
        &self,
        connection: &Connection,
        subtype: &Subtype,
        description: &str,
    ) -> Result<(), String> {
        let name = subtype.bus_name();
        let bus = DBusProxy::new(connection).await.map_err(failed)?;
        let bus_name = BusName::try_from(name.as_str()).map_err(failed)?;
        match bus.name_has_owner(bus_name.clone()).await {
            Ok(true) => {}
            Ok(false) => {
                return Err(format!(
                    "nobody owns the name {name}: own it before registering"
                ));
            }
            Err(error) => return Err(failed(error)),
        }
        match is_trusted(connection, bus_name).await {
            Ok(true) => {}
            Ok(false) => return Err(format!("the owner of the name {name} is not root")),
            Err(error) => return Err(format!("the owner of the name {name} is gone: {error}")),
        }
        let object = HandlerObject {
            subtype: subtype.clone(),
            description: description.to_owned(),
            place: Place::Elsewhere,
            checks: Arc::clone(&self.checks),
        };
        match connection.object_server().at(subtype.path(), object).await {
            Ok(None) => Ok(()),
            Ok(Some(_)) => Err(format!("there is an object {} already", subtype.path())),
            Err(error) => Err(failed(error)),
        }
    }

    /// Forgets a handler; says whether it was known.
    async fn forget(&self, connection: &Connection, subtype: &Subtype) -> bool {
        let _changing = self.changing.lock().await;
        if !self.externals.remove(subtype) {
            return false;
        }
        tracing::info!(%subtype, "a handler in another process has gone");
        self.petitioner.send(Petition::HandlersChanged);
        let server = connection.object_server();
        if let Err(error) = server.remove::<HandlerObject, _>(subtype.path()).await {
            tracing::error!(%subtype, %error, "the object of a handler that is gone stays");
        }
        let _ = tell_removed(connection, subtype).await;
        true
    }

    /// Forgets the handlers whose names lose their owners, for as long as the connection lasts.
    pub(super) async fn watch(&self, connection: &Connection, mut changes: MessageStream) {
        while let Some(change) = changes.next().await {
            // A stream that fails has ended: the connection is closed then.
            let Ok(change) = change else { continue };
            let body = change.body();
            let Ok((name, old, _)) = body.deserialize::<(&str, &str, &str)>() else {
                continue;
            };
            // Whoever takes the name over has not registered.
            if !old.is_empty()
                && let Some(subtype) = Subtype::of_bus_name(name)
            {
                self.forget(connection, &subtype).await;
            }
        }
    }
}

/// The changes of the owners of handlers' names.
pub(super) async fn name_changes(connection: &Connection) -> zbus::Result<MessageStream> {
    let rule = MatchRule::builder()
        .msg_type(zbus::message::Type::Signal)
        .sender("org.freedesktop.DBus")
        .path("/org/freedesktop/DBus")
        .interface("org.freedesktop.DBus")
        .member("NameOwnerChanged")
        .arg0ns(INTERFACE)
        .build()?;
    MessageStream::for_match_rule(rule, connection, None).await
}
