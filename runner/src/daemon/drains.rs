//! LUNs whose images are left alone for a while, for a snapshot or other maintenance.
//!
//! Whoever asks for it gets one end of a socket, and the daemon keeps the other. When either is closed
//! the LUNs are served again, so that no LUN stays held when the caller dies, and the caller sees when
//! its time is over, or none of the LUNs is there any more.

use std::collections::HashSet;
use std::os::unix::net::UnixStream;
use std::time::Instant;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tcmu_handler::{Error, ErrorKind};

use super::Daemon;
use super::board::{EventKind, LunState};
use super::device::{Device, Phase};
use super::petition::DrainRequest;
use super::report::Report;
use crate::reactor::{LunId, Message};

/// The drains that there are.
#[derive(Default)]
pub(super) struct Drains {
    list: Vec<Drain>,
    /// How many there were.
    begun: u64,
}

struct Drain {
    number: u64,
    /// The LUNs, and which of the daemon's openings are theirs.
    luns: Vec<(LunId, u64)>,
    /// Those that are not held yet.
    waiting: HashSet<LunId>,
    until: Instant,
    /// The daemon's end.
    end: UnixStream,
    /// Who waits for the LUNs to be held, and the end that is the caller's then.
    caller: Option<(DrainRequest, UnixStream)>,
}

impl Drain {
    /// Whether nobody wants it any more.
    fn is_released(&self) -> bool {
        let mut watched = [PollFd::new(&self.end, PollFlags::empty())];
        let now = Timespec::default();
        let released = PollFlags::HUP | PollFlags::ERR;
        poll(&mut watched, Some(&now)).is_ok() && watched[0].revents().intersects(released)
    }
}

impl Drains {
    /// When the first is over, whoever wants it.
    pub(super) fn next_end(&self) -> Option<Instant> {
        self.list.iter().map(|drain| drain.until).min()
    }

    /// What to watch for callers that have gone.
    pub(super) fn watched(&self) -> impl Iterator<Item = PollFd<'_>> {
        let ends = self.list.iter().map(|drain| &drain.end);
        ends.map(|end| PollFd::new(end, PollFlags::empty()))
    }

    /// The state of the LUN with this id and opening, which is served.
    pub(super) fn state(&self, id: LunId, opening: u64) -> LunState {
        let mut drains = self.list.iter();
        match drains.find(|drain| drain.luns.contains(&(id, opening))) {
            None => LunState::Serving,
            Some(drain) if drain.waiting.contains(&id) => LunState::Draining,
            Some(_) => LunState::Held,
        }
    }
}

impl Daemon {
    /// Begins to drain LUNs.
    pub(super) fn drain(&mut self, request: DrainRequest) {
        let begun = self.drainable(&request.luns).and_then(|luns| {
            let ends = UnixStream::pair();
            let ends = ends.map_err(|error| Error::os("making a socket", error))?;
            Ok((luns, ends))
        });
        let (luns, (end, theirs)) = match begun {
            Ok(begun) => begun,
            Err(error) => return (request.done)(Err(error)),
        };
        self.drains.begun += 1;
        let number = self.drains.begun;
        for (id, _) in &luns {
            let Some(device) = self.devices.get(id) else {
                continue;
            };
            tracing::info!(lun = device.name.name, limit = ?request.limit, "draining");
            self.board.turned(*id, LunState::Draining, "");
            let (id, reporter) = (*id, self.reporter.clone());
            let done = Box::new(move |result| reporter.send(Report::Held { number, id, result }));
            self.reactors[device.reactor].send(Message::Hold { id, done });
        }
        self.drains.list.push(Drain {
            number,
            waiting: luns.iter().map(|(id, _)| *id).collect(),
            luns,
            until: Instant::now() + request.limit,
            end,
            caller: Some((request, theirs)),
        });
    }

    /// The LUNs of a request, and their openings, if they can be drained.
    fn drainable(&self, wanted: &[LunId]) -> Result<Vec<(LunId, u64)>, Error> {
        let is_served =
            |device: &Device| matches!(device.phase, Phase::Serving) && device.offline.is_none();
        let mut luns = Vec::new();
        if wanted.is_empty() {
            let served = self.devices.iter().filter(|(_, device)| is_served(device));
            luns.extend(served.map(|(id, device)| (*id, device.opening)));
        }
        for id in wanted {
            match self.devices.get(id) {
                Some(device) if is_served(device) => luns.push((*id, device.opening)),
                _ => {
                    let why = format!("the LUN with the id {id} is not served");
                    return Err(Error::new(ErrorKind::NotFound, why));
                }
            }
        }
        luns.sort_unstable();
        luns.dedup();
        if luns.is_empty() {
            return Err(Error::new(ErrorKind::NotFound, "no LUN is served"));
        }
        let is_free =
            |(id, opening): &&(LunId, u64)| self.drains.state(*id, *opening) == LunState::Serving;
        match luns.iter().find(|lun| !is_free(lun)) {
            Some((id, _)) => {
                let name = self.lun_name(*id);
                let why = format!("{name} is being drained or held for somebody else already");
                Err(Error::new(ErrorKind::Busy, why))
            }
            None => Ok(luns),
        }
    }

    fn lun_name(&self, id: LunId) -> &str {
        let device = self.devices.get(&id);
        device.map_or("a LUN that is gone", |device| &device.name.name)
    }

    /// A LUN has nothing in flight and all is durable, or that could not be.
    pub(super) fn held(&mut self, number: u64, id: LunId, result: Result<(), Error>) {
        let Some(place) = self.place(number) else {
            return;
        };
        if let Err(error) = result {
            let name = self.lun_name(id);
            let why = format!("{name} could not be drained: {error}");
            return self.end_drain(place, &why);
        }
        self.board.turned(id, LunState::Held, "");
        let name = self.lun_name(id);
        tracing::info!(lun = name, "held: nothing is in flight, and all is durable");
        self.board.tell(EventKind::Held, name, "");
        let drain = &mut self.drains.list[place];
        drain.waiting.remove(&id);
        if drain.waiting.is_empty()
            && let Some((request, theirs)) = drain.caller.take()
        {
            let luns = drain.luns.iter().map(|(id, _)| *id).collect();
            (request.done)(Ok((theirs, luns)));
        }
    }

    /// Whether a LUN is still there: its number may be that of another by now.
    fn is_served(&self, (id, opening): &(LunId, u64)) -> bool {
        let device = self.devices.get(id);
        device.is_some_and(|device| {
            device.opening == *opening && matches!(device.phase, Phase::Serving)
        })
    }

    fn place(&self, number: u64) -> Option<usize> {
        let mut drains = self.drains.list.iter();
        drains.position(|drain| drain.number == number)
    }

    /// Serves the LUNs again that nobody holds any more, or that were held for long enough.
    pub(super) fn end_drains(&mut self) {
        let now = Instant::now();
        let mut place = 0;
        while let Some(drain) = self.drains.list.get(place) {
            if drain.until <= now {
                let mut why = "the time limit is over".to_owned();
                if !drain.waiting.is_empty() {
                    let names: Vec<&str> =
                        drain.waiting.iter().map(|id| self.lun_name(*id)).collect();
                    why = format!(
                        "the time limit is over, and commands are still in flight on {}",
                        names.join(", ")
                    );
                }
                self.end_drain(place, &why);
            } else if drain.is_released() {
                self.end_drain(place, "released");
            } else if !drain.luns.iter().any(|lun| self.is_served(lun)) {
                self.end_drain(place, "it is gone");
            } else {
                place += 1;
            }
        }
    }

    fn end_drain(&mut self, place: usize, why: &str) {
        let drain = self.drains.list.remove(place);
        for lun @ (id, _) in &drain.luns {
            let Some(device) = self.devices.get(id).filter(|_| self.is_served(lun)) else {
                continue;
            };
            self.reactors[device.reactor].send(Message::Resume { id: *id });
            self.board.turned(*id, LunState::Serving, device.trouble());
            tracing::info!(lun = device.name.name, why, "served again");
            self.board.tell(EventKind::Resumed, &device.name.name, why);
        }
        if let Some((request, _)) = drain.caller {
            (request.done)(Err(Error::new(ErrorKind::Busy, why.to_owned())));
        }
    }
}
