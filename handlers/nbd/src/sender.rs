//! The requests that wait to be sent, in the order in which they were made.

use std::collections::VecDeque;
use std::io;

use tcmu_handler::{Buffer, Io, OwnedBuffer};

use crate::request::{Command, HEADER_LEN};
use crate::slots::Slots;

/// How far apart the headers stand in memory, in bytes.
const STRIDE: usize = 32;
/// How many headers one piece of memory has.
const PER_PIECE: usize = 128;
/// How many parts one message has at the most: a header and data for each of half as many requests.
pub(crate) const MAX_PARTS: usize = 64;

/// The queue, and the memory for the headers: one place for each slot.
#[derive(Debug, Default)]
pub(crate) struct Sender {
    queue: VecDeque<u32>,
    /// How many bytes of the first in the queue have been sent.
    sent: usize,
    headers: Vec<OwnedBuffer>,
}

impl Sender {
    /// Queues the request in a slot.
    pub(crate) fn push(&mut self, io: &Io, slots: &Slots, slot: u32) -> io::Result<()> {
        while self.headers.len() <= slot as usize / PER_PIECE {
            self.headers.push(io.allocate(STRIDE * PER_PIECE)?);
        }
        let header = slots.request(slot).header(slots.cookie(slot));
        let piece = &self.headers[slot as usize / PER_PIECE];
        piece.view().copy_from(place(slot), &header);
        self.queue.push_back(slot);
        Ok(())
    }

    /// Forgets what is queued.
    pub(crate) fn clear(&mut self) {
        self.queue.clear();
        self.sent = 0;
    }

    /// Has `send` start sending what is queued, as much as fits into one message; `None` if nothing
    /// is.
    pub(crate) fn start<T>(
        &self,
        slots: &mut Slots,
        send: impl FnOnce(&[Buffer<'_>]) -> T,
    ) -> Option<T> {
        let first = self.header(*self.queue.front()?)?;
        let taken = self.queue.len().min(MAX_PARTS / 2);
        for slot in self.queue.iter().take(taken) {
            slots.sending(*slot);
        }
        let mut parts = [first; MAX_PARTS];
        let mut count = 0;
        let mut skip = self.sent;
        for slot in self.queue.iter().take(taken) {
            let data = match slots.request(*slot).command {
                Command::Write => slots.buffer(*slot),
                _ => None,
            };
            for part in self.header(*slot).into_iter().chain(data) {
                match part.slice(skip.min(part.len())..part.len()) {
                    Ok(rest) if !rest.is_empty() => {
                        parts[count] = rest;
                        count += 1;
                    }
                    _ => {}
                }
                skip = skip.saturating_sub(part.len());
            }
        }
        Some(send(&parts[..count]))
    }

    /// So many bytes have been sent.
    pub(crate) fn sent(&mut self, slots: &mut Slots, count: usize) {
        self.sent += count;
        while let Some(&slot) = self.queue.front() {
            let request = slots.request(slot);
            let len = match request.command {
                Command::Write => HEADER_LEN + request.len as usize,
                _ => HEADER_LEN,
            };
            if self.sent < len {
                return;
            }
            self.sent -= len;
            slots.sent(slot);
            self.queue.pop_front();
        }
    }

    fn header(&self, slot: u32) -> Option<Buffer<'_>> {
        let piece = self.headers.get(slot as usize / PER_PIECE)?;
        piece
            .view()
            .slice(place(slot)..place(slot) + HEADER_LEN)
            .ok()
    }
}

/// Where in its piece of memory a slot's header stands.
fn place(slot: u32) -> usize {
    slot as usize % PER_PIECE * STRIDE
}
