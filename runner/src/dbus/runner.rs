//! `org.kernel.TCMUService1.Runner1`: the daemon's state, figures and events, and what an operator
//! may ask of it.
//!
//! The number in the name changes if something is taken away. What is added does not change it:
//! records are dictionaries, so that older clients read newer daemons.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use futures_channel::oneshot;
use zbus::message::Header;
use zbus::object_server::SignalEmitter;
use zbus::{Connection, OwnedFd, SerializeDict, Type, fdo};

use super::access::admit;
use super::figures::StatsRecord;
use crate::daemon::board::{Board, Event, Facts, LunStatus};
use crate::daemon::{DrainRequest, LONGEST_HOLD, Petition, Petitioner};

/// Where the object is.
pub(super) const PATH: &str = "/org/kernel/TCMUService1/Runner1";

/// How many events one answer has at the most.
const MOST_EVENTS: usize = 256;

/// The daemon as an object on the bus.
pub(super) struct RunnerObject {
    pub(super) board: Arc<Board>,
    pub(super) petitioner: Petitioner,
}

/// The daemon.
#[derive(Debug, SerializeDict, Type)]
#[zbus(signature = "a{sv}")]
pub(super) struct StatusRecord {
    version: String,
    process_id: u32,
    /// When it was started, in milliseconds since 1970.
    started: u64,
    /// How many threads serve LUNs.
    reactors: u32,
    /// A level, or a filter of modules.
    log_level: String,
    /// From how many milliseconds on a command is logged as slow; 0: none is.
    slow_command_ms: u64,
    /// Where the figures for Prometheus are; empty: nowhere.
    metrics: String,
    /// The number of the latest event.
    latest_event: u64,
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
    /// `opening`, `waiting` (for its image), `serving`, `draining`, `held`, `offline` (commands are
    /// answered with NOT READY), `leaving` or `failed`.
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
    /// Whether its image does not answer.
    stuck: bool,
}

/// Something that has happened.
#[derive(Debug, SerializeDict, Type)]
#[zbus(signature = "a{sv}")]
pub(super) struct EventRecord {
    /// Counts up from 1 over the daemon's life.
    sequence: u64,
    /// In milliseconds since 1970.
    time: u64,
    /// `serving`, `failed`, `offline`, `stuck`, `unstuck`, `closed`, `resized`, `medium-changed`,
    /// `write-cache`,
    /// `change-refused`, `ring-reset`, `held`, `resumed` or `handlers`.
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

    /// The daemon itself.
    #[zbus(out_args("status"))]
    async fn status(
        &self,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &Connection,
    ) -> fdo::Result<StatusRecord> {
        admit(connection, &header).await?;
        Ok(StatusRecord::of(self.board.facts(), self.board.latest()))
    }

    /// The figures of the LUNs with these ids, or of all if there are none.
    #[zbus(out_args("luns"))]
    async fn stats(
        &self,
        luns: Vec<u32>,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &Connection,
    ) -> fdo::Result<Vec<StatsRecord>> {
        admit(connection, &header).await?;
        let mut meters = self.board.meters();
        meters.retain(|(lun, _)| luns.is_empty() || luns.contains(&lun.id));
        let records = meters.into_iter();
        Ok(records
            .map(|(lun, meter)| StatsRecord::of(lun, &meter))
            .collect())
    }

    /// Changes how much is logged: a level or a filter of modules, which holds until the daemon ends or
    /// its configuration says otherwise; empty: as the configuration says. Returns what holds.
    #[zbus(out_args("level"))]
    async fn set_log_level(
        &self,
        level: String,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &Connection,
    ) -> fdo::Result<String> {
        admit(connection, &header).await?;
        let (done, answer) = oneshot::channel();
        let done = Box::new(move |result| drop(done.send(result)));
        self.petitioner.send(Petition::SetLogLevel { level, done });
        answer
            .await
            .map_err(ending)?
            .map_err(fdo::Error::InvalidArgs)
    }

    /// Drains the LUNs with these ids, or all that are served if there are none: no further command is
    /// fetched, and when those in flight are finished and the backstores flushed, this returns; it is
    /// an error if that takes longer than `seconds` from 1 to 3600. The LUNs are then held, and their
    /// images left alone, until all copies of the file descriptor `hold` are closed, which the caller's
    /// death does too, or until `seconds` since the call are over. The daemon closes its end of `hold`
    /// when a LUN is not held any more. What initiators ask for meanwhile waits in the kernel.
    #[zbus(out_args("hold", "drained"))]
    async fn drain(
        &self,
        luns: Vec<u32>,
        seconds: u32,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &Connection,
    ) -> fdo::Result<(OwnedFd, Vec<u32>)> {
        admit(connection, &header).await?;
        if !(1..=LONGEST_HOLD).contains(&seconds) {
            return Err(fdo::Error::InvalidArgs(format!(
                "{seconds} is not a number of seconds from 1 to {LONGEST_HOLD}"
            )));
        }
        let (done, answer) = oneshot::channel();
        self.petitioner.send(Petition::Drain(DrainRequest {
            luns,
            limit: Duration::from_secs(seconds.into()),
            done: Box::new(move |result| drop(done.send(result))),
        }));
        let (hold, drained) = answer
            .await
            .map_err(ending)?
            .map_err(|error| fdo::Error::Failed(error.to_string()))?;
        Ok((std::os::fd::OwnedFd::from(hold).into(), drained))
    }

    /// Something has happened.
    #[zbus(signal)]
    async fn event(emitter: &SignalEmitter<'_>, event: EventRecord) -> zbus::Result<()>;
}

fn ending(_: oneshot::Canceled) -> fdo::Error {
    fdo::Error::Failed("tcmu-runner is ending".to_owned())
}

impl StatusRecord {
    fn of(facts: Facts, latest_event: u64) -> Self {
        let slow = facts.slow_command.unwrap_or_default();
        Self {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            process_id: std::process::id(),
            started: milliseconds(facts.started),
            reactors: u32::try_from(facts.reactors).unwrap_or(u32::MAX),
            log_level: facts.log_level,
            slow_command_ms: u64::try_from(slow.as_millis()).unwrap_or(u64::MAX),
            metrics: facts.metrics,
            latest_event,
        }
    }
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
            stuck: lun.stuck,
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
