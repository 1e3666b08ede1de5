//! `org.kernel.TCMUService1.Runner1`: the daemon's state, figures and events.
//!
//! The number in the name changes if something is taken away. What is added does not change it:
//! records are dictionaries, so that older clients read newer daemons.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use zbus::message::Header;
use zbus::object_server::SignalEmitter;
use zbus::{Connection, SerializeDict, Type, fdo};

use super::access::admit;
use crate::daemon::board::{Board, Event, LunStatus};

/// Where the object is.
pub(super) const PATH: &str = "/org/kernel/TCMUService1/Runner1";

/// How many events one answer has at the most.
const MOST_EVENTS: usize = 256;

/// The daemon as an object on the bus.
pub(super) struct RunnerObject {
    pub(super) board: Arc<Board>,
}

/// A LUN.
#[derive(Debug, SerializeDict, Type)]
#[zbus(signature = "a{sv}")]
pub(super) struct LunRecord {
    /// The minor number of its uio device.
    id: u32,
    name: String,
    /// N of the folder `core/user_N`.
    hba: u32,
    /// The handler's subtype.
    handler: String,
    /// The configuration behind the subtype.
    config: String,
    /// `opening`, `serving`, `leaving` or `failed`.
    state: String,
    /// Why it stands there; empty where that needs no words.
    reason: String,
    /// Since when it stands there, in milliseconds since 1970.
    since: u64,
    /// In bytes; 0 where it is not known.
    size: u64,
    /// In bytes; 0 where it is not known.
    block_size: u32,
    /// The number of the reactor that serves it.
    reactor: u32,
    /// How often its ring has been reset because it was damaged.
    ring_resets: u32,
    /// How many commands were completed since it was opened.
    completed: u64,
    /// How many commands are being executed.
    in_flight: u32,
}

/// Something that has happened.
#[derive(Debug, SerializeDict, Type)]
#[zbus(signature = "a{sv}")]
pub(super) struct EventRecord {
    /// Counts up from 1 over the daemon's life.
    sequence: u64,
    /// In milliseconds since 1970.
    time: u64,
    /// `serving`, `failed`, `closed`, `resized`, `write-cache`, `change-refused`,
    /// `ring-reset` or `handlers`.
    kind: String,
    /// The LUN's name; empty where it concerns none.
    lun: String,
    /// In words.
    message: String,
}

#[zbus::interface(name = "org.kernel.TCMUService1.Runner1", introspection_docs = false)]
impl RunnerObject {
    /// The daemon's version.
    #[zbus(property(emits_changed_signal = "const"))]
    fn version(&self) -> &str {
        env!("CARGO_PKG_VERSION")
    }

    /// The daemon's process id.
    #[zbus(property(emits_changed_signal = "const"))]
    fn process_id(&self) -> u32 {
        std::process::id()
    }

    /// All LUNs.
    #[zbus(out_args("luns"))]
    async fn list_luns(
        &self,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &Connection,
    ) -> fdo::Result<Vec<LunRecord>> {
        admit(connection, &header).await?;
        Ok(self.board.luns().into_iter().map(LunRecord::of).collect())
    }

    /// The oldest events after the one numbered `after` that are still known, and the number of
    /// the latest event. An answer can leave some out: ask again, after the last one that it has.
    #[zbus(out_args("events", "latest"))]
    async fn list_events(
        &self,
        after: u64,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &Connection,
    ) -> fdo::Result<(Vec<EventRecord>, u64)> {
        admit(connection, &header).await?;
        let events = self.board.events_after(after, MOST_EVENTS);
        let records = events.into_iter().map(EventRecord::of).collect();
        Ok((records, self.board.latest()))
    }

    /// Something has happened.
    #[zbus(signal)]
    async fn event(emitter: &SignalEmitter<'_>, event: EventRecord) -> zbus::Result<()>;
}

impl LunRecord {
    fn of(lun: LunStatus) -> Self {
        Self {
            id: lun.id,
            hba: lun.name.hba,
            name: lun.name.name,
            handler: lun.name.subtype,
            config: lun.name.config,
            state: lun.state.name().to_owned(),
            reason: lun.reason,
            since: milliseconds(lun.since),
            size: lun.reading.size,
            block_size: lun.reading.block_size,
            reactor: u32::try_from(lun.reactor).unwrap_or(u32::MAX),
            ring_resets: lun.ring_resets,
            completed: lun.reading.completed,
            in_flight: lun.reading.in_flight,
        }
    }
}

impl EventRecord {
    fn of(event: Event) -> Self {
        Self {
            sequence: event.sequence,
            time: milliseconds(event.time),
            kind: event.kind.name().to_owned(),
            lun: event.lun,
            message: event.message,
        }
    }
}

/// Milliseconds since 1970; a clock before that shows 0.
fn milliseconds(time: SystemTime) -> u64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// Tells events from now on, for as long as the connection lasts.
///
/// A bus that does not keep up misses those that the board has dropped by then.
pub(super) async fn tell_events(connection: &Connection, board: &Board) -> zbus::Result<()> {
    let emitter = SignalEmitter::new(connection, PATH)?;
    let mut told = board.latest();
    loop {
        // Before looking, so that none comes in between unnoticed.
        let next = board.next_event();
        let events = board.events_after(told, MOST_EVENTS);
        if events.is_empty() {
            next.await;
        }
        for event in events {
            told = event.sequence;
            RunnerObject::event(&emitter, EventRecord::of(event)).await?;
        }
    }
}
