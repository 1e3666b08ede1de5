//! A disk in memory behind a server that uses every freedom of the protocol: replies out of order, in
//! chunks, with holes; and that ends connections, with or without having done what was asked.

use std::io::Write;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex};

use tcmu_handler::testing::Random;

use super::fake::{Asked, Fake, Peer, Spec};
use crate::protocol::chunk;
use crate::reply::tests::{chunk_bytes, simple_bytes};

/// How a server behaves.
#[derive(Clone, Copy, Debug)]
pub(super) struct Manners {
    pub(super) spec: Spec,
    /// One in so many requests ends the connection.
    pub(super) ends_at: Option<u64>,
}

/// The disk, and how many connections were ended.
#[derive(Debug, Default)]
pub(super) struct Store {
    pub(super) bytes: Mutex<Vec<u8>>,
    pub(super) ended: Mutex<u64>,
}

/// Serves a new disk.
pub(super) fn start(manners: Manners) -> (Fake, Arc<Store>) {
    let store = Arc::new(Store::default());
    store
        .bytes
        .lock()
        .unwrap()
        .resize(manners.spec.size as usize, 0);
    let disk = Arc::clone(&store);
    let fake = Fake::start(move |number, peer| {
        // The connection's end ends the service.
        let _ = serve(number, peer, manners, &disk);
    });
    (fake, store)
}

fn serve(number: usize, mut peer: Peer, manners: Manners, store: &Store) -> Option<()> {
    let mut random = Random::new(number as u64 + 1);
    peer.serve(manners.spec)?;
    let mut held: Vec<Vec<u8>> = Vec::new();
    loop {
        // What has come already is answered in any order.
        let waits = held.len() < 8 && is_readable(&peer.0);
        if !waits && !held.is_empty() {
            let place = random.below(held.len() as u64) as usize;
            let reply = held.swap_remove(place);
            for piece in reply.chunks(1 + random.below(5000) as usize) {
                peer.0.write_all(piece).ok()?;
            }
            continue;
        }
        let asked = peer.request()?;
        if asked.kind == 2 {
            return None;
        }
        if manners.ends_at.is_some_and(|n| random.one_in(n)) {
            if random.one_in(2) {
                execute(&asked, manners.spec.structured, store, &mut random);
            }
            *store.ended.lock().unwrap() += 1;
            // In the middle of a reply, perhaps.
            if let Some(reply) = held.first() {
                let part = random.below(reply.len() as u64) as usize;
                peer.send(&reply[..part]);
            }
            return None;
        }
        held.push(execute(&asked, manners.spec.structured, store, &mut random));
    }
}

/// Whether a request has come, or the connection's end.
fn is_readable(stream: &UnixStream) -> bool {
    use rustix::event::{PollFd, PollFlags, poll};
    let mut fds = [PollFd::new(stream, PollFlags::IN)];
    let at_once = rustix::event::Timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    poll(&mut fds, Some(&at_once)).is_ok_and(|count| count > 0)
}

/// Does a request and returns the reply.
fn execute(asked: &Asked, structured: bool, store: &Store, random: &mut Random) -> Vec<u8> {
    let mut bytes = store.bytes.lock().unwrap();
    let len = asked.len as usize;
    let start = asked.offset as usize;
    let place = start..start + len;
    match asked.kind {
        0 if structured => return chunks(asked, &bytes[place], random),
        0 => return [simple_bytes(0, asked.cookie), bytes[place].to_vec()].concat(),
        1 => bytes[place].copy_from_slice(&asked.data),
        // What was trimmed has zeroes, or what it had.
        4 if random.one_in(2) => bytes[place].fill(0),
        6 => bytes[place].fill(0),
        7 => {
            let mapped = bytes[start] != 0;
            let alike = bytes[place]
                .iter()
                .take_while(|byte| (**byte != 0) == mapped);
            let extent = [1, alike.count() as u32, if mapped { 0 } else { 3 }];
            let payload = extent.map(u32::to_be_bytes).concat();
            return chunk_bytes(1, chunk::BLOCK_STATUS, asked.cookie, &payload);
        }
        _ => {}
    }
    match structured && random.one_in(2) {
        true => chunk_bytes(1, chunk::NONE, asked.cookie, &[]),
        false => simple_bytes(0, asked.cookie),
    }
}

/// A read's reply in chunks, in any order.
fn chunks(asked: &Asked, bytes: &[u8], random: &mut Random) -> Vec<u8> {
    let mut parts = Vec::new();
    let mut at = 0;
    while at < bytes.len() {
        let longest = if random.one_in(3) { 700 } else { 100_000 };
        let len = (1 + random.below(longest) as usize).min(bytes.len() - at);
        parts.push((at, len));
        at += len;
    }
    let mut reply = Vec::new();
    while !parts.is_empty() {
        let (at, len) = parts.swap_remove(random.below(parts.len() as u64) as usize);
        let data = &bytes[at..at + len];
        let offset = (asked.offset + at as u64).to_be_bytes();
        let (kind, content) = match data.iter().all(|byte| *byte == 0) {
            true => (chunk::OFFSET_HOLE, (len as u32).to_be_bytes().to_vec()),
            false => (chunk::OFFSET_DATA, data.to_vec()),
        };
        let last = parts.is_empty() && random.one_in(2);
        let payload = [offset.as_slice(), &content].concat();
        reply.extend(chunk_bytes(last.into(), kind, asked.cookie, &payload));
        if parts.is_empty() && !last {
            reply.extend(chunk_bytes(1, chunk::NONE, asked.cookie, &[]));
        }
    }
    reply
}
