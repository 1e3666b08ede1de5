//! `org.freedesktop.DBus.ObjectManager`: which handlers there are.
//!
//! zbus has one, which would show all objects below the root. targetcli takes each for a handler, so
//! this one shows handlers only.

use std::collections::HashMap;
use std::sync::Arc;

use zbus::message::Header;
use zbus::names::InterfaceName;
use zbus::object_server::SignalEmitter;
use zbus::{Connection, ObjectPath, Variant, fdo};

use super::access::admit;
use super::external::Externals;
use super::handler;
use super::subtype::Subtype;
use crate::registry::Registry;

/// The interfaces of an object, each with its properties.
type Interfaces<'a> = HashMap<InterfaceName<'a>, HashMap<&'a str, Variant<'a>>>;

/// The root object.
pub(super) struct ObjectManager {
    pub(super) registry: Arc<Registry>,
    pub(super) externals: Arc<Externals>,
}

#[zbus::interface(
    name = "org.freedesktop.DBus.ObjectManager",
    introspection_docs = false
)]
impl ObjectManager {
    #[zbus(out_args("objects"))]
    async fn get_managed_objects(
        &self,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &Connection,
    ) -> fdo::Result<HashMap<ObjectPath<'static>, Interfaces<'static>>> {
        admit(connection, &header).await?;
        let mut objects = HashMap::new();
        for (subtype, description) in self.registry.help() {
            // A subtype that has no place on the bus was reported when the service began.
            if let Ok(subtype) = Subtype::new(subtype) {
                objects.insert(path(&subtype)?, interfaces(description.to_owned())?);
            }
        }
        for (subtype, description) in self.externals.all() {
            objects.insert(path(&subtype)?, interfaces(description)?);
        }
        Ok(objects)
    }

    #[zbus(signal)]
    async fn interfaces_added(
        emitter: &SignalEmitter<'_>,
        object: ObjectPath<'_>,
        interfaces: Interfaces<'_>,
    ) -> zbus::Result<()>;

    #[zbus(signal)]
    async fn interfaces_removed(
        emitter: &SignalEmitter<'_>,
        object: ObjectPath<'_>,
        interfaces: &[InterfaceName<'_>],
    ) -> zbus::Result<()>;
}

/// Tells that a handler has come.
pub(super) async fn tell_added(
    connection: &Connection,
    subtype: &Subtype,
    description: String,
) -> zbus::Result<()> {
    let emitter = SignalEmitter::new(connection, super::ROOT)?;
    ObjectManager::interfaces_added(&emitter, path(subtype)?, interfaces(description)?).await
}

/// Tells that a handler has gone.
pub(super) async fn tell_removed(connection: &Connection, subtype: &Subtype) -> zbus::Result<()> {
    let emitter = SignalEmitter::new(connection, super::ROOT)?;
    let interface = InterfaceName::try_from(handler::INTERFACE)?;
    ObjectManager::interfaces_removed(&emitter, path(subtype)?, &[interface]).await
}

fn path(subtype: &Subtype) -> zbus::Result<ObjectPath<'static>> {
    ObjectPath::try_from(subtype.path())
}

fn interfaces(description: String) -> zbus::Result<Interfaces<'static>> {
    let properties = HashMap::from([("ConfigDesc", Variant::from(description))]);
    let interface = InterfaceName::try_from(handler::INTERFACE)?;
    Ok(HashMap::from([(interface, properties)]))
}
