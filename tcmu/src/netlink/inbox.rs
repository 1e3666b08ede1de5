//! From datagrams to events.

use std::collections::VecDeque;
use std::io;

use rustix::io::Errno;

use super::NetlinkError;
use super::error::failed;
use super::message::{self, Event};

/// Longer than any message of the kernel: it builds them in one page (`NLMSG_GOODSIZE`).
const DATAGRAM: usize = 8 << 10;

/// The events that were received and not handed out yet.
#[derive(Debug)]
pub(super) struct Inbox {
    family: u16,
    buffer: Vec<u8>,
    events: VecDeque<Event>,
    overflowed: bool,
}

impl Inbox {
    pub(super) fn new(family: u16) -> Self {
        Self {
            family,
            buffer: vec![0; DATAGRAM],
            events: VecDeque::new(),
            overflowed: false,
        }
    }

    /// The next event. `receive` fills a buffer and returns the length of the datagram, which
    /// may exceed the buffer's, and the netlink port of its sender.
    pub(super) fn next(
        &mut self,
        mut receive: impl FnMut(&mut [u8]) -> io::Result<(usize, u32)>,
    ) -> Result<Option<Event>, NetlinkError> {
        loop {
            if let Some(event) = self.events.pop_front() {
                return Ok(Some(event));
            }
            let (len, sender) = match receive(&mut self.buffer) {
                Ok(received) => received,
                Err(error) => match error.raw_os_error().map(Errno::from_raw_os_error) {
                    // The kernel goes on to drop events until the queue was empty once, and
                    // does not say so again. So whoever looks for what was lost must do it
                    // after that.
                    Some(Errno::AGAIN) => {
                        let overflowed = std::mem::take(&mut self.overflowed);
                        return Ok(overflowed.then_some(Event::Overflow));
                    }
                    Some(Errno::NOBUFS) => {
                        self.overflowed = true;
                        continue;
                    }
                    Some(Errno::INTR) => continue,
                    _ => return Err(failed("receive netlink events")(error)),
                },
            };
            // Port 0 is the kernel. Privileged processes can send to the group as well.
            if sender != 0 {
                continue;
            }
            let datagram = self.buffer.get(..len).ok_or_else(|| {
                NetlinkError::Malformed(format!("{len} bytes are more than {DATAGRAM}"))
            })?;
            let (family, events) = (self.family, &mut self.events);
            message::for_each_message(datagram, |kind, _, payload| {
                if kind == family {
                    events.extend(message::event(payload)?);
                }
                Ok(())
            })?;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::message::samples;
    use super::*;

    const FAMILY: u16 = 30;

    enum Step {
        Datagram(Vec<u8>),
        From(u32, Vec<u8>),
        Error(Errno),
    }

    /// Plays `steps` and then an empty queue, and collects what comes out until it is empty.
    fn play(steps: Vec<Step>) -> Vec<Result<Event, NetlinkError>> {
        let mut inbox = Inbox::new(FAMILY);
        let mut steps = steps.into_iter();
        let mut out = Vec::new();
        loop {
            let next = inbox.next(|buffer| {
                let (sender, datagram) = match steps.next() {
                    None => return Err(Errno::AGAIN.into()),
                    Some(Step::Error(errno)) => return Err(errno.into()),
                    Some(Step::Datagram(datagram)) => (0, datagram),
                    Some(Step::From(sender, datagram)) => (sender, datagram),
                };
                let taken = datagram.len().min(buffer.len());
                buffer[..taken].copy_from_slice(&datagram[..taken]);
                Ok((datagram.len(), sender))
            });
            match next {
                Ok(None) => return out,
                Ok(Some(event)) => out.push(Ok(event)),
                Err(error) => out.push(Err(error)),
            }
        }
    }

    fn is_added(event: &Result<Event, NetlinkError>) -> bool {
        matches!(event, Ok(Event::Added { minor: 3, .. }))
    }

    #[test]
    fn hands_out_every_message_of_a_datagram() {
        let mut datagram = samples::added(FAMILY);
        datagram.extend(samples::message(FAMILY + 1, b"anything"));
        datagram.extend(samples::message(2, &[0; 20]));
        datagram.extend(samples::added(FAMILY));
        let out = play(vec![Step::Datagram(datagram)]);
        assert_eq!(out.len(), 2);
        assert!(out.iter().all(is_added));
    }

    #[test]
    fn only_the_kernel_is_believed() {
        let out = play(vec![Step::From(4711, samples::added(FAMILY))]);
        assert!(out.is_empty());
    }

    #[test]
    fn overflow_comes_once_and_after_the_queue_was_emptied() {
        let added = || Step::Datagram(samples::added(FAMILY));
        let out = play(vec![added(), Step::Error(Errno::NOBUFS), added(), added()]);
        assert_eq!(out.len(), 4);
        assert!(out[..3].iter().all(is_added));
        assert!(matches!(out[3], Ok(Event::Overflow)));
    }

    #[test]
    fn goes_on_after_a_broken_message() {
        let added = || Step::Datagram(samples::added(FAMILY));
        let mut half = samples::added(FAMILY);
        half.extend([0xff; 5]);
        let out = play(vec![
            Step::Datagram(half),
            Step::Datagram(vec![0; DATAGRAM + 1]),
            Step::Error(Errno::INTR),
            added(),
        ]);
        // The datagram's good part is not lost.
        assert_eq!(out.iter().filter(|event| is_added(event)).count(), 2);
        let broken =
            |event: &&Result<Event, NetlinkError>| matches!(event, Err(NetlinkError::Malformed(_)));
        assert_eq!(out.iter().filter(broken).count(), 2);
    }

    #[test]
    fn other_errors_are_told() {
        let out = play(vec![Step::Error(Errno::NOMEM)]);
        assert!(matches!(&out[..], [Err(NetlinkError::Io { .. })]));
    }
}
