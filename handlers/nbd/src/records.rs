//! TLS's records between the requests and the socket.
//!
//! What is sent is encrypted into an outbox, and what is received decrypted out of an inbox: these are
//! copies by nature, and rustls allocates memory for records. Requests' own memory is no longer used
//! once they are encrypted.

use std::io::{self, BufRead, Read, Write};

use rustls::ClientConnection;
use tcmu_handler::{Buffer, Io, OwnedBuffer};

use crate::connect::goodbye;

/// The size of each box in bytes.
const BOX: usize = 256 << 10;
/// How many bytes may wait for the outbox, in records; a bit more than fits with all their headers.
const QUEUED: usize = BOX - (1 << 10);
/// The most that one record holds, in bytes: RFC 8446, section 5.1.
const RECORD: usize = 16 << 10;

/// The encrypted side of a connection.
pub(crate) struct Records {
    client: Box<ClientConnection>,
    /// There are boxes from the first request on.
    boxes: Option<Boxes>,
    /// What of the outbox is to be sent.
    start: usize,
    end: usize,
    /// Bytes that may change at any time are encrypted from here.
    plain: Box<[u8]>,
}

#[derive(Debug)]
struct Boxes {
    inbox: OwnedBuffer,
    outbox: OwnedBuffer,
}

impl Records {
    pub(crate) fn new(client: Box<ClientConnection>) -> Self {
        let mut records = Self {
            client,
            boxes: None,
            start: 0,
            end: 0,
            plain: vec![0; RECORD].into(),
        };
        records.client.set_buffer_limit(Some(QUEUED));
        records
    }

    /// Begins another connection. The kernel has let go of the boxes.
    pub(crate) fn restart(&mut self, client: Box<ClientConnection>) {
        self.client = client;
        self.client.set_buffer_limit(Some(QUEUED));
        (self.start, self.end) = (0, 0);
    }

    /// Sees to it that there are boxes.
    pub(crate) fn prepare(&mut self, io: &Io) -> io::Result<()> {
        if self.boxes.is_none() {
            self.boxes = Some(Boxes {
                inbox: io.allocate(BOX)?,
                outbox: io.allocate(BOX)?,
            });
        }
        Ok(())
    }

    /// Encrypts these parts, one behind the other, as far as there is room; returns how many bytes that
    /// were.
    pub(crate) fn encrypt(&mut self, parts: &[Buffer<'_>]) -> io::Result<usize> {
        let mut taken = 0;
        let mut filled = 0;
        for part in parts {
            let mut at = 0;
            while at < part.len() {
                let copied = part.copy_to(at, &mut self.plain[filled..]);
                at += copied;
                filled += copied;
                if filled == RECORD {
                    let now = self.client.writer().write(&self.plain)?;
                    taken += now;
                    if now < filled {
                        return Ok(taken);
                    }
                    filled = 0;
                }
            }
        }
        taken += self.client.writer().write(&self.plain[..filled])?;
        Ok(taken)
    }

    /// Whether all that is in the outbox has been sent.
    pub(crate) fn is_sent(&self) -> bool {
        self.start == self.end
    }

    /// Whether there is something to send that no request has asked for.
    pub(crate) fn wants_write(&self) -> bool {
        self.client.wants_write()
    }

    /// So many bytes have been sent.
    pub(crate) fn sent(&mut self, count: usize) {
        self.start = (self.start + count).min(self.end);
    }

    /// What is to be sent now.
    pub(crate) fn outgoing(&mut self) -> io::Result<Option<Buffer<'_>>> {
        let Some(boxes) = &self.boxes else {
            return Ok(None);
        };
        if self.start == self.end {
            let mut outbox = Outbox {
                view: boxes.outbox.view(),
                at: 0,
            };
            while self.client.wants_write() && self.client.write_tls(&mut outbox)? > 0 {}
            (self.start, self.end) = (0, outbox.at);
        }
        let unsent = boxes.outbox.view().slice(self.start..self.end);
        Ok(unsent.ok().filter(|unsent| !unsent.is_empty()))
    }

    /// Where the next bytes are to be received.
    pub(crate) fn incoming(&self) -> Option<Buffer<'_>> {
        self.boxes.as_ref().map(|boxes| boxes.inbox.view())
    }

    /// So many bytes were received; what they say goes to `take`, piece by piece. Returns whether more
    /// can come.
    pub(crate) fn received<E: From<Failure>>(
        &mut self,
        count: usize,
        mut take: impl FnMut(&[u8]) -> Result<(), E>,
    ) -> Result<bool, E> {
        let Some(boxes) = &self.boxes else {
            return Ok(true);
        };
        let mut inbox = Inbox {
            view: boxes.inbox.view(),
            at: 0,
            end: count,
        };
        while inbox.at < inbox.end {
            if self.client.read_tls(&mut inbox).map_err(Failure::Broken)? == 0 {
                return Ok(false);
            }
            let state = self.client.process_new_packets();
            state.map_err(Failure::Refused)?;
            loop {
                let mut reader = self.client.reader();
                let len = match reader.fill_buf() {
                    Ok([]) => return Ok(false),
                    Ok(bytes) => {
                        take(bytes)?;
                        bytes.len()
                    }
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                    Err(error) => return Err(Failure::Broken(error).into()),
                };
                reader.consume(len);
            }
        }
        Ok(true)
    }

    /// What ends the connection in order, if nothing is under way that would have to go before.
    pub(crate) fn goodbye(&mut self) -> Option<Vec<u8>> {
        let is_free = self.is_sent() && !self.client.wants_write();
        is_free.then(|| goodbye(Some(&mut self.client)))
    }
}

/// Why records cannot be taken.
#[derive(Debug)]
pub(crate) enum Failure {
    /// They are not what TLS allows.
    Refused(rustls::Error),
    /// Something else failed.
    Broken(io::Error),
}

impl std::fmt::Debug for Records {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Records")
            .field("boxes", &self.boxes)
            .field("outgoing", &(self.start..self.end))
            .finish_non_exhaustive()
    }
}

/// Takes what is written as far as there is room.
struct Outbox<'a> {
    view: Buffer<'a>,
    at: usize,
}

impl Write for Outbox<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let copied = self.view.copy_from(self.at, bytes);
        self.at += copied;
        Ok(copied)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Gives what has been received.
struct Inbox<'a> {
    view: Buffer<'a>,
    at: usize,
    end: usize,
}

impl Read for Inbox<'_> {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        let len = bytes.len().min(self.end - self.at);
        let copied = self.view.copy_to(self.at, &mut bytes[..len]);
        self.at += copied;
        Ok(copied)
    }
}
