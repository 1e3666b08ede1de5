//! A pair of descriptors that behave like a uio device and the kernel behind it.

use std::io::{self, ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

/// One end of the pair. Signals that the other end has not seen yet are merged.
///
/// As with a uio device, every signal is an edge to whoever polls the other end, whether the earlier
/// ones were taken there or not.
#[derive(Debug)]
pub(super) struct Bell {
    own: UnixStream,
    /// The other end's descriptor, to take back signals that it does not take.
    other: UnixStream,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Signal {
    Rung,
    Quiet,
    /// The other end is gone.
    Gone,
}

impl Bell {
    pub(super) fn pair() -> io::Result<(Self, Self)> {
        let (one, two) = UnixStream::pair()?;
        one.set_nonblocking(true)?;
        two.set_nonblocking(true)?;
        let (first, second) = (one.try_clone()?, two.try_clone()?);
        Ok((
            Self {
                own: one,
                other: second,
            },
            Self {
                own: two,
                other: first,
            },
        ))
    }

    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.own.as_fd()
    }

    pub(super) fn ring(&self) -> io::Result<()> {
        // Not to fill the socket, which would swallow the edge.
        take(&self.other)?;
        loop {
            match (&self.own).write(&[1]) {
                Ok(_) => return Ok(()),
                // The other end has thousands of signals to see.
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => return Err(Errno::IO.into()),
            }
        }
    }

    /// Takes all signals.
    pub(super) fn take(&self) -> io::Result<Signal> {
        take(&self.own)
    }

    /// Waits until there is a signal and takes it; `Quiet` if the time is up.
    pub(super) fn wait(&self, timeout: Option<Duration>) -> io::Result<Signal> {
        let deadline = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
        loop {
            let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
            let left = left.and_then(|left| Timespec::try_from(left).ok());
            match poll(&mut [PollFd::new(&self.own, PollFlags::IN)], left.as_ref()) {
                Ok(0) => return Ok(Signal::Quiet),
                Ok(_) => return self.take(),
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}

impl Drop for Bell {
    /// Hangs up, which closing alone would not do while there are two descriptors.
    fn drop(&mut self) {
        // It fails where the other side has hung up already.
        let _ = self.own.shutdown(Shutdown::Both);
    }
}

/// Takes all signals out of one end.
fn take(mut from: &UnixStream) -> io::Result<Signal> {
    let mut signal = Signal::Quiet;
    let mut signals = [0; 4096];
    loop {
        match from.read(&mut signals) {
            Ok(0) if signal == Signal::Quiet => return Ok(Signal::Gone),
            Ok(0) => return Ok(signal),
            Ok(count) => {
                signal = Signal::Rung;
                if count < signals.len() {
                    return Ok(signal);
                }
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(signal),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}
