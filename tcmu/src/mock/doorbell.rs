//! A pair of descriptors that behave like a uio device and the kernel behind it.

use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

/// One end of the pair. Signals that the other end has not seen yet are merged.
#[derive(Debug)]
pub(super) struct Bell(UnixStream);

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
        Ok((Self(one), Self(two)))
    }

    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }

    pub(super) fn ring(&self) -> io::Result<()> {
        loop {
            match (&self.0).write(&[1]) {
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
        let mut signal = Signal::Quiet;
        let mut signals = [0; 4096];
        loop {
            match (&self.0).read(&mut signals) {
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

    /// Waits until there is a signal and takes it; `Quiet` if the time is up.
    pub(super) fn wait(&self, timeout: Option<Duration>) -> io::Result<Signal> {
        let deadline = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
        loop {
            let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
            let left = left.and_then(|left| Timespec::try_from(left).ok());
            match poll(&mut [PollFd::new(&self.0, PollFlags::IN)], left.as_ref()) {
                Ok(0) => return Ok(Signal::Quiet),
                Ok(_) => return self.take(),
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}
