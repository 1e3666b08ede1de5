//! The kernel's news about devices, and our answers: generic netlink family `TCM-USER`.
//!
//! Where a server has announced that it answers ([`Netlink::connect`] does), whoever enables,
//! removes or reconfigures a device sleeps uninterruptibly in the kernel until the answer comes
//! (`tcmu_wait_genl_cmd_reply` in drivers/target/target_core_user.c). So:
//!
//! - Answer every event of a device that is yours, also when you refuse it.
//! - Never answer for a device that is not: all servers hear every event, and the first answer
//!   counts.
//! - Never wait for the backstore's attributes on the thread that answers: reading them may wait
//!   for the answer ([`configfs`](crate::configfs) says when).
//!
//! # Lost events
//! A full receive buffer loses events. The socket asks for `NETLINK_BROADCAST_ERROR`, so that
//! nobody then waits for an answer that cannot come: enabling or reconfiguring a device fails
//! with ENOBUFS, and a removed device goes away without being announced, which its UIO node
//! shows. [`Event::Overflow`] tells to look for such devices.

mod error;
mod inbox;
mod message;
mod requests;

use std::os::fd::{AsFd, BorrowedFd};

use netlink_sys::Socket;
use netlink_sys::protocols::NETLINK_GENERIC;
use rustix::io::Errno;
use rustix::net::sockopt::set_socket_recv_buffer_size_force;

pub use error::NetlinkError;
pub use message::{Change, Event, Ticket};

use error::failed;
use inbox::Inbox;
use requests::Requests;

/// The events in a datagram of the kernel's, as if it had come through a socket for which `TCM-USER`
/// is the family of this number.
///
/// # Errors
/// [`NetlinkError::Malformed`].
#[cfg(feature = "mock")]
pub fn decode(family: u16, datagram: &[u8]) -> Result<Vec<Event>, NetlinkError> {
    let mut events = Vec::new();
    message::for_each_message(datagram, |kind, _, payload| {
        if kind == family {
            events.extend(message::event(payload)?);
        }
        Ok(())
    })?;
    Ok(events)
}

/// Room for thousands of events in bytes. The default loses events when some 50 devices are
/// created at once.
const RECEIVE_BUFFER: usize = 4 << 20;

/// What became of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Delivery {
    /// Whoever waited for the answer goes on with it.
    Accepted,
    /// Nobody waited (any more): the device was enabled before a server announced that it
    /// answers, or has `nl_reply_supported=-1`, or somebody else was faster, or the wait was
    /// ended by [`reset_netlink`](crate::module::Module::reset_netlink).
    NobodyWaited,
}

/// A listener for the events of all TCMU devices.
#[derive(Debug)]
pub struct Netlink {
    events: Socket,
    inbox: Inbox,
    /// A socket of its own, so that acknowledgements never queue up behind events.
    requests: Requests,
    family: u16,
}

impl Netlink {
    /// Starts to listen, and announces to the kernel that events will be answered.
    ///
    /// The announcement holds for all devices that are enabled from then on, whoever serves
    /// them, and outlives this process (`TCMU_ATTR_SUPP_KERN_CMD_REPLY`).
    ///
    /// # Errors
    /// [`NetlinkError::NotLoaded`] without target_core_user, [`NetlinkError::NotPermitted`]
    /// without CAP_NET_ADMIN, and [`NetlinkError::Io`].
    pub fn connect() -> Result<Self, NetlinkError> {
        let requests = Requests::open()?;
        let family = requests.family()?;

        let mut events = Socket::new(NETLINK_GENERIC).map_err(failed("open a netlink socket"))?;
        events
            .bind_auto()
            .map_err(failed("bind a netlink socket"))?;
        events
            .set_non_blocking(true)
            .map_err(failed("make a netlink socket non-blocking"))?;
        set_socket_recv_buffer_size_force(&events, RECEIVE_BUFFER)
            .map_err(|errno| failed("enlarge a netlink socket's receive buffer")(errno.into()))?;
        events
            .set_broadcast_error(true)
            .map_err(failed("ask for delivery errors on a netlink socket"))?;
        // Listen before the kernel is told that we do: it must not wait for an answer to an
        // event that was not received.
        events
            .add_membership(family.config_group)
            .map_err(failed("join the netlink group \"config\""))?;
        requests.announce(family.id)?;

        Ok(Self {
            events,
            inbox: Inbox::new(family.id),
            requests,
            family: family.id,
        })
    }

    /// The next event, or `None` where there is none now. It never waits: poll the descriptor.
    ///
    /// # Errors
    /// [`NetlinkError::Malformed`] where a message was not understood; the next call goes on
    /// with the next message. [`NetlinkError::Io`] where the socket failed.
    pub fn receive(&mut self) -> Result<Option<Event>, NetlinkError> {
        let events = &self.events;
        self.inbox.next(|mut buffer| {
            let (len, sender) = events.recv_from(&mut buffer, libc::MSG_TRUNC)?;
            Ok((len, sender.port_number()))
        })
    }

    /// Answers an event: 0 lets the kernel go on, and a negative error number lets it fail with
    /// that error. The kernel ignores a refusal of [`Event::Removed`].
    ///
    /// `status` ranges from -4095 to 0; anything else would not be taken for an error by the
    /// kernel's callers, and is sent as EIO.
    ///
    /// # Errors
    /// [`NetlinkError::Io`] where the answer could not be delivered.
    pub fn reply(&self, ticket: Ticket, status: i32) -> Result<Delivery, NetlinkError> {
        let status = match status {
            -4095..=0 => status,
            _ => -Errno::IO.raw_os_error(),
        };
        match self.requests.answer(self.family, &ticket, status) {
            Ok(()) => Ok(Delivery::Accepted),
            Err(NetlinkError::Io { source, .. })
                if source.raw_os_error() == Some(Errno::NODEV.raw_os_error()) =>
            {
                Ok(Delivery::NobodyWaited)
            }
            Err(error) => Err(error),
        }
    }
}

impl AsFd for Netlink {
    /// The descriptor that becomes readable when there may be an event.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.events.as_fd()
    }
}
