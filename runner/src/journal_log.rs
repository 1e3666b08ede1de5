//! The log in systemd's journal.
//!
//! A message for people, with everything in it that an event says, and the same again in fields that
//! can be searched for: `journalctl TCMU_LUN=disk0`. (systemd.io, "Native Journal Protocol".)

use std::fmt::{Debug, Write};
use std::io;
use std::os::unix::net::UnixDatagram;

use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::Context;

const SOCKET: &str = "/run/systemd/journal/socket";

/// The longest value in bytes: what is longer is cut, so that an entry always fits into a datagram.
const LONGEST: usize = 8 << 10;

/// The most fields of an entry beside its message.
const MOST_FIELDS: usize = 8;

/// Writes events to the journal. While the journal does not take them they are lost: no reactor waits
/// for it.
#[derive(Debug)]
pub(crate) struct JournalLayer {
    socket: UnixDatagram,
}

impl JournalLayer {
    /// Finds the journal.
    pub(crate) fn connect() -> io::Result<Self> {
        let socket = UnixDatagram::unbound()?;
        socket.connect(SOCKET)?;
        socket.set_nonblocking(true)?;
        Ok(Self { socket })
    }
}

impl<S: Subscriber> Layer<S> for JournalLayer {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let mut entry = Entry::default();
        event.record(&mut entry);
        // There is nobody to tell.
        let _ = self.socket.send(&entry.datagram(*event.metadata().level()));
    }
}

/// What an event says.
#[derive(Default)]
struct Entry {
    message: String,
    fields: Vec<(&'static str, String)>,
}

impl Visit for Entry {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        self.add(field.name(), format!("{value:?}"));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.add(field.name(), value.to_owned());
    }
}

impl Entry {
    fn add(&mut self, name: &'static str, mut value: String) {
        if value.len() > LONGEST {
            value.truncate(value.floor_char_boundary(LONGEST));
        }
        if name == "message" {
            self.message = value;
        } else if self.fields.len() < MOST_FIELDS {
            self.fields.push((name, value));
        }
    }

    fn datagram(&self, level: Level) -> Vec<u8> {
        let mut message = self.message.clone();
        for (number, (name, value)) in self.fields.iter().enumerate() {
            let before = if number == 0 { ": " } else { ", " };
            // Writing to a string cannot fail.
            let _ = write!(message, "{before}{name}={value}");
        }
        // syslog(3)'s levels.
        let priority = match level {
            Level::ERROR => "3",
            Level::WARN => "4",
            Level::INFO => "6",
            Level::DEBUG | Level::TRACE => "7",
        };
        let mut datagram = Vec::new();
        put(&mut datagram, "MESSAGE", &message);
        put(&mut datagram, "PRIORITY", priority);
        put(&mut datagram, "SYSLOG_IDENTIFIER", "tcmu-runner");
        for (name, value) in &self.fields {
            let name = name.replace('.', "_").to_uppercase();
            put(&mut datagram, &format!("TCMU_{name}"), value);
        }
        datagram
    }
}

/// One field, in the form that holds any value.
fn put(datagram: &mut Vec<u8>, name: &str, value: &str) {
    datagram.extend(name.as_bytes());
    datagram.push(b'\n');
    datagram.extend((value.len() as u64).to_le_bytes());
    datagram.extend(value.as_bytes());
    datagram.push(b'\n');
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The fields of a datagram, as the journal reads them.
    fn read(mut datagram: &[u8]) -> Vec<(String, String)> {
        let mut fields = Vec::new();
        while !datagram.is_empty() {
            let end = datagram.iter().position(|&b| b == b'\n').unwrap();
            let (name, rest) = datagram.split_at(end);
            let (length, rest) = rest[1..].split_at(8);
            let length = u64::from_le_bytes(length.try_into().unwrap()) as usize;
            assert_eq!(rest[length], b'\n');
            let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
            fields.push((text(name), text(&rest[..length])));
            datagram = &rest[length + 1..];
        }
        fields
    }

    #[test]
    fn a_message_holds_all_that_the_fields_do() {
        let mut entry = Entry::default();
        entry.add("message", "cannot be opened".to_owned());
        entry.add("lun", "disk0".to_owned());
        entry.add("error", "no\nsuch file".to_owned());
        let pairs = read(&entry.datagram(Level::ERROR));
        let pairs: Vec<_> = pairs
            .iter()
            .map(|(a, b)| (a.as_str(), b.as_str()))
            .collect();
        assert_eq!(
            pairs,
            [
                (
                    "MESSAGE",
                    "cannot be opened: lun=disk0, error=no\nsuch file"
                ),
                ("PRIORITY", "3"),
                ("SYSLOG_IDENTIFIER", "tcmu-runner"),
                ("TCMU_LUN", "disk0"),
                ("TCMU_ERROR", "no\nsuch file"),
            ]
        );
    }

    #[test]
    fn an_entry_fits_into_a_datagram() {
        let mut entry = Entry::default();
        entry.add("message", "ä".repeat(1 << 20));
        for _ in 0..100 {
            entry.add("lun", "x".repeat(1 << 20));
        }
        // net.core.wmem_default is 208 KiB.
        assert!(entry.datagram(Level::INFO).len() < 160 << 10);
    }
}
