//! The service on one bus, from its connection to its end.

use std::sync::Arc;
use std::time::Duration;

use zbus::Connection;
use zbus::connection::Builder;
use zruntime::lock::Mutex;
use zruntime::{Shared, SharedRuntime, Task};

use super::checks::{self, Checks};
use super::handler::{HandlerObject, Place};
use super::manager::{HandlerManager, Manager, name_changes};
use super::object_manager::ObjectManager;
use super::runner::{self, RunnerObject, tell_events};
use super::subtype::Subtype;
use super::{Backend, NAME, ROOT};

/// How long the bus may take to let us in.
const PATIENCE: Duration = Duration::from_secs(10);

/// How long anyone on the bus may take to answer: longer than a check that is passed on.
const ANSWER: Duration = Duration::from_secs(checks::LIMIT.as_secs() + 5);

/// The service on a bus. Dropped, it leaves.
pub(super) struct Session {
    connection: Connection,
    _tasks: [Task<(), Shared>; 2],
}

impl Session {
    /// Connects to the system bus, makes the objects, and owns the name.
    pub(super) async fn open(
        backend: &Backend,
        checks: &Arc<Checks>,
        runtime: &SharedRuntime,
    ) -> zbus::Result<Self> {
        let manager = Arc::new(Manager {
            registry: Arc::clone(&backend.registry),
            externals: Arc::clone(&backend.externals),
            checks: Arc::clone(checks),
            petitioner: backend.petitioner.clone(),
            changing: Mutex::new(()),
        });
        let mut builder = Builder::system()
            .method_timeout(ANSWER)
            .serve_at(
                ROOT,
                ObjectManager {
                    registry: Arc::clone(&backend.registry),
                    externals: Arc::clone(&backend.externals),
                },
            )
            .serve_at(
                format!("{ROOT}/HandlerManager1"),
                HandlerManager(Arc::clone(&manager)),
            )
            .serve_at(
                runner::PATH,
                RunnerObject {
                    board: Arc::clone(&backend.board),
                    petitioner: backend.petitioner.clone(),
                },
            );
        for (subtype, description) in backend.registry.help() {
            match Subtype::new(subtype) {
                Ok(subtype) => {
                    let object = HandlerObject {
                        description: description.to_owned(),
                        place: Place::Here(backend.petitioner.clone()),
                        checks: Arc::clone(checks),
                        subtype: subtype.clone(),
                    };
                    builder = builder.serve_at(subtype.path(), object);
                }
                Err(error) => tracing::error!(subtype, %error, "not offered on D-Bus"),
            }
        }
        let connection = match runtime.timeout(PATIENCE, builder.build()).await {
            Ok(connection) => connection?,
            Err(_) => return Err(zbus::Error::Failure("the bus does not answer".to_owned())),
        };
        let changes = name_changes(&connection).await?;
        let watch = {
            let connection = connection.clone();
            runtime.spawn("watch handlers' names", async move {
                manager.watch(&connection, changes).await;
            })
        };
        let tell = {
            let (connection, board) = (connection.clone(), Arc::clone(&backend.board));
            runtime.spawn("tell events", async move {
                // It ends with the connection.
                let _ = tell_events(&connection, &board).await;
            })
        };
        // The name comes last: whoever waits for it finds everything there.
        connection
            .request_name_with_flags(NAME, zbus::fdo::RequestNameFlags::DO_NOT_QUEUE)
            .await?;
        Ok(Self {
            connection,
            _tasks: [watch, tell],
        })
    }

    /// Waits until the bus is gone.
    pub(super) async fn closed(&self) {
        self.connection.closed().await;
    }
}
