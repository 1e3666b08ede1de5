//! Images that cannot be opened, of LUNs that initiators use already.
//!
//! A daemon that starts anew may not find an image: a file is gone, a server or a cluster is away.
//! The image is tried again and again, and so long the LUN's commands wait in the kernel. Not for
//! ever, since processes that wait for a disk cannot even be killed: after `offline_after` (see the
//! configuration) the LUN is served without its image, and its commands end with NOT READY. When the image can be opened at last, the LUN comes back.
//!
//! A new LUN whose image cannot be opened is refused instead: whoever creates it is told why.

use std::time::{Duration, Instant};

use tcmu_handler::Error;

use super::Daemon;
use super::board::{EventKind, LunState};
use super::device::{Device, Next, Phase};
use super::open::guarded;
use super::report::Report;
use crate::reactor::LunId;
use crate::registry::{Image, Past, Registry};

/// How soon an image is tried again at first, and at the latest.
const SOON: Duration = Duration::from_millis(250);
const AT_THE_LATEST: Duration = Duration::from_secs(5);

/// An image that cannot be opened.
#[derive(Debug)]
pub(super) struct Trouble {
    since: Instant,
    /// When it is tried again; `None` while it is being tried.
    again: Option<Instant>,
    delay: Duration,
    /// What was wrong the last time.
    reason: String,
}

impl Trouble {
    fn since(since: Instant) -> Self {
        Self {
            since,
            again: None,
            delay: SOON,
            reason: "opening it takes too long".to_owned(),
        }
    }

    /// It has failed at `now`, once more.
    fn failed(&mut self, now: Instant, reason: String) {
        self.again = Some(now + self.delay);
        self.delay = (2 * self.delay).min(AT_THE_LATEST);
        self.reason = reason;
    }
}

impl Device {
    /// When its commands have waited long enough for its image.
    fn offline_due(&self, limit: Duration) -> Option<Instant> {
        let waits = matches!(self.phase, Phase::Opening | Phase::Waiting) && self.taken.is_some();
        let since = self
            .away
            .as_ref()
            .map_or(self.since, |trouble| trouble.since);
        (waits && self.ticket.is_none() && !self.unwanted.is_set()).then(|| since + limit)
    }

    /// When its image is to be tried again.
    fn retry_due(&self) -> Option<Instant> {
        self.away.as_ref()?.again
    }
}

impl Daemon {
    /// The image of a LUN is open, or cannot be opened.
    pub(super) fn opened(&mut self, id: LunId, opening: u64, result: Result<Image, Error>) {
        let Some(device) = self.devices.get_mut(&id) else {
            return;
        };
        if device.opening != opening {
            return; // The number has gone to another device.
        }
        if device.unwanted.is_set() {
            // A successor may need what this has open.
            drop(result);
            return self.forget(id, super::TRY_AGAIN);
        }
        match result {
            Ok(image) => {
                let trouble = device.away.take();
                if let Some(taken) = device.taken.take() {
                    if let Some(trouble) = trouble {
                        let waited = trouble.since.elapsed();
                        tracing::info!(lun = device.name.name, ?waited, "the image is there");
                    }
                    self.attach(id, image(taken, Past::Uneventful));
                } else {
                    device.image = Some(image);
                    self.come_back(id);
                }
            }
            Err(error) if device.ticket.is_some() => {
                let Device { name, .. } = device;
                tracing::error!(lun = name.name, config = name.config, %error, "cannot be opened");
                self.fail(id, &error);
            }
            Err(error) => self.image_is_away(id, &error),
        }
    }

    /// The image of a LUN that is used already cannot be opened.
    fn image_is_away(&mut self, id: LunId, error: &Error) {
        self.medium_is_lost(id, error);
        let limit = self.settings.config().offline_after();
        let Some(device) = self.devices.get_mut(&id) else {
            return;
        };
        let name = &device.name;
        if device.away.is_none() {
            tracing::error!(
                lun = name.name,
                config = name.config,
                %error,
                "cannot be opened; it is tried again, and its commands wait for {limit:?} at the most"
            );
            self.board
                .tell(EventKind::Failed, &name.name, error.to_string());
        } else {
            tracing::debug!(lun = name.name, %error, "still cannot be opened");
        }
        let since = device.since;
        let trouble = device.away.get_or_insert_with(|| Trouble::since(since));
        trouble.failed(Instant::now(), error.to_string());
        if device.offline.is_none() {
            device.phase = Phase::Waiting;
            self.board.turned(id, LunState::Waiting, error.to_string());
        } else {
            self.board.turned(id, LunState::Offline, error.to_string());
        }
    }

    /// When [`tend_images`](Self::tend_images) has something to do.
    pub(super) fn next_image(&self) -> Option<Instant> {
        let limit = self.settings.config().offline_after();
        let due = |device: &Device| [device.offline_due(limit), device.retry_due()];
        self.devices.values().flat_map(due).flatten().min()
    }

    /// Tries images again, and takes LUNs offline whose commands have waited long enough.
    pub(super) fn tend_images(&mut self) {
        let (now, limit) = (Instant::now(), self.settings.config().offline_after());
        let is_due = |due: Option<Instant>| due.is_some_and(|due| due <= now);
        let mut late = Vec::new();
        for (&id, device) in &mut self.devices {
            if is_due(device.offline_due(limit)) {
                late.push(id);
            }
            if is_due(device.retry_due())
                && let (Some(trouble), Some(request)) = (&mut device.away, &device.request)
            {
                trouble.again = None;
                let (opener, reporter) = (self.opener.clone(), self.reporter.clone());
                let (request, opening) = (request.clone(), device.opening);
                self.openers.run(Box::new(move || {
                    let result = guarded(|| opener.registry.open(&request));
                    reporter.send(Report::Opened {
                        id,
                        opening,
                        result,
                    });
                }));
            }
        }
        for id in late {
            self.give_image_up(id);
        }
    }

    /// Commands have waited long enough for an image.
    fn give_image_up(&mut self, id: LunId) {
        let Some(device) = self.devices.get_mut(&id) else {
            return;
        };
        let since = device.since;
        let trouble = device.away.get_or_insert_with(|| Trouble::since(since));
        let reason = trouble.reason.clone();
        tracing::error!(
            lun = device.name.name,
            config = device.name.config,
            reason,
            "the LUN is offline: its commands are answered with NOT READY until its image can be \
             opened, which is tried again and again"
        );
        self.take_offline(id, reason);
    }

    /// Serves a LUN without its image.
    pub(super) fn take_offline(&mut self, id: LunId, reason: String) {
        if let Some(device) = self.devices.get_mut(&id)
            && let Some(taken) = device.taken.take()
        {
            device.offline = Some(reason);
            self.attach(id, Registry::serve_offline(taken));
        }
    }

    /// Serves a LUN that is offline with its image, if that is open by now.
    pub(super) fn come_back(&mut self, id: LunId) {
        if let Some(device) = self.devices.get(&id)
            && matches!(device.phase, Phase::Serving)
            && device.image.is_some()
        {
            tracing::info!(
                lun = device.name.name,
                "the image is there: the LUN comes back"
            );
            self.detach(id, Next::ComeBack);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_is_tried_again_ever_more_rarely() {
        let start = Instant::now();
        let mut trouble = Trouble::since(start);
        let mut waits = Vec::new();
        for _ in 0..7 {
            trouble.failed(start, "away".to_owned());
            waits.push((trouble.again.unwrap() - start).as_millis());
        }
        assert_eq!(waits, [250, 500, 1000, 2000, 4000, 5000, 5000]);
        assert_eq!(trouble.reason, "away");
    }

    #[test]
    fn commands_wait_for_an_image_but_not_for_ever() {
        let limit = Duration::from_secs(20);
        let name = "tcm-user/3/disk/file//x.img".parse().unwrap();
        let mut device = Device::new(name, 1, 0);
        // Without the device there is nothing to answer on.
        assert_eq!(device.offline_due(limit), None);
        assert_eq!(device.retry_due(), None);
        device.away = Some(Trouble::since(device.since));
        device.phase = Phase::Serving;
        assert_eq!(device.offline_due(limit), None);
    }
}
