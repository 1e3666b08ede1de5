//! What the daemon shows of itself: the state of every LUN, and what has happened.
//!
//! The daemon's thread writes; whoever tells people or programs reads (D-Bus today). This is the one
//! place that they look at, so that they all tell the same.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use tcmu::discovery::DeviceName;
use zruntime::{Event as Bell, EventListener};

use crate::meter::{Meter, Reading};
use crate::reactor::LunId;

/// How many events are kept for those who look later.
const KEPT_EVENTS: usize = 1024;

/// Where a LUN stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LunState {
    /// Its image is being opened.
    Opening,
    /// Its image cannot be opened. That is tried again; commands wait in the kernel.
    Waiting,
    /// Commands are executed.
    Serving,
    /// Commands in flight are being finished, for as long as somebody wants its image to be left alone;
    /// later ones wait in the kernel.
    Draining,
    /// Nothing is in flight, and what was written is durable; commands wait in the kernel.
    Held,
    /// Commands are answered with NOT READY.
    Offline,
    /// What is in flight is being finished; later commands wait in the kernel.
    Leaving,
    /// It exists in the kernel and is not served.
    Failed,
}

impl LunState {
    /// All of them.
    pub(crate) const ALL: [Self; 8] = [
        Self::Opening,
        Self::Waiting,
        Self::Serving,
        Self::Draining,
        Self::Held,
        Self::Offline,
        Self::Leaving,
        Self::Failed,
    ];

    /// The state's name in interfaces.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Opening => "opening",
            Self::Waiting => "waiting",
            Self::Serving => "serving",
            Self::Draining => "draining",
            Self::Held => "held",
            Self::Offline => "offline",
            Self::Leaving => "leaving",
            Self::Failed => "failed",
        }
    }
}

/// What holds for the daemon as a whole.
#[derive(Clone, Debug)]
pub(crate) struct Facts {
    /// When the daemon was started.
    pub(crate) started: SystemTime,
    pub(crate) reactors: usize,
    /// How much is logged.
    pub(crate) log_level: String,
    /// From when on a command is logged as slow, if that is logged.
    pub(crate) slow_command: Option<Duration>,
    /// Where the figures are shown; empty if nowhere.
    pub(crate) metrics: String,
}

impl Default for Facts {
    fn default() -> Self {
        Self {
            started: SystemTime::now(),
            reactors: 0,
            log_level: String::new(),
            slow_command: None,
            metrics: String::new(),
        }
    }
}

/// A LUN as it stands.
#[derive(Clone, Debug)]
pub(crate) struct LunStatus {
    pub(crate) id: LunId,
    pub(crate) name: DeviceName,
    pub(crate) state: LunState,
    /// Why it stands there; empty where that needs no words.
    pub(crate) reason: String,
    /// Since when it stands there.
    pub(crate) since: SystemTime,
    /// The number of the reactor that serves it.
    pub(crate) reactor: usize,
    /// How often its ring has been reset because it was damaged.
    pub(crate) ring_resets: u32,
    /// Its image does not answer.
    pub(crate) stuck: bool,
    pub(crate) reading: Reading,
}

/// What kind of thing has happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum EventKind {
    /// A LUN is served from now on.
    Serving,
    /// A LUN cannot be served, or not any more.
    Failed,
    /// A LUN's commands are answered with NOT READY from now on.
    Offline,
    /// A LUN's image does not answer.
    Stuck,
    /// A LUN's image answers again.
    Unstuck,
    /// A LUN is not served any more, as it was asked for.
    Closed,
    /// A LUN has another size.
    Resized,
    /// A LUN has another image.
    MediumChanged,
    /// A LUN's write cache was switched.
    WriteCache,
    /// A change of a LUN was refused.
    ChangeRefused,
    /// A damaged ring is being reset.
    RingReset,
    /// A LUN is held: nothing is in flight, and its image is left alone.
    Held,
    /// A LUN that was being drained or held executes commands again.
    Resumed,
    /// The handlers that other processes registered have changed.
    Handlers,
}

impl EventKind {
    /// The kind's name in interfaces.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Serving => "serving",
            Self::Failed => "failed",
            Self::Offline => "offline",
            Self::Stuck => "stuck",
            Self::Unstuck => "unstuck",
            Self::Closed => "closed",
            Self::Resized => "resized",
            Self::MediumChanged => "medium-changed",
            Self::WriteCache => "write-cache",
            Self::ChangeRefused => "change-refused",
            Self::RingReset => "ring-reset",
            Self::Held => "held",
            Self::Resumed => "resumed",
            Self::Handlers => "handlers",
        }
    }
}

/// Something that has happened.
#[derive(Clone, Debug)]
pub(crate) struct Event {
    /// Counts up from 1 over the daemon's life.
    pub(crate) sequence: u64,
    pub(crate) time: SystemTime,
    pub(crate) kind: EventKind,
    /// The LUN's name; empty where it concerns none.
    pub(crate) lun: String,
    /// In words.
    pub(crate) message: String,
}

/// The daemon's notice board.
#[derive(Default)]
pub(crate) struct Board {
    content: Mutex<Content>,
    bell: Bell,
}

#[derive(Default)]
struct Content {
    luns: BTreeMap<LunId, Entry>,
    events: VecDeque<Event>,
    latest: u64,
    facts: Facts,
}

struct Entry {
    name: DeviceName,
    state: LunState,
    reason: String,
    since: SystemTime,
    reactor: usize,
    ring_resets: u32,
    stuck: bool,
    meter: Arc<Meter>,
}

impl Content {
    fn luns(&self) -> impl Iterator<Item = (LunStatus, &Arc<Meter>)> {
        self.luns.iter().map(|(id, entry)| {
            let status = LunStatus {
                id: *id,
                name: entry.name.clone(),
                state: entry.state,
                reason: entry.reason.clone(),
                since: entry.since,
                reactor: entry.reactor,
                ring_resets: entry.ring_resets,
                stuck: entry.stuck,
                reading: entry.meter.read(),
            };
            (status, &entry.meter)
        })
    }
}

impl Board {
    /// A LUN is being opened.
    pub(crate) fn opening(
        &self,
        id: LunId,
        name: &DeviceName,
        reactor: usize,
        ring_resets: u32,
        meter: Arc<Meter>,
    ) {
        let entry = Entry {
            name: name.clone(),
            state: LunState::Opening,
            reason: String::new(),
            since: SystemTime::now(),
            reactor,
            ring_resets,
            stuck: false,
            meter,
        };
        self.content().luns.insert(id, entry);
    }

    /// A LUN's state has changed.
    pub(crate) fn turned(&self, id: LunId, state: LunState, reason: impl Into<String>) {
        if let Some(entry) = self.content().luns.get_mut(&id) {
            entry.state = state;
            entry.reason = reason.into();
            entry.since = SystemTime::now();
        }
    }

    /// A LUN's image does not answer, or does again.
    pub(super) fn stuck(&self, id: LunId, stuck: bool) {
        if let Some(entry) = self.content().luns.get_mut(&id) {
            entry.stuck = stuck;
        }
    }

    /// A LUN is no longer ours.
    pub(super) fn gone(&self, id: LunId) {
        self.content().luns.remove(&id);
    }

    /// Something has happened.
    pub(super) fn tell(&self, kind: EventKind, lun: &str, message: impl Into<String>) {
        let mut content = self.content();
        content.latest += 1;
        let event = Event {
            sequence: content.latest,
            time: SystemTime::now(),
            kind,
            lun: lun.to_owned(),
            message: message.into(),
        };
        if content.events.len() == KEPT_EVENTS {
            content.events.pop_front();
        }
        content.events.push_back(event);
        drop(content);
        self.bell.notify(usize::MAX);
    }

    /// What holds for the daemon as a whole has changed.
    pub(super) fn change(&self, change: impl FnOnce(&mut Facts)) {
        change(&mut self.content().facts);
    }

    /// What holds for the daemon as a whole.
    pub(crate) fn facts(&self) -> Facts {
        self.content().facts.clone()
    }

    /// All LUNs, in the order of their ids.
    pub(crate) fn luns(&self) -> Vec<LunStatus> {
        self.content().luns().map(|(lun, _)| lun).collect()
    }

    /// The same, and where all their figures can be read.
    pub(crate) fn meters(&self) -> Vec<(LunStatus, Arc<Meter>)> {
        let content = self.content();
        let luns = content.luns();
        luns.map(|(lun, meter)| (lun, Arc::clone(meter))).collect()
    }

    /// The sequence number of the latest event.
    pub(crate) fn latest(&self) -> u64 {
        self.content().latest
    }

    /// The oldest events after `sequence` that are still kept, `most` of them at the most.
    pub(crate) fn events_after(&self, sequence: u64, most: usize) -> Vec<Event> {
        let content = self.content();
        let start = content
            .events
            .partition_point(|event| event.sequence <= sequence);
        content.events.range(start..).take(most).cloned().collect()
    }

    /// Completes with the next event after this call.
    pub(crate) fn next_event(&self) -> EventListener {
        self.bell.listen()
    }

    fn content(&self) -> MutexGuard<'_, Content> {
        self.content.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name() -> DeviceName {
        "tcm-user/3/disk/file//x.img".parse().unwrap()
    }

    #[test]
    fn shows_the_state_and_the_figures_of_the_moment() {
        let board = Board::default();
        let meter = Arc::new(Meter::default());
        board.opening(7, &name(), 1, 2, Arc::clone(&meter));
        assert_eq!(board.luns()[0].state, LunState::Opening);
        meter.opened(4096, 512);
        meter.commands(5, 3);
        board.turned(7, LunState::Failed, "no such file");
        let lun = &board.luns()[0];
        assert_eq!((lun.id, lun.reactor, lun.ring_resets), (7, 1, 2));
        assert_eq!(
            (lun.state, &*lun.reason),
            (LunState::Failed, "no such file")
        );
        assert_eq!(
            lun.reading,
            Reading {
                size: 4096,
                block_size: 512,
                completed: 5,
                in_flight: 3,
                slow: 0,
            }
        );
        // An image can be stuck in any state, and a new one is not.
        board.stuck(7, true);
        board.turned(7, LunState::Draining, "");
        assert!(board.luns()[0].stuck);
        board.opening(7, &name(), 1, 2, meter);
        assert!(!board.luns()[0].stuck);
        board.gone(7);
        board.stuck(7, true);
        assert!(board.luns().is_empty());
        // News of a LUN that is gone is no news.
        board.turned(7, LunState::Serving, "");
        assert!(board.luns().is_empty());
    }

    #[test]
    fn all_states_are_in_the_list() {
        use LunState::{Draining, Failed, Held, Leaving, Offline, Opening, Serving, Waiting};
        for (number, state) in LunState::ALL.into_iter().enumerate() {
            // Whoever adds one sees that it is missing there.
            match state {
                Opening | Waiting | Serving | Draining | Held | Offline | Leaving | Failed => {}
            }
            assert_eq!(state as usize, number);
        }
    }

    #[test]
    fn keeps_the_latest_events_in_order() {
        let board = Board::default();
        assert!(board.events_after(0, 10).is_empty());
        let many = u64::try_from(KEPT_EVENTS).unwrap() + 5;
        for number in 1..=many {
            board.tell(EventKind::Serving, "disk", number.to_string());
        }
        assert_eq!(board.latest(), many);
        let sequences = |after, most| {
            let events = board.events_after(after, most);
            events
                .iter()
                .map(|event| event.sequence)
                .collect::<Vec<_>>()
        };
        assert_eq!(sequences(0, 2), [6, 7]);
        assert_eq!(sequences(8, 2), [9, 10]);
        assert_eq!(sequences(many - 1, 10), [many]);
        assert!(sequences(many, 10).is_empty());
        assert_eq!(board.events_after(0, usize::MAX).len(), KEPT_EVENTS);
    }
}
