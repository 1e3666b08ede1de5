//! One connection, and the requests on it.
//!
//! There is no task and no thread for a connection: its requests take turns. The first one that has
//! nobody else to rely on *drives* the connection for all: it sends what is queued, receives what
//! comes, and wakes those whose replies have come. When its own reply has come it wakes another one,
//! which drives on. What the kernel is doing belongs to the connection, not to the driver.
//!
//! # A connection that ends
//! If the server ends it, all that was not answered is sent again on a new one, in the same order.
//! That is right because a server ends a connection after it has dealt with all it has received
//! (proto.md, "Terminating the transmission phase"), or because it was killed: no request of the old
//! connection is done any more. A request that had been done already is done twice; that changes
//! nothing for those who wait for it, because they have no answer yet, and so whatever else was
//! written to the same place meanwhile was written at the same time, and may come before or after.
//!
//! If the server is silent for too long, or breaks the protocol's rules, nothing is known of what it
//! still does: all outstanding requests fail, and those that follow have a new connection.

mod traffic;

use std::cell::RefCell;
use std::future::poll_fn;
use std::io;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use rustix::net::{Shutdown, shutdown};
use tcmu_handler::{Buffer, Error, ErrorKind, File, Io, Operation, Ticket, yield_now};

use crate::connect::{Connected, connect, goodbye};
use crate::handshake::Export;
use crate::options::Options;
use crate::outage::{Advice, Outage};
use crate::protocol::flag;
use crate::receiver::{INBOX, Receiver};
use crate::records::Records;
use crate::request::Request;
use crate::sender::Sender;
use crate::slots::{Outcome, Slots};
use crate::unflushed::Unflushed;

/// A request that ended so many connections in a row is not sent again.
const MAX_TRIES: u32 = 10;

/// What the connections of an image have in common.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) options: Arc<Options>,
    pub(crate) export: Export,
    pub(crate) unflushed: Unflushed,
}

/// One connection; a new socket takes the place of one that fails.
#[derive(Debug)]
pub(crate) struct Connection(RefCell<State>);

#[derive(Debug)]
struct State {
    socket: Option<File>,
    slots: Slots,
    sender: Sender,
    /// There is one from the first request on.
    receiver: Option<Receiver>,
    /// There are some if all is encrypted.
    records: Option<Records>,
    sending: Option<Ticket>,
    receiving: Option<Ticket>,
    /// Comes when the server has been silent for too long.
    alarm: Option<Ticket>,
    /// Operations on an earlier socket. Nothing is sent again, and no request ends, before they have
    /// ended: they may use its memory.
    ending: Vec<Ticket>,
    driver: Option<u32>,
    /// The driver knows that there is something to send.
    nudged: bool,
    /// When a byte was sent or received last, or there was something to do again.
    progress: Instant,
    outage: Outage,
}

/// Why a connection cannot be used.
#[derive(Debug)]
enum Broken {
    /// There is none.
    Down,
    /// It has ended.
    Lost(String),
    /// It must not be used any more.
    Unusable(ErrorKind, String),
}

/// How far a request has come.
enum Step {
    Ended(Outcome),
    /// The request drives a connection that cannot be used.
    Broken(Broken),
}

impl Connection {
    pub(crate) fn new(connected: Connected) -> Self {
        let mut state = State {
            socket: None,
            slots: Slots::default(),
            sender: Sender::default(),
            receiver: None,
            records: None,
            sending: None,
            receiving: None,
            alarm: None,
            ending: Vec::new(),
            driver: None,
            nudged: false,
            progress: Instant::now(),
            outage: Outage::default(),
        };
        state.install(connected);
        Self(RefCell::new(state))
    }

    /// How many requests have not ended.
    pub(crate) fn load(&self) -> usize {
        self.0.borrow().slots.waiting()
    }

    /// Sends a request, with its data or with the memory for them, and waits for its end.
    pub(crate) async fn request(
        &self,
        io: &Io,
        shared: &Shared,
        request: Request,
        buffer: Option<Buffer<'_>>,
    ) -> Outcome {
        let (me, drives) = self.0.borrow_mut().enqueue(io, request, buffer)?;
        let guard = Guard {
            connection: self,
            io,
            me,
        };
        if drives {
            // The requests of the same turn shall go with the same message.
            yield_now().await;
        }
        let outcome = loop {
            match poll_fn(|context| self.0.borrow_mut().step(me, io, shared, context)).await {
                Step::Ended(outcome) => break outcome,
                // In a box, so that the futures of requests stay small.
                Step::Broken(broken) => Box::pin(self.recover(io, shared, broken)).await,
            }
        };
        std::mem::forget(guard);
        outcome
    }

    /// Says goodbye to the server. Nothing is outstanding.
    pub(crate) async fn close(&self, io: &Io) {
        self.end_operations(io, |state| {
            state.socket.take().inspect(|socket| {
                let goodbye = match &mut state.records {
                    None => Some(goodbye(None)),
                    Some(records) => records.goodbye(),
                };
                let memory = goodbye.and_then(|goodbye| {
                    let memory = io.allocate(goodbye.len()).ok()?;
                    memory.view().copy_from(0, &goodbye);
                    Some(memory)
                });
                let Some(memory) = memory else {
                    return;
                };
                let parts = &[memory.view()];
                state
                    .ending
                    .push(io.start(Operation::Send { socket, parts }));
            })
        })
        .await;
    }

    /// Does what can be done about a connection that cannot be used: afterwards there is a new one, or
    /// all requests have ended.
    async fn recover(&self, io: &Io, shared: &Shared, broken: Broken) {
        let server = &shared.options.address;
        self.end_operations(io, State::disconnect).await;
        if let Broken::Lost(why) | Broken::Unusable(_, why) = &broken {
            let outstanding = self.load();
            tracing::warn!(%server, why, outstanding, "the connection to the NBD server has ended");
            let forgets = shared.export.has(flag::FLUSH) && !shared.options.durable_cache;
            if forgets && shared.unflushed.connection_lost() {
                tracing::error!(%server, "if the NBD server has ended too, what it had not flushed is lost: the next flush fails");
            }
        }
        if let Broken::Unusable(kind, why) = broken {
            let mut state = self.0.borrow_mut();
            return state.fail(kind, &format!("NBD server {server}: {why}"));
        }
        loop {
            let patience = shared.options.reconnect;
            let advice = self.0.borrow_mut().outage.advise(Instant::now(), patience);
            let Advice::Try(pause) = advice else {
                let mut state = self.0.borrow_mut();
                let reason = state.outage.reason.clone();
                return state.fail(ErrorKind::Gone, &reason);
            };
            if pause > Duration::ZERO {
                // If there is no time to wait, there is a connection sooner.
                let _ = io.submit(Operation::Wait { time: pause }).await;
            }
            let options = Arc::clone(&shared.options);
            let connected = io.blocking(move || connect(&options)).await;
            let reason = match connected {
                Ok(Ok(connected)) if connected.session.export == shared.export => {
                    let mut state = self.0.borrow_mut();
                    tracing::info!(%server, outstanding = state.slots.waiting(), "connected to the NBD server again");
                    return state.resume(io, connected);
                }
                Ok(Ok(Connected { session, .. })) => format!(
                    "NBD server {server}: it exports something else now: {}; it was {}",
                    session.export, shared.export
                ),
                Ok(Err(error)) => error.to_string(),
                Err(error) => error.to_string(),
            };
            tracing::debug!(reason, "cannot connect");
            self.0.borrow_mut().outage.reason = reason;
        }
    }

    /// Ends the use of a socket, which `end` takes away, and waits until the kernel has let go of it.
    async fn end_operations(&self, io: &Io, end: impl FnOnce(&mut State) -> Option<File>) {
        let socket = {
            let mut state = self.0.borrow_mut();
            let socket = end(&mut state);
            let operations = [state.sending.take(), state.receiving.take()];
            state.ending.extend(operations.into_iter().flatten());
            if let Some(alarm) = state.alarm.take() {
                io.forget(alarm);
            }
            socket
        };
        // What is being received ends with the connection, and what is being sent, a goodbye apart.
        if let Some(socket) = &socket {
            let _ = shutdown(socket, Shutdown::Read);
        }
        while let Some(ticket) = self.next_ending() {
            let _ = poll_fn(|context| io.poll(ticket, context)).await;
            let mut state = self.0.borrow_mut();
            state.ending.retain(|other| *other != ticket);
        }
        if let Some(socket) = &socket {
            let _ = shutdown(socket, Shutdown::Both);
        }
    }

    fn next_ending(&self) -> Option<Ticket> {
        self.0.borrow().ending.last().copied()
    }
}

impl Drop for Connection {
    /// Ends what the kernel may still be doing.
    fn drop(&mut self) {
        self.0.get_mut().disconnect();
    }
}

impl State {
    /// Notes a request. Returns its slot, and whether it is the one that drives.
    fn enqueue(
        &mut self,
        io: &Io,
        request: Request,
        buffer: Option<Buffer<'_>>,
    ) -> Result<(u32, bool), Error> {
        let no_memory = |error: io::Error| {
            Error::os("memory for the connection", error).with_kind(ErrorKind::Busy)
        };
        if self.receiver.is_none() {
            self.receiver = Some(Receiver::new(io.allocate(INBOX).map_err(no_memory)?));
        }
        if let Some(records) = &mut self.records {
            records.prepare(io).map_err(no_memory)?;
        }
        if self.slots.waiting() == 0 {
            self.progress = Instant::now();
        }
        let me = self.slots.insert(request, buffer);
        let me = me.map_err(|error| {
            Error::new(ErrorKind::Internal, "the request's memory").with_source(error)
        })?;
        if let Err(error) = self.sender.push(io, &self.slots, me) {
            self.slots.end(me, Err(no_memory(error)));
            let outcome = self.slots.take(me);
            let unknown = || Error::new(ErrorKind::Busy, "no memory for the connection");
            return Err(outcome.and_then(Result::err).unwrap_or_else(unknown));
        }
        let drives = self.driver.is_none();
        match self.driver {
            None => self.driver = Some(me),
            Some(driver) if !self.nudged => self.slots.wake(driver),
            Some(_) => {}
        }
        self.nudged = true;
        Ok((me, drives))
    }

    /// Takes the outcome of a request, or brings it about.
    fn step(&mut self, me: u32, io: &Io, shared: &Shared, context: &mut Context<'_>) -> Poll<Step> {
        if let Some(outcome) = self.ended(me) {
            return Poll::Ready(Step::Ended(outcome));
        }
        self.slots.set_waker(me, context.waker());
        if *self.driver.get_or_insert(me) != me {
            return Poll::Pending;
        }
        if let Err(broken) = self.drive(io, shared, context) {
            return Poll::Ready(Step::Broken(broken));
        }
        match self.ended(me) {
            Some(outcome) => Poll::Ready(Step::Ended(outcome)),
            None => Poll::Pending,
        }
    }

    /// The outcome of a request; somebody else drives from then on.
    fn ended(&mut self, me: u32) -> Option<Outcome> {
        let outcome = self.slots.take(me)?;
        self.leave(me);
        Some(outcome)
    }

    /// Lets another request drive, if it was this one.
    fn leave(&mut self, me: u32) {
        if self.driver.is_none_or(|driver| driver == me) {
            self.driver = None;
            self.slots.wake_any();
        }
    }

    /// Does all that can be done now.
    fn drive(&mut self, io: &Io, shared: &Shared, context: &mut Context<'_>) -> Result<(), Broken> {
        self.nudged = false;
        let socket = self.socket.as_ref().map(Arc::clone);
        let socket = socket.ok_or(Broken::Down)?;
        let before = self.slots.waiting();
        self.exchange(io, &socket, shared, context)?;
        if self.slots.waiting() < before {
            self.outage.over();
        }
        self.watch(io, shared, context)
    }

    /// Looks whether the server has been silent for too long.
    fn watch(&mut self, io: &Io, shared: &Shared, context: &mut Context<'_>) -> Result<(), Broken> {
        let Some(limit) = shared.options.timeout else {
            return Ok(());
        };
        loop {
            if let Some(ticket) = self.alarm {
                if io.poll(ticket, context).is_pending() {
                    return Ok(());
                }
                self.alarm = None;
                let silence = self.progress.elapsed();
                if silence >= limit && self.slots.waiting() > 0 {
                    let why = format!("it has not answered for {} s", silence.as_secs());
                    return Err(Broken::Unusable(ErrorKind::TimedOut, why));
                }
            }
            let time = limit.saturating_sub(self.progress.elapsed());
            let time = time.max(Duration::from_millis(1));
            self.alarm = Some(io.start(Operation::Wait { time }));
        }
    }

    /// Ends the connection. What the kernel does with it ends soon.
    fn disconnect(&mut self) -> Option<File> {
        self.sender.clear();
        self.socket.take().inspect(|socket| {
            // It may have ended by itself.
            let _ = shutdown(socket, Shutdown::Both);
        })
    }

    /// Ends all requests in the same way.
    fn fail(&mut self, kind: ErrorKind, context: &str) {
        self.sender.clear();
        for slot in self.slots.in_order() {
            self.slots.end(slot, Err(Error::new(kind, context)));
        }
    }

    /// Takes a new connection.
    fn install(&mut self, connected: Connected) {
        let session = connected.session;
        self.slots.agree(session.structured, session.context);
        self.socket = Some(Arc::new(connected.socket));
        match (&mut self.records, connected.encryption) {
            (Some(records), Some(client)) => records.restart(client),
            (records, client) => *records = client.map(Records::new),
        }
        self.progress = Instant::now();
        if let Some(receiver) = &mut self.receiver {
            receiver.restart();
        }
    }

    /// Sends on a new connection what was not answered on the one before.
    fn resume(&mut self, io: &Io, connected: Connected) {
        self.install(connected);
        self.sender.clear();
        for slot in self.slots.in_order() {
            let outcome = match self.slots.again(slot) {
                tries if tries > MAX_TRIES => Error::new(
                    ErrorKind::Gone,
                    format!("the NBD server has ended {MAX_TRIES} connections without an answer"),
                ),
                _ => match self.sender.push(io, &self.slots, slot) {
                    Ok(()) => continue,
                    Err(error) => Error::os("sending a request again", error),
                },
            };
            self.slots.end(slot, Err(outcome));
        }
    }
}

/// Ends the connection of a request that is given up before its end: its reply would find memory that
/// is somebody else's by then.
struct Guard<'a> {
    connection: &'a Connection,
    io: &'a Io,
    me: u32,
}

impl Drop for Guard<'_> {
    fn drop(&mut self) {
        let Ok(mut state) = self.connection.0.try_borrow_mut() else {
            return;
        };
        let state = &mut *state;
        state.disconnect();
        let target = state.receiver.as_ref().and_then(Receiver::target);
        if let Some(ticket) = state.receiving.take() {
            // Whoever gives the memory back has to know that the kernel may use it. Records do not go
            // there.
            match target == Some(self.me) && state.records.is_none() {
                true => self.io.forget(ticket),
                false => state.ending.push(ticket),
            }
        }
        state.ending.extend(state.sending.take());
        let given_up = Error::new(ErrorKind::Internal, "the request was given up");
        state.slots.end(self.me, Err(given_up));
        state.slots.take(self.me);
        state.leave(self.me);
    }
}
