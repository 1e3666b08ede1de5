//! Operations that wait for others: each runs on a thread of its own.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Waker};
use std::thread;

use rustix::net::{RecvFlags, SendFlags, recv, send};

use super::contents;
use crate::{Buffer, File, Operation, OwnedBuffer};

/// An operation that a thread does.
#[derive(Clone, Debug, Default)]
pub(super) struct Elsewhere(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    result: Option<io::Result<u32>>,
    waker: Option<Waker>,
}

impl Elsewhere {
    /// Starts an operation on a socket, or one that only waits; `None` for all others.
    pub(super) fn start(operation: &Operation<'_>) -> Option<Self> {
        let owned = |parts: &[Buffer<'_>]| parts.iter().map(Buffer::to_owned).collect::<Vec<_>>();
        Some(match *operation {
            Operation::Send { socket, parts } => {
                let (socket, parts) = (Arc::clone(socket), owned(parts));
                Self::run(move || send_all(&socket, &parts))
            }
            Operation::Receive {
                socket,
                parts,
                whole,
            } => {
                let (socket, parts) = (Arc::clone(socket), owned(parts));
                Self::run(move || receive(&socket, &parts, whole))
            }
            Operation::Wait { time } => Self::run(move || {
                thread::sleep(time);
                Ok(0)
            }),
            _ => return None,
        })
    }

    fn run(job: impl FnOnce() -> io::Result<u32> + Send + 'static) -> Self {
        let elsewhere = Self::default();
        let told = elsewhere.clone();
        thread::spawn(move || {
            let result = job();
            let mut state = told.0.lock().unwrap_or_else(PoisonError::into_inner);
            state.result = Some(result);
            if let Some(waker) = state.waker.take() {
                waker.wake();
            }
        });
        elsewhere
    }

    /// Asks for the result, which can be had once.
    pub(super) fn poll(&self, context: &mut Context<'_>) -> Poll<io::Result<u32>> {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match state.result.take() {
            Some(result) => Poll::Ready(result),
            None => {
                state.waker = Some(context.waker().clone());
                Poll::Pending
            }
        }
    }
}

fn send_all(socket: &File, parts: &[OwnedBuffer]) -> io::Result<u32> {
    let bytes: Vec<u8> = parts.iter().flat_map(contents).collect();
    let mut sent = 0;
    while sent < bytes.len() {
        sent += send(socket, &bytes[sent..], SendFlags::NOSIGNAL)?;
    }
    Ok(sent as u32)
}

fn receive(socket: &File, parts: &[OwnedBuffer], whole: bool) -> io::Result<u32> {
    let mut bytes = vec![0; parts.iter().map(|part| part.view().len()).sum()];
    let flags = match whole {
        true => RecvFlags::WAITALL,
        false => RecvFlags::empty(),
    };
    let (count, _) = recv(socket, bytes.as_mut_slice(), flags)?;
    let mut rest = &bytes[..count];
    for part in parts {
        let stored = part.view().copy_from(0, rest);
        rest = &rest[stored..];
    }
    Ok(count as u32)
}
