//! Why the daemon has refused a LUN: the kernel passes on no more than a number.

use std::time::{Duration, SystemTime};

use zbus::block_on;

use super::client::{Client, Event};

/// The refusal is known already; its reason is not worth a long wait.
const PATIENCE: Duration = Duration::from_secs(5);

/// What the daemon has said since then of why it cannot serve a LUN of this name; nothing if it cannot
/// be asked.
pub(crate) fn reason(lun: &str, since: SystemTime) -> Option<String> {
    let client = Client::connect(PATIENCE).ok()?;
    let (events, _) = block_on(client.events_after(0)).ok()?;
    let since = since.duration_since(SystemTime::UNIX_EPOCH).ok()?;
    last_failure(events, lun, since.as_millis())
}

fn last_failure(events: Vec<Event>, lun: &str, since: u128) -> Option<String> {
    let last = events
        .into_iter()
        .rfind(|event| event.kind == "failed" && event.lun == lun)?;
    (u128::from(last.time) >= since).then_some(last.message)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(time: u64, kind: &str, lun: &str, message: &str) -> Event {
        Event {
            sequence: time,
            time,
            kind: kind.to_owned(),
            lun: lun.to_owned(),
            message: message.to_owned(),
        }
    }

    #[test]
    fn it_is_what_was_said_last_of_that_lun() {
        let events = || {
            vec![
                event(10, "failed", "a", "no such file"),
                event(20, "failed", "a", "too small"),
                event(30, "failed", "b", "locked"),
                event(40, "closed", "a", ""),
            ]
        };
        let reason = |lun, since| last_failure(events(), lun, since);
        assert_eq!(reason("a", 15).as_deref(), Some("too small"));
        assert_eq!(reason("b", 30).as_deref(), Some("locked"));
        assert_eq!(reason("a", 25), None, "that was another attempt");
        assert_eq!(reason("c", 0), None);
    }
}
