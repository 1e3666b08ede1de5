//! The service on the system bus: what targetcli speaks, and an interface of our own.
//!
//! | object | interface | for |
//! |---|---|---|
//! | `/org/kernel/TCMUService1` | `org.freedesktop.DBus.ObjectManager` | finding the handlers |
//! | `/org/kernel/TCMUService1/SUBTYPE` | `org.kernel.TCMUService1` | one handler |
//! | `.../HandlerManager1` | `org.kernel.TCMUService1.HandlerManager1` | handlers in other processes |
//! | `.../Runner1` | `org.kernel.TCMUService1.Runner1` | the daemon's state, figures, events, log level, and draining LUNs |
//!
//! It lives on a thread of its own and never holds up the daemon: without a bus the daemon works as
//! well, and when a bus comes, or comes back, the service is there. The bus's policy lets root in only
//! (`systemd/org.kernel.TCMUService1.conf`); callers are checked here again.

mod access;
mod checks;
mod external;
mod figures;
mod handler;
mod manager;
mod object_manager;
mod runner;
mod session;
mod subtype;

use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use zruntime::SharedRuntime;

use self::checks::Checks;
pub(crate) use self::external::Externals;
use self::session::Session;
use crate::daemon::board::Board;
use crate::daemon::{Petition, Petitioner};
use crate::registry::Registry;

/// The service's name.
const NAME: &str = "org.kernel.TCMUService1";

/// The object with the handlers below it.
const ROOT: &str = "/org/kernel/TCMUService1";

/// How long the start of the daemon waits for the bus.
const FIRST_ATTEMPT: Duration = Duration::from_secs(5);

/// How soon the bus is tried again when it went away or was not there, at first and at last.
const SOON: Duration = Duration::from_millis(100);
const LATER: Duration = Duration::from_secs(10);

/// What the service shows and asks of the daemon.
pub(crate) struct Backend {
    pub(crate) registry: Arc<Registry>,
    pub(crate) board: Arc<Board>,
    /// The handlers in other processes.
    pub(crate) externals: Arc<Externals>,
    /// Hands requests to the daemon.
    pub(crate) petitioner: Petitioner,
}

/// The running service; dropped, it leaves the bus.
pub(crate) struct Service {
    /// Its loss ends the thread.
    stop: Option<futures_channel::oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Service {
    /// Starts the service, and waits until the name is owned or the first attempt has failed.
    pub(crate) fn start(backend: Backend) -> std::io::Result<Self> {
        let (stop, stopped) = futures_channel::oneshot::channel::<()>();
        let (attempted, attempt) = channel();
        let thread = thread::Builder::new()
            .name("dbus".to_owned())
            .spawn(move || {
                zbus::block_on(async move {
                    let stay = stay_on_the_bus(&backend, attempted);
                    futures_util::future::select(std::pin::pin!(stay), stopped).await;
                });
            })?;
        if attempt.recv_timeout(FIRST_ATTEMPT) == Err(RecvTimeoutError::Timeout) {
            tracing::warn!("the system bus does not answer; going on without it for now");
        }
        Ok(Self {
            stop: Some(stop),
            thread: Some(thread),
        })
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // A panic was reported when it happened.
            let _ = thread.join();
        }
    }
}

/// Is on the bus whenever there is one. `attempted` is told when the first attempt has ended.
async fn stay_on_the_bus(backend: &Backend, attempted: Sender<()>) {
    let runtime = match SharedRuntime::current() {
        Ok(runtime) => runtime,
        Err(error) => return tracing::error!(%error, "the D-Bus service cannot run"),
    };
    let checks = Arc::new(Checks::new(Arc::clone(&backend.registry), runtime.clone()));
    let mut pause = SOON;
    let mut complaint = String::new();
    loop {
        match Session::open(backend, &checks, &runtime).await {
            Ok(session) => {
                tracing::info!(name = NAME, "on the system bus");
                let _ = attempted.send(());
                session.closed().await;
                drop(session);
                backend.externals.clear();
                backend.petitioner.send(Petition::HandlersChanged);
                tracing::warn!("the system bus went away; LUNs go on without it");
                (pause, complaint) = (SOON, String::new());
            }
            Err(error) => {
                let text = error.to_string();
                if text != complaint {
                    tracing::warn!(
                        error = text,
                        "not on the system bus: targetcli does not see the handlers; trying again \
                         (--no-dbus does without)"
                    );
                    complaint = text;
                }
                let _ = attempted.send(());
            }
        }
        runtime.sleep(pause).await;
        pause = (pause * 2).min(LATER);
    }
}
