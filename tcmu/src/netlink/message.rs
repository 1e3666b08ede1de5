//! The messages of the family `TCM-USER` (include/uapi/linux/target_core_user.h).

use netlink_packet_core::{
    DecodeError, DefaultNla, Emitable, NetlinkBuffer, NlasIterator, parse_u8, parse_u32, parse_u64,
};
use netlink_packet_generic::constants::GENL_HDRLEN;
use netlink_packet_generic::{GenlFamily, GenlHeader};

use super::NetlinkError;

/// The family's name.
pub(super) const FAMILY: &str = "TCM-USER";
/// The multicast group of all events.
pub(super) const CONFIG_GROUP: &str = "config";
const FAMILY_VERSION: u8 = 2;

// enum tcmu_genl_cmd
const ADDED_DEVICE: u8 = 1;
const REMOVED_DEVICE: u8 = 2;
const RECONFIG_DEVICE: u8 = 3;
const ADDED_DEVICE_DONE: u8 = 4;
const REMOVED_DEVICE_DONE: u8 = 5;
const RECONFIG_DEVICE_DONE: u8 = 6;
const SET_FEATURES: u8 = 7;

// enum tcmu_genl_attr
const DEVICE: u16 = 1;
const MINOR: u16 = 2;
const DEV_CFG: u16 = 4;
const DEV_SIZE: u16 = 5;
const WRITECACHE: u16 = 6;
const CMD_STATUS: u16 = 7;
const DEVICE_ID: u16 = 8;
const SUPP_KERN_CMD_REPLY: u16 = 9;

/// News about a device. `device` is its UIO name, which parses as a
/// [`DeviceName`](crate::discovery::DeviceName), and `minor` the N of its `/dev/uioN`.
///
/// Bytes of a name or config that are not UTF-8 arrive as U+FFFD.
#[derive(Debug, PartialEq, Eq)]
pub enum Event {
    /// A device is being enabled. Its UIO node is there; it becomes usable with the answer.
    Added {
        /// The UIO name.
        device: String,
        /// The UIO minor number.
        minor: u32,
        /// Answers this event.
        ticket: Ticket,
    },
    /// A device is being removed. Its UIO node goes away with the answer.
    Removed {
        /// The UIO name.
        device: String,
        /// The UIO minor number.
        minor: u32,
        /// Answers this event.
        ticket: Ticket,
    },
    /// Somebody wants to change a device. The kernel does so if the answer is 0.
    Reconfigured {
        /// The UIO name, before the change.
        device: String,
        /// The UIO minor number.
        minor: u32,
        /// What is to become of it.
        change: Change,
        /// Answers this event.
        ticket: Ticket,
    },
    /// Events were lost: compare the devices that are there with those that are known.
    ///
    /// It comes after all events that were received before or despite the loss.
    Overflow,
}

/// What is to be changed about a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// The whole config string, `<subtype>/<config>`, without newlines at its end.
    Config(String),
    /// The size in bytes.
    Size(u64),
    /// Whether there is a volatile write cache.
    WriteCache(bool),
    /// Something that this library does not know. Refuse it with EOPNOTSUPP.
    Unknown,
}

/// The right to answer one event, once.
///
/// The kernel loses whoever waits if it is answered with another event's command
/// (`tcmu_genl_cmd_done`), so an answer can only be given with the event's own ticket. To leave
/// an event to another server, drop it.
///
/// A ticket from before [`reset_netlink`](crate::module::Module::reset_netlink) must not be
/// used: by now, the device may wait for the answer to another event.
#[derive(Debug, PartialEq, Eq)]
#[must_use = "the kernel waits for the answer"]
pub struct Ticket {
    done: u8,
    device_id: u32,
}

impl Ticket {
    /// The number by which the kernel knows the device in this interface.
    pub fn device_id(&self) -> u32 {
        self.device_id
    }
}

/// A message to the kernel.
#[derive(Debug)]
pub(super) struct Command {
    command: u8,
    attributes: Vec<DefaultNla>,
}

impl Command {
    /// Announces that events will be answered.
    pub(super) fn announce() -> Self {
        Self {
            command: SET_FEATURES,
            attributes: vec![DefaultNla::new(SUPP_KERN_CMD_REPLY, vec![1])],
        }
    }

    /// Answers an event with 0 or a negative error number.
    pub(super) fn answer(ticket: &Ticket, status: i32) -> Self {
        let attribute = |kind, value: [u8; 4]| DefaultNla::new(kind, value.to_vec());
        Self {
            command: ticket.done,
            attributes: vec![
                attribute(CMD_STATUS, status.to_ne_bytes()),
                attribute(DEVICE_ID, ticket.device_id.to_ne_bytes()),
            ],
        }
    }
}

impl GenlFamily for Command {
    fn family_name() -> &'static str {
        FAMILY
    }

    fn command(&self) -> u8 {
        self.command
    }

    fn version(&self) -> u8 {
        FAMILY_VERSION
    }
}

impl Emitable for Command {
    fn buffer_len(&self) -> usize {
        self.attributes.as_slice().buffer_len()
    }

    fn emit(&self, buffer: &mut [u8]) {
        self.attributes.as_slice().emit(buffer);
    }
}

/// Calls `visit` with the type, the sequence number and the payload of each message in a
/// datagram, until there is no more or one is broken.
pub(super) fn for_each_message(
    mut datagram: &[u8],
    mut visit: impl FnMut(u16, u32, &[u8]) -> Result<(), NetlinkError>,
) -> Result<(), NetlinkError> {
    while !datagram.is_empty() {
        let message = NetlinkBuffer::new_checked(datagram).map_err(malformed)?;
        visit(
            message.message_type(),
            message.sequence_number(),
            message.payload(),
        )?;
        // Each message starts at a multiple of 4; the last one need not be padded.
        let len = (message.length() as usize).next_multiple_of(4);
        datagram = datagram.get(len..).unwrap_or_default();
    }
    Ok(())
}

/// Reads the event in a message of our family, or `None` where it is none.
pub(super) fn event(payload: &[u8]) -> Result<Option<Event>, NetlinkError> {
    let header = GenlHeader::parse(payload).map_err(malformed)?;
    let done = match header.cmd {
        ADDED_DEVICE => ADDED_DEVICE_DONE,
        REMOVED_DEVICE => REMOVED_DEVICE_DONE,
        RECONFIG_DEVICE => RECONFIG_DEVICE_DONE,
        _ => return Ok(None),
    };
    let attributes = Attributes::parse(&payload[GENL_HDRLEN..]).map_err(malformed)?;
    let device = attributes
        .device
        .ok_or_else(|| missing("TCMU_ATTR_DEVICE"))?;
    let minor = attributes.minor.ok_or_else(|| missing("TCMU_ATTR_MINOR"))?;
    let device_id = attributes
        .device_id
        .ok_or_else(|| missing("TCMU_ATTR_DEVICE_ID"))?;
    let ticket = Ticket { done, device_id };
    Ok(Some(match header.cmd {
        ADDED_DEVICE => Event::Added {
            device,
            minor,
            ticket,
        },
        REMOVED_DEVICE => Event::Removed {
            device,
            minor,
            ticket,
        },
        _ => Event::Reconfigured {
            device,
            minor,
            change: attributes.change.unwrap_or(Change::Unknown),
            ticket,
        },
    }))
}

/// The attributes of an event.
#[derive(Default)]
struct Attributes {
    device: Option<String>,
    minor: Option<u32>,
    device_id: Option<u32>,
    change: Option<Change>,
}

impl Attributes {
    fn parse(bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut found = Self::default();
        for attribute in NlasIterator::new(bytes) {
            let attribute = attribute?;
            let value = attribute.value();
            match attribute.kind() {
                DEVICE => found.device = Some(text(value)),
                MINOR => found.minor = Some(parse_u32(value)?),
                DEVICE_ID => found.device_id = Some(parse_u32(value)?),
                DEV_CFG => found.change = Some(Change::Config(text(value))),
                DEV_SIZE => found.change = Some(Change::Size(parse_u64(value)?)),
                WRITECACHE => found.change = Some(Change::WriteCache(parse_u8(value)? != 0)),
                _ => {}
            }
        }
        Ok(found)
    }
}

/// A string ends at its first NUL, and loses the newlines that `echo` leaves in a config.
fn text(value: &[u8]) -> String {
    let value = value.split(|byte| *byte == 0).next().unwrap_or_default();
    let text = String::from_utf8_lossy(value);
    text.trim_end_matches('\n').to_owned()
}

pub(super) fn malformed(error: DecodeError) -> NetlinkError {
    NetlinkError::Malformed(error.to_string())
}

fn missing(attribute: &str) -> NetlinkError {
    NetlinkError::Malformed(format!("{attribute} is missing"))
}

/// Messages as the kernel writes them.
#[cfg(test)]
pub(super) mod samples {
    use super::*;

    pub(in crate::netlink) fn attributes(list: &[(u16, &[u8])]) -> Vec<u8> {
        let list: Vec<_> = list
            .iter()
            .map(|(kind, value)| DefaultNla::new(*kind, value.to_vec()))
            .collect();
        let mut bytes = vec![0; list.as_slice().buffer_len()];
        list.as_slice().emit(&mut bytes);
        bytes
    }

    pub(in crate::netlink) fn message(kind: u16, payload: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0; 16];
        bytes[..4].copy_from_slice(&(16 + payload.len() as u32).to_ne_bytes());
        bytes[4..6].copy_from_slice(&kind.to_ne_bytes());
        bytes.extend_from_slice(payload);
        bytes
    }

    /// The payload of an event about device 7 at minor 3.
    pub(in crate::netlink) fn payload(command: u8, more: &[(u16, &[u8])]) -> Vec<u8> {
        let minor = 3u32.to_ne_bytes();
        let id = 7u32.to_ne_bytes();
        let mut list: Vec<(u16, &[u8])> = vec![
            (DEVICE, b"tcm-user/0/d/file//x\n\0"),
            (MINOR, &minor),
            (DEVICE_ID, &id),
        ];
        list.extend_from_slice(more);
        let mut bytes = vec![command, FAMILY_VERSION, 0, 0];
        bytes.extend(attributes(&list));
        bytes
    }

    pub(in crate::netlink) fn added(family: u16) -> Vec<u8> {
        message(family, &payload(ADDED_DEVICE, &[]))
    }
}

#[cfg(test)]
mod tests {
    use super::samples::*;
    use super::*;
    use proptest::prelude::*;

    const NAME: &str = "tcm-user/0/d/file//x";

    #[test]
    fn reads_added_and_removed() {
        assert_eq!(
            event(&payload(1, &[])).unwrap(),
            Some(Event::Added {
                device: NAME.into(),
                minor: 3,
                ticket: Ticket {
                    done: 4,
                    device_id: 7
                },
            })
        );
        assert_eq!(
            event(&payload(2, &[])).unwrap(),
            Some(Event::Removed {
                device: NAME.into(),
                minor: 3,
                ticket: Ticket {
                    done: 5,
                    device_id: 7
                },
            })
        );
    }

    #[test]
    fn reads_every_change() {
        let size = (5u64 << 40).to_ne_bytes();
        for (attribute, change) in [
            (
                (DEV_CFG, &b"file//y,z\n\0"[..]),
                Change::Config("file//y,z".into()),
            ),
            ((DEV_SIZE, &size[..]), Change::Size(5 << 40)),
            ((WRITECACHE, &[1][..]), Change::WriteCache(true)),
            ((WRITECACHE, &[0][..]), Change::WriteCache(false)),
            ((99, &[0][..]), Change::Unknown),
        ] {
            assert_eq!(
                event(&payload(3, &[attribute])).unwrap(),
                Some(Event::Reconfigured {
                    device: NAME.into(),
                    minor: 3,
                    change,
                    ticket: Ticket {
                        done: 6,
                        device_id: 7
                    },
                })
            );
        }
    }

    #[test]
    fn other_commands_are_no_events() {
        for command in [0, 4, 5, 6, 7, 255] {
            assert_eq!(event(&payload(command, &[])).unwrap(), None);
        }
    }

    #[test]
    fn what_is_missing_or_of_the_wrong_length_is_refused() {
        let minor = 3u32.to_ne_bytes();
        for list in [
            vec![(MINOR, &minor[..]), (DEVICE_ID, &minor[..])],
            vec![(DEVICE, &b"x\0"[..]), (DEVICE_ID, &minor[..])],
            vec![(DEVICE, &b"x\0"[..]), (MINOR, &minor[..])],
            vec![
                (DEVICE, &b"x\0"[..]),
                (MINOR, &minor[..3]),
                (DEVICE_ID, &minor[..]),
            ],
        ] {
            let mut bytes = vec![ADDED_DEVICE, 2, 0, 0];
            bytes.extend(attributes(&list));
            assert!(matches!(event(&bytes), Err(NetlinkError::Malformed(_))));
        }
        assert!(matches!(event(&[1, 2]), Err(NetlinkError::Malformed(_))));
    }

    #[test]
    fn bytes_that_are_not_utf8_stay_visible() {
        assert_eq!(text(b"file//\xff\0rest"), "file//\u{fffd}");
        assert_eq!(text(b""), "");
    }

    #[test]
    fn an_answer_carries_the_status_and_the_device() {
        let Some(Event::Reconfigured { ticket, .. }) = event(&payload(3, &[])).unwrap() else {
            panic!("not a reconfiguration");
        };
        let answer = Command::answer(&ticket, -95);
        assert_eq!((answer.command(), answer.version()), (6, 2));
        let mut bytes = vec![0; answer.buffer_len()];
        answer.emit(&mut bytes);
        assert_eq!(
            bytes,
            attributes(&[(7, &(-95i32).to_ne_bytes()), (8, &7u32.to_ne_bytes()),])
        );
    }

    #[test]
    fn a_message_that_claims_too_little_or_too_much_ends_the_datagram() {
        for claimed in [0u32, 15, 17, u32::MAX] {
            let mut bytes = message(30, &[]);
            bytes[..4].copy_from_slice(&claimed.to_ne_bytes());
            let result = for_each_message(&bytes, |_, _, _| Ok(()));
            assert!(
                matches!(result, Err(NetlinkError::Malformed(_))),
                "{claimed}"
            );
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_panic(bytes: Vec<u8>) {
            let _ = for_each_message(&bytes, |_, _, payload| event(payload).map(|_| ()));
        }

        #[test]
        fn any_attributes_are_read_without_panic(
            command in 0u8..8,
            list in proptest::collection::vec((0u16..12, any::<Vec<u8>>()), 0..12),
            cut in 0usize..64,
        ) {
            let list: Vec<_> = list.iter().map(|(kind, value)| (*kind, &value[..])).collect();
            let mut bytes = payload(command, &list);
            bytes.truncate(bytes.len().saturating_sub(cut));
            let _ = event(&bytes);
        }

        #[test]
        fn any_damage_to_an_event_is_survived(at in 0usize..64, byte: u8) {
            let mut bytes = payload(3, &[(DEV_SIZE, &[1; 8])]);
            let at = at % bytes.len();
            bytes[at] = byte;
            let _ = event(&bytes);
        }
    }
}
