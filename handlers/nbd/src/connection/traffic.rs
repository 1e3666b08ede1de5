//! What goes through a connection's socket, plain or encrypted.

use std::io;
use std::task::{Context, Poll};
use std::time::Instant;

use tcmu_handler::{Buffer, ErrorKind, File, Io, Operation, Ticket};

use super::{Broken, Shared, State};
use crate::receiver::Progress;
use crate::records::Failure;
use crate::reply::Malformed;
use crate::tls;

impl State {
    /// Sends and receives all that can be now.
    pub(super) fn exchange(
        &mut self,
        io: &Io,
        socket: &File,
        shared: &Shared,
        context: &mut Context<'_>,
    ) -> Result<(), Broken> {
        if self.records.is_none() {
            self.send(io, socket, context)?;
            return self.receive(io, socket, shared, context);
        }
        self.send_encrypted(io, socket, context)?;
        self.receive_encrypted(io, socket, shared, context)?;
        // TLS has questions of its own, which want an answer.
        match &self.records {
            Some(records) if records.wants_write() => self.send_encrypted(io, socket, context),
            _ => Ok(()),
        }
    }

    fn send(&mut self, io: &Io, socket: &File, context: &mut Context<'_>) -> Result<(), Broken> {
        loop {
            let Some(sent) = self.has_sent(io, context)? else {
                return Ok(());
            };
            self.sender.sent(&mut self.slots, sent);
            let start = |parts: &[Buffer<'_>]| io.start(Operation::Send { socket, parts });
            self.sending = self.sender.start(&mut self.slots, start);
            if self.sending.is_none() {
                return Ok(());
            }
        }
    }

    fn receive(
        &mut self,
        io: &Io,
        socket: &File,
        shared: &Shared,
        context: &mut Context<'_>,
    ) -> Result<(), Broken> {
        loop {
            let Some(received) = self.has_received(io, context)? else {
                return Ok(());
            };
            let Some(receiver) = &mut self.receiver else {
                return Ok(());
            };
            receiver.received(received);
            go_on(receiver.advance(&mut self.slots, shared.unflushed.changes()))?;
            if self.slots.waiting() == 0 {
                return Ok(());
            }
            receiver.prepare(&self.slots);
            let (parts, whole) = receiver.parts(&self.slots);
            self.receiving = Some(io.start(Operation::Receive {
                socket,
                parts: &parts,
                whole,
            }));
        }
    }

    fn send_encrypted(
        &mut self,
        io: &Io,
        socket: &File,
        context: &mut Context<'_>,
    ) -> Result<(), Broken> {
        loop {
            let Some(sent) = self.has_sent(io, context)? else {
                return Ok(());
            };
            let Some(records) = &mut self.records else {
                return Ok(());
            };
            records.sent(sent);
            while records.is_sent() {
                let encrypt = |parts: &[Buffer<'_>]| records.encrypt(parts);
                let Some(encrypted) = self.sender.start(&mut self.slots, encrypt) else {
                    break;
                };
                match encrypted.map_err(Failure::Broken)? {
                    0 => break,
                    count => self.sender.sent(&mut self.slots, count),
                }
            }
            let Some(part) = records.outgoing().map_err(Failure::Broken)? else {
                return Ok(());
            };
            let parts = &[part];
            self.sending = Some(io.start(Operation::Send { socket, parts }));
        }
    }

    fn receive_encrypted(
        &mut self,
        io: &Io,
        socket: &File,
        shared: &Shared,
        context: &mut Context<'_>,
    ) -> Result<(), Broken> {
        loop {
            let Some(received) = self.has_received(io, context)? else {
                return Ok(());
            };
            let (Some(records), Some(receiver)) = (&mut self.records, &mut self.receiver) else {
                return Ok(());
            };
            let slots = &mut self.slots;
            let changes = shared.unflushed.changes();
            let take = |bytes: &[u8]| go_on(receiver.take(slots, changes, bytes));
            if !records.received(received, take)? {
                return Err(Broken::Lost(
                    "receiving: the server has ended it".to_owned(),
                ));
            }
            if self.slots.waiting() == 0 {
                return Ok(());
            }
            let Some(part) = records.incoming() else {
                return Ok(());
            };
            self.receiving = Some(io.start(Operation::Receive {
                socket,
                parts: &[part],
                whole: false,
            }));
        }
    }

    /// How many bytes have been sent; `None` while some are being sent.
    fn has_sent(&mut self, io: &Io, context: &mut Context<'_>) -> Result<Option<usize>, Broken> {
        self.transferred("sending", |state| &mut state.sending, io, context)
    }

    /// How many bytes have been received; `None` while some are awaited.
    fn has_received(
        &mut self,
        io: &Io,
        context: &mut Context<'_>,
    ) -> Result<Option<usize>, Broken> {
        self.transferred("receiving", |state| &mut state.receiving, io, context)
    }

    /// How many bytes an operation has moved, 0 if there is none; `None` while it is under way.
    fn transferred(
        &mut self,
        what: &str,
        operation: impl Fn(&mut Self) -> &mut Option<Ticket>,
        io: &Io,
        context: &mut Context<'_>,
    ) -> Result<Option<usize>, Broken> {
        let Some(ticket) = *operation(self) else {
            return Ok(Some(0));
        };
        let Poll::Ready(result) = io.poll(ticket, context) else {
            return Ok(None);
        };
        *operation(self) = None;
        let count = bytes(what, result)?;
        self.progress = Instant::now();
        Ok(Some(count))
    }
}

/// What a stream that was followed means for the connection.
fn go_on(progress: Result<Progress, Malformed>) -> Result<(), Broken> {
    match progress {
        Ok(Progress::More) => Ok(()),
        Ok(Progress::ShutDown) => Err(Broken::Lost("the server is shutting down".to_owned())),
        Err(Malformed(what)) => {
            let why = format!("it breaks the protocol's rules: {what}");
            Err(Broken::Unusable(ErrorKind::Internal, why))
        }
    }
}

/// How much an operation has done; nothing if it is to be started again.
fn bytes(what: &str, result: io::Result<u32>) -> Result<usize, Broken> {
    /// An abort of the driver's command cancels what it waits for: include/uapi/asm-generic/errno.h.
    const ECANCELED: i32 = 125;
    match result {
        Ok(0) => Err(Broken::Lost(format!("{what}: the server has ended it"))),
        Ok(count) => Ok(count as usize),
        Err(error) if error.raw_os_error() == Some(ECANCELED) => Ok(0),
        Err(error) => match error.kind() {
            io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock => Ok(0),
            // The server's host does not answer: nothing is known of the server.
            io::ErrorKind::TimedOut => Err(Broken::Unusable(
                ErrorKind::TimedOut,
                format!("{what}: {error}"),
            )),
            _ => Err(Broken::Lost(format!("{what}: {error}"))),
        },
    }
}

impl From<Failure> for Broken {
    /// What cannot be decrypted says nothing of what the server still does.
    fn from(failure: Failure) -> Self {
        let why = match failure {
            Failure::Refused(error) => tls::refused(&error).to_string(),
            Failure::Broken(error) => format!("TLS: {error}"),
        };
        Broken::Unusable(ErrorKind::Internal, why)
    }
}
