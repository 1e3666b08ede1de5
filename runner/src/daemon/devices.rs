//! The life of devices: opened, attached, changed, detached.

use std::sync::Arc;
use std::time::Instant;

use tcmu::discovery::{DeviceName, split_dev_config};
use tcmu::netlink::{Change, Delivery, Ticket};
use tcmu_handler::Error;

use super::board::{EventKind, LunState};
use super::device::{Announced, Device, Next, Phase};
use super::enabling::await_enabled;
#[cfg(feature = "kill-points")]
use super::hold_points;
use super::medium::NewMedium;
use super::open::{Inheritance, Taken, guarded};
use super::report::Report;
use super::{BUSY, Daemon, NO_DEVICE, NOT_SUPPORTED, TRY_AGAIN};
use crate::meter::Meter;
use crate::reactor::{Done, LunId, MakeLun, Message, Notice};
use crate::recovery::Verdict;
use crate::registry::Past;

/// How often a LUN whose ring is damaged is given a fresh one before it is left alone.
const RING_RESETS: u32 = 3;

impl Daemon {
    pub(super) fn added(&mut self, id: LunId, name: DeviceName, ticket: Ticket) {
        if self.stopping.is_some() {
            return self.reply(ticket, TRY_AGAIN);
        }
        let Some(device) = self.devices.get_mut(&id) else {
            return self.open_announced(id, name, ticket);
        };
        match device.phase {
            // It was found before it was announced: nobody waited for an answer
            // (`nl_reply_supported`).
            Phase::Attaching if device.name == name && !device.unwanted.is_set() => {
                device.ticket = Some(ticket);
            }
            Phase::Serving if device.name == name => self.reply(ticket, 0),
            // The kernel has given the number away, so the device that had it is gone, which nobody
            // has said: a starting daemon has netlink blocked, or the event was lost.
            _ => {
                tracing::info!(
                    lun = name.name,
                    before = device.name.name,
                    "announced; the device that had its number before is gone"
                );
                device.successor = Some(Announced {
                    name,
                    ticket,
                    since: Instant::now(),
                });
                self.detach(id, Next::Forget);
            }
        }
    }

    fn open_announced(&mut self, id: LunId, name: DeviceName, ticket: Ticket) {
        if self.offline {
            let why = "tcmu-runner --offline takes no new LUNs";
            tracing::warn!(lun = name.name, "refused: {why}");
            self.refusals.note(&name, why);
            return self.reply(ticket, NO_DEVICE);
        }
        let device = Device {
            ticket: Some(ticket),
            ..self.new_device(name)
        };
        self.open(id, device, Inheritance::Judge);
    }

    /// Opens the device that has a number now: the one before it is out of its way.
    pub(super) fn succeed(&mut self, id: LunId, successor: Announced) {
        if self.stopping.is_some() {
            self.reply(successor.ticket, TRY_AGAIN);
        } else {
            self.open_announced(id, successor.name, successor.ticket);
        }
    }

    pub(super) fn removed(&mut self, id: LunId, name: &DeviceName, ticket: Ticket) {
        tracing::info!(lun = name.name, "removed");
        #[cfg(feature = "kill-points")]
        hold_points::pass("removing");
        match self.devices.get_mut(&id) {
            None => {
                self.board.gone(id);
                self.reply(ticket, 0);
            }
            Some(device) => {
                // An earlier question about the same device has nobody waiting any more.
                device.ticket = Some(ticket);
                if matches!(device.phase, Phase::Opening | Phase::Waiting) {
                    // The opening may wait for the backstore's folder, which is locked until this
                    // is answered. What it brings then is dropped.
                    self.opener.tables.remove(name);
                    self.forget(id, 0);
                } else {
                    device.removed = Some(Instant::now());
                    self.detach(id, Next::Forget);
                }
            }
        }
    }

    pub(super) fn reconfigured(&mut self, id: LunId, change: Change, ticket: Ticket) {
        #[cfg(feature = "kill-points")]
        hold_points::pass("reconfiguring");
        if let Change::Config(config) = &change
            && self.is_own_wish(id, config)
        {
            return self.reply(ticket, 0);
        }
        let Some(Device {
            phase: Phase::Serving,
            reactor,
            name,
            opening,
            ..
        }) = self.devices.get(&id)
        else {
            let known = self.devices.contains_key(&id);
            return self.reply(ticket, if known { TRY_AGAIN } else { NO_DEVICE });
        };
        if self.drains.state(id, *opening) != LunState::Serving {
            tracing::warn!(
                lun = name.name,
                "not changed: somebody wants its image to be left alone"
            );
            self.refusals
                .note(name, "somebody wants its image to be left alone");
            return self.reply(ticket, BUSY);
        }
        let reporter = self.reporter.clone();
        let done: Box<dyn FnOnce(EventKind, Ticket) -> Done> = Box::new(move |kind, ticket| {
            Box::new(move |result| {
                reporter.send(Report::Changed {
                    id,
                    kind,
                    ticket,
                    result,
                });
            })
        });
        let message = match change {
            Change::Size(size) => {
                tracing::info!(lun = name.name, size, "resizing");
                Message::Resize {
                    id,
                    size,
                    done: done(EventKind::Resized, ticket),
                }
            }
            Change::WriteCache(enabled) => {
                tracing::info!(lun = name.name, enabled, "switching the write cache");
                Message::SetWriteCache {
                    id,
                    enabled,
                    done: done(EventKind::WriteCache, ticket),
                }
            }
            // rtslib sets everything that it has saved, also what is so already.
            Change::Config(config) if split_dev_config(&config) == name.subtype_and_config() => {
                return self.reply(ticket, 0);
            }
            Change::Config(config) => {
                tracing::warn!(
                    lun = name.name,
                    config,
                    "refused: a LUN gets another image by ChangeMedium (targetcli's changemedium) only"
                );
                let message = format!("another image needs ChangeMedium: {config}");
                self.refusals.note(name, &message);
                self.board
                    .tell(EventKind::ChangeRefused, &name.name, message);
                return self.reply(ticket, NOT_SUPPORTED);
            }
            Change::Unknown => return self.reply(ticket, NOT_SUPPORTED),
        };
        self.reactors[*reactor].send(message);
    }

    /// A device that is to be opened, on the reactor that has the fewest.
    pub(super) fn new_device(&mut self, name: DeviceName) -> Device {
        self.openings += 1;
        Device::new(name, self.openings, self.least_busy_reactor())
    }

    /// Opens a device, and its image if it does not bring one, on another thread, and has a reactor
    /// serve it then.
    pub(super) fn open(&mut self, id: LunId, device: Device, inheritance: Inheritance) {
        tracing::info!(
            lun = device.name.name,
            subtype = device.name.subtype,
            config = device.name.config,
            "opening"
        );
        let (reactor, opening) = (device.reactor, device.opening);
        let (needs_image, resets) = (device.image.is_none() && !self.offline, device.ring_resets);
        let meter = Arc::<Meter>::default();
        self.board
            .opening(id, &device.name, reactor, resets, Arc::clone(&meter));
        let unannounced = device.ticket.is_none().then(|| device.unwanted.clone());
        if unannounced.is_some() {
            self.directory.expect(id);
        }
        self.devices.insert(id, device);
        let (opener, reporter) = (self.opener.clone(), self.reporter.clone());
        let recovered = self.reporter.clone();
        let recovered = Box::new(move || recovered.send(Report::Recovered { id }));
        self.openers.run(Box::new(move || {
            let result = guarded(|| {
                if let Some(unwanted) = unannounced {
                    await_enabled(&opener.sysfs, id, &unwanted)?;
                }
                let taken = opener.take(id, inheritance, meter, recovered)?;
                Ok(Box::new(taken))
            });
            let request = match &result {
                Ok(taken) if taken.verdict == Verdict::Innocent => {
                    Some(taken.device.image_request())
                }
                _ => None,
            };
            reporter.send(Report::Taken {
                id,
                opening,
                result,
            });
            if let Some(request) = request.filter(|_| needs_image) {
                #[cfg(feature = "kill-points")]
                hold_points::pass("image");
                let result = guarded(|| opener.registry.open(&request));
                reporter.send(Report::Opened {
                    id,
                    opening,
                    result,
                });
            }
        }));
    }

    pub(super) fn least_busy_reactor(&self) -> usize {
        let mut load = vec![0usize; self.reactors.len()];
        for device in self.devices.values() {
            load[device.reactor] += 1;
        }
        load.iter()
            .enumerate()
            .min_by_key(|(_, load)| **load)
            .map_or(0, |(reactor, _)| reactor)
    }

    /// Has a device leave its reactor.
    pub(super) fn detach(&mut self, id: LunId, next: Next) {
        let Some(device) = self.devices.get_mut(&id) else {
            return;
        };
        match &mut device.phase {
            Phase::Suspect(_) | Phase::Waiting => self.forget(id, TRY_AGAIN),
            // The image may hang; the device is ours to let go.
            Phase::Opening if device.taken.is_some() => self.forget(id, TRY_AGAIN),
            Phase::Opening | Phase::Attaching => device.unwanted.set(),
            Phase::Leaving { then } => {
                if next == Next::Forget {
                    *then = Next::Forget;
                }
            }
            Phase::Serving => {
                device.phase = Phase::Leaving { then: next };
                self.board.turned(id, LunState::Leaving, "");
                device.since = Instant::now();
                let reporter = self.reporter.clone();
                let done: Done =
                    Box::new(move |result| reporter.send(Report::Detached { id, result }));
                self.reactors[device.reactor].send(Message::Detach { id, done });
            }
        }
    }

    pub(super) fn hear_reports(&mut self) -> anyhow::Result<()> {
        // EAGAIN: the bell was silent.
        let _ = rustix::io::read(&*self.reporter.bell, &mut [0u8; 8]);
        while let Ok(report) = self.reports.try_recv() {
            match report {
                Report::Taken {
                    id,
                    opening,
                    result,
                } => self.taken(id, opening, result),
                Report::Opened {
                    id,
                    opening,
                    result,
                } => self.opened(id, opening, result),
                Report::MediumOpened {
                    id,
                    opening,
                    result,
                } => self.medium_opened(id, opening, result),
                Report::Attached { id, result } => self.attached(id, result),
                Report::Recovered { id } => self.recovered(id),
                Report::Detached { id, result } => self.detached(id, result),
                Report::Changed {
                    id,
                    kind,
                    ticket,
                    result,
                } => self.changed(id, kind, ticket, result),
                Report::Notice(Notice::Gone(id)) => {
                    if let Some(device) = self.devices.get(&id) {
                        tracing::warn!(lun = device.name.name, "the device vanished");
                    }
                    self.detach(id, Next::LookAgain);
                }
                Report::Notice(Notice::Broken(id)) => self.detach(id, Next::Reset),
                Report::Notice(Notice::Stuck { id, stuck }) => {
                    if let Some(device) = self.devices.get_mut(&id) {
                        device.stuck = stuck;
                        self.board.stuck(id, stuck);
                        let state = self.drains.state(id, device.opening);
                        self.board.turned(id, state, device.trouble());
                        let kind = if stuck {
                            EventKind::Stuck
                        } else {
                            EventKind::Unstuck
                        };
                        self.board.tell(kind, &device.name.name, device.trouble());
                    }
                }
                Report::Notice(Notice::Failed) => anyhow::bail!("a reactor failed"),
                Report::Held { number, id, result } => self.held(number, id, result),
                Report::Petition(petition) => self.hear_petition(petition),
            }
        }
        Ok(())
    }

    /// A device is ours, or cannot be opened.
    fn taken(&mut self, id: LunId, opening: u64, result: Result<Box<Taken>, Error>) {
        let (offline, gone) = (self.offline, result.is_err() && self.is_gone(id));
        let Some(device) = self.devices.get_mut(&id) else {
            return;
        };
        if device.opening != opening {
            return; // The number has gone to another device.
        }
        if device.successor.is_some() || device.unwanted.is_set() && result.is_ok() {
            // A successor may need what this has open.
            drop(result);
            return self.forget(id, TRY_AGAIN);
        }
        let Taken {
            device: taken,
            crash_loop,
            verdict,
            in_flight,
        } = match result {
            Ok(taken) => *taken,
            Err(error) if gone && device.ticket.is_none() => {
                tracing::info!(lun = device.name.name, %error, "gone before it could be served");
                return self.forget(id, 0);
            }
            Err(error) => {
                tracing::error!(lun = device.name.name, %error, "cannot be served");
                return self.fail(id, &error);
            }
        };
        if verdict == Verdict::Suspect
            && let Some(crash_loop) = crash_loop
        {
            return self.suspect(id, crash_loop);
        }
        device.crash_loop = crash_loop;
        device.interrupted = in_flight;
        device.request = Some(taken.image_request());
        if let Some(image) = device.image.take() {
            let past = device
                .medium
                .as_ref()
                .map_or(Past::Offline, NewMedium::past);
            return self.attach(id, image(taken, past));
        }
        device.taken = Some(taken);
        if verdict == Verdict::Guilty {
            tracing::error!(
                lun = device.name.name,
                in_flight,
                "tcmu-runner died again and again while this LUN alone was at work on the same \
                 commands: the LUN is offline, and its commands are answered with NOT READY. Repair \
                 its image, then restart tcmu-runner to serve it again, or delete it"
            );
            self.take_offline(id, "it brought tcmu-runner down again and again".to_owned());
        } else if offline {
            self.take_offline(id, "tcmu-runner --offline".to_owned());
        }
    }

    /// Gives a LUN to its reactor.
    pub(super) fn attach(&mut self, id: LunId, make: MakeLun) {
        if let Some(device) = self.devices.get_mut(&id) {
            device.phase = Phase::Attaching;
            device.recovering = device.interrupted > 0;
            let reporter = self.reporter.clone();
            let done: Done = Box::new(move |result| reporter.send(Report::Attached { id, result }));
            self.reactors[device.reactor].send(Message::Attach { id, make, done });
        }
    }

    fn attached(&mut self, id: LunId, result: Result<(), Error>) {
        let Some(device) = self.devices.get_mut(&id) else {
            return;
        };
        match result {
            Ok(()) => {
                device.phase = Phase::Serving;
                device.since = Instant::now();
                self.directory.settle(id);
                if let Some(reason) = &device.offline {
                    tracing::warn!(lun = device.name.name, reason, "offline");
                    self.board.turned(id, LunState::Offline, reason);
                    self.board
                        .tell(EventKind::Offline, &device.name.name, reason);
                } else {
                    tracing::info!(lun = device.name.name, reactor = device.reactor, "serving");
                    self.board.turned(id, LunState::Serving, "");
                    let config = format!("{}/{}", device.name.subtype, device.name.config);
                    self.board
                        .tell(EventKind::Serving, &device.name.name, config);
                }
                if device.unwanted.is_set() {
                    self.detach(id, Next::Forget);
                } else if let Some(ticket) = device.ticket.take() {
                    self.reply(ticket, 0);
                }
                self.medium_changed(id);
                self.come_back(id);
            }
            Err(error) => {
                tracing::error!(lun = device.name.name, %error, "cannot be served");
                self.fail(id, &error);
            }
        }
    }

    pub(super) fn detached(&mut self, id: LunId, result: Result<(), Error>) {
        let Some(device) = self.devices.get(&id) else {
            return;
        };
        if !matches!(device.phase, Phase::Leaving { .. }) {
            // It was about one that had the id before and was given up.
            return;
        }
        if let Err(error) = &result {
            tracing::error!(lun = device.name.name, %error, "closing the image failed; what was not flushed may be lost");
        }
        if matches!(
            device.phase,
            Phase::Leaving {
                then: Next::ComeBack
            }
        ) {
            return self.reopen(id);
        }
        if matches!(
            device.phase,
            Phase::Leaving {
                then: Next::ChangeMedium
            }
        ) {
            return self.open_medium(id);
        }
        let reset = matches!(device.phase, Phase::Leaving { then: Next::Reset });
        let look_again = matches!(
            device.phase,
            Phase::Leaving {
                then: Next::LookAgain
            }
        );
        if !reset {
            if self.stopping.is_none() {
                self.opener.tables.remove(&device.name);
            } else if let Some(crash_loop) = &device.crash_loop {
                crash_loop.acquit();
            }
            let message = result.map_or_else(|error| error.to_string(), |()| String::new());
            self.board
                .tell(EventKind::Closed, &device.name.name, message);
            self.forget(id, 0);
            if look_again && let Ok(device) = self.opener.sysfs.device(id) {
                self.serve_unannounced(device);
            }
            return;
        }
        let Some(device) = self.devices.remove(&id) else {
            return;
        };
        if device.ring_resets >= RING_RESETS {
            tracing::error!(
                lun = device.name.name,
                "the command ring was damaged again; this LUN is not served until tcmu-runner is restarted"
            );
            let message = "the command ring was damaged again";
            self.board.turned(id, LunState::Failed, message);
            self.board
                .tell(EventKind::Failed, &device.name.name, message);
            if let Some(ticket) = device.ticket {
                self.reply(ticket, 0);
            }
        } else {
            tracing::warn!(lun = device.name.name, "resetting the command ring");
            let message = "the command ring was damaged";
            self.board
                .tell(EventKind::RingReset, &device.name.name, message);
            let device = Device {
                ticket: device.ticket,
                ring_resets: device.ring_resets + 1,
                ..self.new_device(device.name)
            };
            self.open(id, device, Inheritance::Refuse);
        }
    }

    /// A LUN that was offline has left its reactor: it is served with its image now.
    fn reopen(&mut self, id: LunId) {
        if let Some(device) = self.devices.remove(&id) {
            let device = Device {
                ticket: device.ticket,
                ring_resets: device.ring_resets,
                image: device.image,
                ..self.new_device(device.name)
            };
            self.open(id, device, Inheritance::GoOn);
        }
    }

    fn changed(&mut self, id: LunId, kind: EventKind, ticket: Ticket, result: Result<(), Error>) {
        let status = match (result, self.devices.get(&id)) {
            (Ok(()), Some(device)) => {
                self.board.tell(kind, &device.name.name, "");
                0
            }
            (Ok(()), None) => 0,
            (Err(error), Some(device)) => {
                tracing::error!(lun = device.name.name, %error, "the change was refused");
                let message = error.to_string();
                self.refusals.note(&device.name, &message);
                self.board
                    .tell(EventKind::ChangeRefused, &device.name.name, message);
                -error.errno()
            }
            (Err(_), None) => NO_DEVICE,
        };
        self.reply(ticket, status);
    }

    /// The device cannot be served. It ends if the kernel waits for that; otherwise it stays without
    /// a server.
    pub(super) fn fail(&mut self, id: LunId, error: &Error) {
        self.medium_is_lost(id, error);
        let stays = self
            .devices
            .get(&id)
            .is_some_and(|device| device.ticket.is_none() && !device.unwanted.is_set())
            && !self.is_gone(id);
        if let Some(device) = self.devices.get(&id) {
            let message = error.to_string();
            if device.ticket.is_some() {
                self.refusals.note(&device.name, &message);
            }
            self.board
                .tell(EventKind::Failed, &device.name.name, message);
        }
        if stays {
            self.directory.settle(id);
            self.devices.remove(&id);
            self.board.turned(id, LunState::Failed, error.to_string());
        } else {
            self.forget(id, -error.errno());
        }
    }

    /// Whether the kernel has no such device any more.
    fn is_gone(&self, id: LunId) -> bool {
        let there = self.opener.sysfs.device(id);
        !self.devices.get(&id).is_some_and(|device| {
            there.is_ok_and(|there| {
                (there.name.hba, &there.name.name) == (device.name.hba, &device.name.name)
            })
        })
    }

    /// The device is not served any more; tells the kernel `status` if it waits.
    pub(super) fn forget(&mut self, id: LunId, status: i32) {
        self.board.gone(id);
        self.directory.settle(id);
        let Some(mut device) = self.devices.remove(&id) else {
            return;
        };
        let (ticket, successor) = (device.ticket.take(), device.successor.take());
        drop(device);
        if let Some(ticket) = ticket {
            self.reply(ticket, status);
        }
        if let Some(successor) = successor {
            self.succeed(id, successor);
        }
    }

    pub(super) fn reply(&self, ticket: Ticket, status: i32) {
        match self.netlink.reply(ticket, status) {
            Ok(Delivery::Accepted | Delivery::NobodyWaited) => {}
            Err(error) => tracing::error!(%error, "the kernel did not take an answer"),
        }
    }

    /// Serves the devices that are there and are not served yet.
    pub(super) fn resync(&mut self) -> std::io::Result<()> {
        for device in self.opener.sysfs.scan()? {
            self.serve_unannounced(device);
        }
        Ok(())
    }

    /// Serves a device that was found, if it is ours and not served yet.
    fn serve_unannounced(&mut self, device: tcmu::discovery::Device) {
        let known = self.devices.contains_key(&device.minor);
        if !known && self.opener.registry.serves(&device.name.subtype) && self.stopping.is_none() {
            let inheritance = if self.offline {
                Inheritance::GoOn
            } else {
                Inheritance::Judge
            };
            let (id, device) = (device.minor, self.new_device(device.name));
            self.open(id, device, inheritance);
        }
    }
}
