//! What is sent to the kernel, one request at a time, each with its acknowledgement.

use std::cell::Cell;
use std::fmt::Debug;
use std::io;

use netlink_packet_core::{
    DecodeError, Emitable, ErrorBuffer, NLM_F_ACK, NLM_F_REQUEST, NLMSG_ERROR, NetlinkHeader,
    NetlinkMessage, NetlinkPayload, NlasIterator, parse_string, parse_u16, parse_u32,
};
use netlink_packet_generic::constants::{
    CTRL_ATTR_FAMILY_ID, CTRL_ATTR_MCAST_GROUPS, CTRL_ATTR_MCAST_GRP_ID, CTRL_ATTR_MCAST_GRP_NAME,
    GENL_HDRLEN, GENL_ID_CTRL,
};
use netlink_packet_generic::ctrl::nlas::GenlCtrlAttrs;
use netlink_packet_generic::ctrl::{GenlCtrl, GenlCtrlCmd};
use netlink_packet_generic::{GenlFamily, GenlMessage};
use netlink_sys::protocols::NETLINK_GENERIC;
use netlink_sys::{Socket, SocketAddr};
use rustix::io::Errno;

use super::NetlinkError;
use super::error::failed;
use super::message::{self, CONFIG_GROUP, Command, FAMILY, Ticket, malformed};

/// Longer than any answer: a family's description is well below a page.
const DATAGRAM: usize = 8 << 10;

/// The numbers that the running kernel gave to the family and its multicast group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Family {
    pub(super) id: u16,
    pub(super) config_group: u32,
}

/// A socket for requests.
#[derive(Debug)]
pub(super) struct Requests {
    socket: Socket,
    /// The sequence number of the latest request.
    sequence: Cell<u32>,
}

impl Requests {
    pub(super) fn open() -> Result<Self, NetlinkError> {
        let mut socket = Socket::new(NETLINK_GENERIC).map_err(failed("open a netlink socket"))?;
        socket
            .bind_auto()
            .map_err(failed("bind a netlink socket"))?;
        // Only the kernel may answer.
        socket
            .connect(&SocketAddr::new(0, 0))
            .map_err(failed("connect a netlink socket"))?;
        Ok(Self {
            socket,
            sequence: Cell::new(0),
        })
    }

    /// Asks for the numbers of the family `TCM-USER`.
    pub(super) fn family(&self) -> Result<Family, NetlinkError> {
        let action = "look up the netlink family TCM-USER";
        let question = GenlCtrl {
            cmd: GenlCtrlCmd::GetFamily,
            nlas: vec![GenlCtrlAttrs::FamilyName(FAMILY.to_owned())],
        };
        match self.request(action, GENL_ID_CTRL, NLM_F_REQUEST, question) {
            Ok(answer) => family(&answer),
            Err(NetlinkError::Io { source, .. })
                if source.raw_os_error() == Some(Errno::NOENT.raw_os_error()) =>
            {
                Err(NetlinkError::NotLoaded)
            }
            Err(error) => Err(error),
        }
    }

    /// Announces that events will be answered.
    pub(super) fn announce(&self, family: u16) -> Result<(), NetlinkError> {
        let action = "announce to the kernel that its events will be answered";
        let flags = NLM_F_REQUEST | NLM_F_ACK;
        self.request(action, family, flags, Command::announce())
            .map(drop)
    }

    /// Answers an event.
    pub(super) fn answer(
        &self,
        family: u16,
        ticket: &Ticket,
        status: i32,
    ) -> Result<(), NetlinkError> {
        let command = Command::answer(ticket, status);
        let flags = NLM_F_REQUEST | NLM_F_ACK;
        self.request("answer a netlink event", family, flags, command)
            .map(drop)
    }

    /// Sends a request and waits for its answer, which the kernel has queued before the send
    /// returns. The answer's payload is empty where it is only an acknowledgement.
    fn request<F: GenlFamily + Emitable + Debug>(
        &self,
        action: &'static str,
        family: u16,
        flags: u16,
        payload: F,
    ) -> Result<Vec<u8>, NetlinkError> {
        let sequence = self.sequence.get().wrapping_add(1);
        self.sequence.set(sequence);
        let bytes = serialize(family, flags, sequence, payload);
        self.socket.send(&bytes, 0).map_err(failed(action))?;
        let mut buffer = vec![0; DATAGRAM];
        loop {
            let len = match self.socket.recv(&mut &mut buffer[..], libc::MSG_TRUNC) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                received => received.map_err(failed(action))?,
            };
            let datagram = buffer.get(..len).ok_or_else(|| {
                NetlinkError::Malformed(format!("{len} bytes are more than {DATAGRAM}"))
            })?;
            if let Some(outcome) = outcome(datagram, sequence)? {
                return outcome.map_err(failed(action));
            }
        }
    }
}

fn serialize<F: GenlFamily + Emitable + Debug>(
    family: u16,
    flags: u16,
    sequence: u32,
    payload: F,
) -> Vec<u8> {
    let mut message = GenlMessage::from_payload(payload);
    message.set_resolved_family_id(family);
    let mut header = NetlinkHeader::default();
    header.flags = flags;
    header.sequence_number = sequence;
    let mut message = NetlinkMessage::new(header, NetlinkPayload::from(message));
    message.finalize();
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);
    bytes
}

/// The outcome of the request `sequence`, or `None` where the datagram does not tell it.
fn outcome(datagram: &[u8], sequence: u32) -> Result<Option<io::Result<Vec<u8>>>, NetlinkError> {
    let mut found = None;
    message::for_each_message(datagram, |kind, answered, payload| {
        if answered != sequence || found.is_some() {
            return Ok(());
        }
        found = Some(match kind {
            NLMSG_ERROR => {
                let error = ErrorBuffer::new_checked(payload).map_err(malformed)?;
                match error.code() {
                    None => Ok(Vec::new()),
                    Some(code) => Err(io::Error::from_raw_os_error(
                        code.get().checked_neg().unwrap_or_default(),
                    )),
                }
            }
            _ => Ok(payload.to_vec()),
        });
        Ok(())
    })?;
    Ok(found)
}

/// Reads the controller's description of the family (`ctrl_fill_info` in
/// net/netlink/genetlink.c).
fn family(answer: &[u8]) -> Result<Family, NetlinkError> {
    let attributes = answer.get(GENL_HDRLEN..).unwrap_or_default();
    let mut id = None;
    let mut config_group = None;
    for attribute in NlasIterator::new(attributes) {
        let attribute = attribute.map_err(malformed)?;
        match attribute.kind() {
            CTRL_ATTR_FAMILY_ID => id = Some(parse_u16(attribute.value()).map_err(malformed)?),
            CTRL_ATTR_MCAST_GROUPS => {
                for group in NlasIterator::new(attribute.value()) {
                    let group = group.map_err(malformed)?;
                    let (name, number) = multicast_group(group.value()).map_err(malformed)?;
                    if name == CONFIG_GROUP {
                        config_group = number;
                    }
                }
            }
            _ => {}
        }
    }
    match (id, config_group) {
        (Some(id), Some(config_group)) => Ok(Family { id, config_group }),
        _ => Err(NetlinkError::Malformed(
            "the family TCM-USER has no number or no group \"config\"".to_owned(),
        )),
    }
}

fn multicast_group(attributes: &[u8]) -> Result<(String, Option<u32>), DecodeError> {
    let mut name = String::new();
    let mut number = None;
    for attribute in NlasIterator::new(attributes) {
        let attribute = attribute?;
        match attribute.kind() {
            CTRL_ATTR_MCAST_GRP_NAME => name = parse_string(attribute.value())?,
            CTRL_ATTR_MCAST_GRP_ID => number = Some(parse_u32(attribute.value())?),
            _ => {}
        }
    }
    Ok((name, number))
}

#[cfg(test)]
mod tests {
    use super::super::message::samples::{attributes, message};
    use super::*;
    use proptest::prelude::*;

    fn answer(kind: u16, sequence: u32, payload: &[u8]) -> Vec<u8> {
        let mut bytes = message(kind, payload);
        bytes[8..12].copy_from_slice(&sequence.to_ne_bytes());
        bytes
    }

    fn error(sequence: u32, code: i32) -> Vec<u8> {
        let mut payload = code.to_ne_bytes().to_vec();
        payload.extend([0; 16]);
        answer(NLMSG_ERROR, sequence, &payload)
    }

    #[test]
    fn a_request_is_written_as_the_kernel_reads_it() {
        let bytes = serialize(30, NLM_F_REQUEST | NLM_F_ACK, 5, Command::announce());
        let mut expected = vec![28, 0, 0, 0, 30, 0, 5, 0, 5, 0, 0, 0, 0, 0, 0, 0];
        expected.extend([7, 2, 0, 0]);
        expected.extend([5, 0, 9, 0, 1, 0, 0, 0]);
        assert_eq!(bytes, expected);
    }

    #[test]
    fn tells_acknowledgement_refusal_and_answer_apart() {
        let found = |bytes: &[u8]| outcome(bytes, 9).unwrap();
        assert_eq!(found(&error(9, 0)).unwrap().unwrap(), Vec::<u8>::new());
        assert_eq!(
            found(&error(9, -19)).unwrap().unwrap_err().raw_os_error(),
            Some(19)
        );
        assert_eq!(
            found(&answer(16, 9, b"1234")).unwrap().unwrap(),
            b"1234".to_vec()
        );
        assert!(found(&error(8, 0)).is_none());
        // A hostile code is still an error.
        assert!(found(&error(9, i32::MIN)).unwrap().is_err());
    }

    #[test]
    fn finds_the_family_and_its_group() {
        let group = |name: &[u8], id: u32| {
            attributes(&[
                (CTRL_ATTR_MCAST_GRP_ID, &id.to_ne_bytes()),
                (CTRL_ATTR_MCAST_GRP_NAME, name),
            ])
        };
        let groups = attributes(&[(1, &group(b"other\0", 5)), (2, &group(b"config\0", 6))]);
        let describe = |list: &[(u16, &[u8])]| {
            let mut bytes = vec![1, 2, 0, 0];
            bytes.extend(attributes(list));
            family(&bytes)
        };
        let id = 33u16.to_ne_bytes();
        // Attribute 200 stands for one that a later kernel may add.
        let found = describe(&[
            (CTRL_ATTR_FAMILY_ID, &id),
            (200, b"new"),
            (CTRL_ATTR_MCAST_GROUPS, &groups),
        ]);
        assert_eq!(
            found.unwrap(),
            Family {
                id: 33,
                config_group: 6
            }
        );
        assert!(describe(&[(CTRL_ATTR_FAMILY_ID, &id)]).is_err());
        assert!(family(&[]).is_err());
    }

    proptest! {
        #[test]
        fn any_answer_is_read_without_panic(bytes: Vec<u8>) {
            let _ = outcome(&bytes, 0);
            let _ = family(&bytes);
        }
    }
}
