//! The turns of a reactor.

use std::cell::RefCell;
use std::collections::HashMap;
use std::io;
use std::mem;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::mpsc::Receiver;
use std::time::Instant;

use tcmu_handler::{Error, ErrorKind, ExternalWork, Io};

use super::clock::Clock;
use super::engine::{Counters, Event, Source, UringEngine, Wait};
use super::lun::{Context, Done, Errand, Lun, Portion, Rest, device_fd};
use super::message::{LunId, Mailer, Message, Notice, OnNotice};
use super::pace::Pace;
use super::ready::{ReadyQueue, TaskId};
use super::tasks::Tasks;
use crate::copy::Directory;
use crate::slow_log::SlowLimit;

/// The bell has the place behind all LUNs.
const BELL: Source = Source {
    place: u32::MAX,
    generation: 0,
};

/// How often tasks that wake themselves are stepped before the turn goes on.
const STEPS_PER_TURN: usize = 16;

/// How much of a LUN's work one turn takes. What is completed is published before the next is fetched,
/// so that the initiator works on the one lot while the reactor works on the other, and no LUN keeps
/// others waiting: transfers that are copies to or from memory keep this thread for as long as they
/// take. The kernel's worker threads (io-wq) could do these, but cost more than they gain: with them,
/// two CPUs needed up to one and a half times as long for transfers of 128 KiB.
const PORTION: Portion = Portion {
    commands: 16,
    bytes: 256 << 10,
};

/// A place for a LUN.
struct Place {
    generation: u32,
    lun: Option<Attached>,
    /// Something happened to the LUN in this turn.
    touched: bool,
}

struct Attached {
    id: LunId,
    lun: Box<dyn Lun>,
    /// The device still exists, as far as is known.
    present: bool,
    /// Who waits for the LUN to be detached.
    leaving: Option<Leaving>,
}

enum Leaving {
    /// Commands are in flight.
    Draining(Done),
    /// The backstore is being closed.
    Closing(Done),
    /// The kernel is asked to let go of the device.
    Unwatching(Done, Result<(), Error>),
}

/// How the closing of backstores ended, by place.
type Closed = Rc<RefCell<Vec<(u32, Result<(), Error>)>>>;

/// A reactor, used by one thread.
pub(super) struct Reactor {
    engine: Rc<UringEngine>,
    io: Io,
    ready: Arc<ReadyQueue>,
    inbox: Receiver<Message>,
    on_notice: OnNotice,
    clock: Rc<Clock>,
    slow_limit: Arc<SlowLimit>,
    /// Where the LUNs meet others, and the way here.
    meeting: Option<(Arc<Directory>, Mailer)>,
    places: Vec<Place>,
    by_id: HashMap<LunId, u32>,
    /// The places that something happened to in this turn.
    touched: Vec<u32>,
    /// The places of those that have more commands than one turn takes; empty between turns.
    again: Vec<u32>,
    errands: Tasks<Errand>,
    /// Left there by errands.
    closed: Closed,
    stop: bool,
    /// Nothing is left to do without another event.
    idle: bool,
    /// The places where the last turn found commands.
    served: Vec<u32>,
    pace: Pace,
    /// An alarm is due, to look how old the commands are.
    alarmed: bool,
    /// Used in every turn, and empty in between.
    events: Vec<Event>,
    tasks: Vec<TaskId>,
}

impl Drop for Reactor {
    fn drop(&mut self) {
        self.engine.submit();
    }
}

impl Reactor {
    /// A reactor on this thread, which must be the one that made the engine and adopted `ready`.
    pub(super) fn new(
        engine: UringEngine,
        ready: Arc<ReadyQueue>,
        inbox: Receiver<Message>,
        on_notice: OnNotice,
    ) -> Self {
        let engine = Rc::new(engine);
        engine.watch(ready.bell(), BELL);
        Self {
            io: Io::new(Rc::clone(&engine) as Rc<dyn tcmu_handler::Engine>),
            engine,
            ready,
            inbox,
            on_notice,
            clock: Rc::new(Clock::new()),
            slow_limit: Arc::default(),
            meeting: None,
            places: Vec::new(),
            by_id: HashMap::new(),
            touched: Vec::new(),
            again: Vec::new(),
            errands: Tasks::new(),
            closed: Rc::default(),
            stop: false,
            idle: false,
            served: Vec::new(),
            pace: Pace::default(),
            alarmed: false,
            events: Vec::new(),
            tasks: Vec::new(),
        }
    }

    /// Lets the LUNs that are attached from now on copy to and from others of `directory`, whose
    /// requests come through `mailer`.
    pub(super) fn meet(&mut self, directory: Arc<Directory>, mailer: Mailer) {
        self.meeting = Some((directory, mailer));
    }

    /// Lets the LUNs that are attached from now on log commands that are slower than this.
    pub(super) fn log_slow(&mut self, limit: Arc<SlowLimit>) {
        self.slow_limit = limit;
    }

    /// Runs until it is told to stop.
    pub(super) fn run(&mut self) -> io::Result<()> {
        while !self.stop {
            self.turn(true)?;
        }
        tracing::debug!(counters = ?self.counters(), "reactor ends");
        Ok(())
    }

    /// One turn. With `wait`, sleeps until there is something to do.
    pub(super) fn turn(&mut self, wait: bool) -> io::Result<()> {
        let mut events = mem::take(&mut self.events);
        let mut tasks = mem::take(&mut self.tasks);
        let wait = match self.pace.rest() {
            _ if !wait || !self.idle => Wait::No,
            Some(rest) if !self.served.is_empty() => Wait::Rest(rest),
            _ => Wait::Event,
        };
        self.engine.turn(wait, &mut events)?;
        self.clock.go_on();
        for event in events.drain(..) {
            self.handle(event, &mut tasks);
        }
        // Those that had commands have more now; their events may not have been collected.
        while let Some(place) = self.served.pop() {
            if matches!(wait, Wait::Rest(_)) {
                self.touch(place);
            }
        }
        let external = self.io.external_work();
        let busy = self.engine.is_busy() || external != ExternalWork::default();
        self.step(&mut tasks);
        // The kernel does in this order what it is given: the initiator goes on with what is done
        // while the next commands' data is copied.
        let done = self.publish();
        let fetched = self.fetch();
        let restless = self.step(&mut tasks);
        self.clock.go_on();
        let outstanding = done + self.publish() + self.settle();
        if fetched > 0 {
            self.pace.learn(fetched, outstanding, busy);
            self.engine.expect_crowd(self.pace.is_crowded());
        }
        self.idle = !restless && self.touched.is_empty();
        (self.events, self.tasks) = (events, tasks);
        Ok(())
    }

    /// How much the engine has done so far.
    pub(super) fn counters(&self) -> Counters {
        self.engine.counters()
    }

    fn handle(&mut self, event: Event, tasks: &mut Vec<TaskId>) {
        match event {
            Event::Ready {
                source: BELL,
                armed,
            } => {
                if !armed {
                    self.engine.watch(self.ready.bell(), BELL);
                }
                self.ready.silence();
                self.ready.take_remote(tasks);
                while let Ok(message) = self.inbox.try_recv() {
                    self.obey(message);
                }
            }
            Event::Ready { source, armed } => {
                let Some(attached) = self.attached(source) else {
                    return;
                };
                if !armed && attached.present {
                    // The file descriptor stays open until its source is unwatched.
                    let device = attached.lun.device().poll_fd();
                    self.engine.watch(device, source);
                }
                self.touch(source.place);
            }
            Event::Gone { source } => {
                if let Some(attached) = self.attached_mut(source)
                    && mem::replace(&mut attached.present, false)
                {
                    let id = attached.id;
                    attached.lun.quiesce();
                    (self.on_notice)(Notice::Gone(id));
                }
            }
            Event::Unwatched { source } => self.remove(source),
            Event::StillWatched { source } => self.engine.unwatch(source),
            Event::Alarm => self.look_at_ages(),
        }
    }

    /// Looks how old the commands are, and again after a while if there are any.
    fn look_at_ages(&mut self) {
        let now = Instant::now();
        self.alarmed = false;
        for place in &mut self.places {
            let Some(attached) = &mut place.lun else {
                continue;
            };
            self.alarmed |= attached.lun.in_flight() > 0;
            if let Some(stuck) = attached.lun.look_at_age(now)
                && attached.present
            {
                let id = attached.id;
                (self.on_notice)(Notice::Stuck { id, stuck });
            }
        }
        if self.alarmed {
            self.engine.alarm();
        }
        self.engine.look_at_ages();
    }

    /// Steps the tasks that were woken, and those that they wake, for a while. Returns whether some
    /// still want to run.
    fn step(&mut self, tasks: &mut Vec<TaskId>) -> bool {
        for _ in 0..STEPS_PER_TURN {
            for task in tasks.drain(..) {
                match task {
                    TaskId::Command { lun, slot } => {
                        let place = self.places.get_mut(lun as usize);
                        if let Some(attached) = place.and_then(|place| place.lun.as_mut()) {
                            attached.lun.step(slot);
                            self.touch(lun);
                        }
                    }
                    TaskId::Background { lun, slot } => {
                        let place = self.places.get_mut(lun as usize);
                        if let Some(attached) = place.and_then(|place| place.lun.as_mut()) {
                            attached.lun.step_background(slot);
                            self.touch(lun);
                        }
                    }
                    TaskId::Watch { lun } => {
                        let place = self.places.get_mut(lun as usize);
                        if let Some(attached) = place.and_then(|place| place.lun.as_mut()) {
                            attached.lun.step_watch();
                        }
                    }
                    TaskId::Control(slot) => self.run_errand(slot),
                }
            }
            ReadyQueue::take_local(tasks);
            if tasks.is_empty() {
                return false;
            }
        }
        true
    }

    /// Fetches the new commands of the LUNs that something happened to. Returns how many.
    fn fetch(&mut self) -> usize {
        let mut sum = 0;
        for &place in &self.touched {
            if let Some(attached) = &mut self.places[place as usize].lun {
                let was_broken = attached.lun.is_broken();
                let (fetched, rest) = attached.lun.fetch(PORTION);
                if rest == Rest::Perhaps {
                    self.again.push(place);
                }
                if attached.lun.is_broken() && !was_broken {
                    (self.on_notice)(Notice::Broken(attached.id));
                }
                if fetched > 0 {
                    self.served.push(place);
                    sum += fetched;
                }
            }
        }
        sum
    }

    /// Publishes what was completed. Returns how many commands those are.
    fn publish(&mut self) -> usize {
        let forgotten = self.engine.has_forgotten() || self.io.external_work().forgotten > 0;
        let mut sum = 0;
        for &place in &self.touched {
            let Place {
                generation, lun, ..
            } = &mut self.places[place as usize];
            let Some(attached) = lun else { continue };
            if let Some(published) = attached.lun.publish(forgotten) {
                sum += published;
                if attached.present {
                    let source = Source {
                        place,
                        generation: *generation,
                    };
                    self.engine.kick(device_fd(&*attached.lun), source);
                }
            }
        }
        sum
    }

    /// Ends the turn: sees to LUNs that are to leave, and to the next turn. Returns how many commands
    /// are in flight.
    fn settle(&mut self) -> usize {
        let mut in_flight = 0;
        for index in 0..self.touched.len() {
            let place = self.touched[index];
            let Place { lun, touched, .. } = &mut self.places[place as usize];
            *touched = false;
            let Some(attached) = lun else { continue };
            let outstanding = attached.lun.in_flight();
            in_flight += outstanding;
            if outstanding == 0 {
                if attached.lun.is_drained() {
                    self.again.push(place);
                }
                self.close_if_leaving(place);
            } else if !mem::replace(&mut self.alarmed, true) {
                self.engine.alarm();
            }
        }
        self.touched.clear();
        while let Some(place) = self.again.pop() {
            self.touch(place);
        }
        for (place, result) in self.closed.take() {
            self.unwatch(place, result);
        }
        in_flight
    }

    /// Does what a message asks for, or starts it.
    pub(super) fn obey(&mut self, message: Message) {
        match message {
            Message::Attach { id, make, done } => done(self.attach(id, make)),
            Message::Detach { id, done } => match self.find(id) {
                Ok(place) => {
                    if let Some(attached) = &mut self.places[place as usize].lun {
                        attached.lun.quiesce();
                        if attached.leaving.is_some() {
                            return done(Err(Error::new(
                                ErrorKind::Busy,
                                "the LUN is being detached already",
                            )));
                        }
                        attached.leaving = Some(Leaving::Draining(done));
                        self.touch(place);
                    }
                }
                Err(error) => done(Err(error)),
            },
            Message::Abandon { id } => self.abandon(id),
            Message::Hold { id, done } => match self.find(id) {
                Ok(place) => {
                    if let Some(attached) = &mut self.places[place as usize].lun {
                        attached.lun.hold(done);
                        self.touch(place);
                    }
                }
                Err(error) => done(Err(error)),
            },
            Message::Resume { id } => {
                if let Ok(place) = self.find(id)
                    && let Some(attached) = &mut self.places[place as usize].lun
                {
                    attached.lun.resume();
                    self.touch(place);
                }
            }
            Message::Resize { id, size, done } => match self.find(id) {
                Ok(place) => {
                    if let Some(attached) = &self.places[place as usize].lun {
                        let errand = attached.lun.resize(size, done);
                        self.start_errand(errand);
                    }
                }
                Err(error) => done(Err(error)),
            },
            Message::SetWriteCache { id, enabled, done } => match self.find(id) {
                Ok(place) => {
                    if let Some(attached) = &self.places[place as usize].lun {
                        let errand = attached.lun.set_write_cache(enabled, done);
                        self.start_errand(errand);
                    }
                }
                Err(error) => done(Err(error)),
            },
            Message::Copy { id, key, copy } => {
                // Dropped, it is answered: the LUN is gone.
                if let Ok(place) = self.find(id)
                    && let Some(attached) = &mut self.places[place as usize].lun
                {
                    attached.lun.serve_copy(key, copy);
                    self.touch(place);
                }
            }
            Message::Ping { done } => done(Ok(())),
            Message::Stop => self.stop = true,
        }
    }

    /// Serves the LUN that `make` makes.
    pub(super) fn attach(
        &mut self,
        id: LunId,
        make: impl FnOnce(Context) -> Result<Box<dyn Lun>, Error>,
    ) -> Result<(), Error> {
        if self.by_id.contains_key(&id) {
            return Err(Error::new(
                ErrorKind::InUse,
                "the device is attached already",
            ));
        }
        let place = match self.places.iter().position(|place| place.lun.is_none()) {
            Some(place) => place as u32,
            None => {
                self.places.push(Place {
                    generation: 0,
                    lun: None,
                    touched: false,
                });
                self.places.len() as u32 - 1
            }
        };
        let context = Context {
            io: self.io.clone(),
            ready: Arc::clone(&self.ready),
            place,
            id,
            clock: Rc::clone(&self.clock),
            slow_limit: Arc::clone(&self.slow_limit),
            meeting: self.meeting.clone(),
        };
        let lun = make(context)?;
        let slot = &mut self.places[place as usize];
        let source = Source {
            place,
            generation: slot.generation,
        };
        self.engine.watch(lun.device().poll_fd(), source);
        slot.lun = Some(Attached {
            id,
            lun,
            present: true,
            leaving: None,
        });
        self.by_id.insert(id, place);
        if let Some(attached) = &mut self.places[place as usize].lun {
            attached.lun.step_watch();
        }
        // Commands may be waiting since before the watch.
        self.touch(place);
        Ok(())
    }

    /// Closes the backstore of a LUN that has nothing in flight and is to leave.
    fn close_if_leaving(&mut self, place: u32) {
        let Some(attached) = &mut self.places[place as usize].lun else {
            return;
        };
        match attached.leaving.take() {
            Some(Leaving::Draining(done)) => {
                attached.leaving = Some(Leaving::Closing(done));
                let (closing, closed) = (attached.lun.close(), Rc::clone(&self.closed));
                self.start_errand(Box::pin(async move {
                    let result = closing.await;
                    closed.borrow_mut().push((place, result));
                }));
            }
            other => attached.leaving = other,
        }
    }

    /// Goes on with a LUN whose backstore is closed: its last kick is queued, the device can go.
    fn unwatch(&mut self, place: u32, result: Result<(), Error>) {
        let Place {
            generation,
            lun: Some(attached),
            ..
        } = &mut self.places[place as usize]
        else {
            return;
        };
        if let Some(Leaving::Closing(done)) = attached.leaving.take() {
            attached.leaving = Some(Leaving::Unwatching(done, result));
            self.engine.unwatch(Source {
                place,
                generation: *generation,
            });
        }
    }

    /// Lets go of a LUN that is not watched any more.
    fn remove(&mut self, source: Source) {
        let Some(Attached {
            leaving: Some(Leaving::Unwatching(..)),
            ..
        }) = self.attached(source)
        else {
            return;
        };
        let place = &mut self.places[source.place as usize];
        place.generation = (place.generation + 1) % Source::GENERATIONS;
        let Some(Attached {
            id, lun, leaving, ..
        }) = place.lun.take()
        else {
            return;
        };
        // An abandoned LUN's may be another's by now.
        if self.by_id.get(&id) == Some(&source.place) {
            self.by_id.remove(&id);
        }
        tracing::debug!(lun = lun.name(), commands = lun.completed(), "detached");
        drop(lun);
        if let Some(Leaving::Unwatching(done, result)) = leaving {
            done(result);
        }
    }

    /// Lets go of a LUN's device, and keeps the rest until its backstore has finished.
    fn abandon(&mut self, id: LunId) {
        let Ok(place) = self.find(id) else { return };
        let Some(attached) = &mut self.places[place as usize].lun else {
            return;
        };
        attached.lun.abandon();
        attached.present = false;
        self.by_id.remove(&id);
        // Nobody waits for its end.
        let forget: fn() -> Done = || Box::new(|_| {});
        attached.leaving = Some(match attached.leaving.take() {
            None | Some(Leaving::Draining(_)) => Leaving::Draining(forget()),
            Some(Leaving::Closing(_)) => Leaving::Closing(forget()),
            Some(Leaving::Unwatching(_, result)) => Leaving::Unwatching(forget(), result),
        });
        self.touch(place);
    }

    fn find(&self, id: LunId) -> Result<u32, Error> {
        self.by_id
            .get(&id)
            .copied()
            .ok_or_else(|| Error::new(ErrorKind::NotFound, "no such LUN is attached"))
    }

    fn attached(&self, source: Source) -> Option<&Attached> {
        let place = self.places.get(source.place as usize)?;
        place
            .lun
            .as_ref()
            .filter(|_| place.generation == source.generation)
    }

    fn attached_mut(&mut self, source: Source) -> Option<&mut Attached> {
        let place = self.places.get_mut(source.place as usize)?;
        place
            .lun
            .as_mut()
            .filter(|_| place.generation == source.generation)
    }

    fn touch(&mut self, place: u32) {
        if let Some(Place { touched, .. }) = self.places.get_mut(place as usize)
            && !mem::replace(touched, true)
        {
            self.touched.push(place);
        }
    }

    fn start_errand(&mut self, errand: Errand) {
        let ready = &self.ready;
        let slot = self
            .errands
            .insert(errand, |slot| ready.waker(TaskId::Control(slot)));
        self.run_errand(slot);
    }

    fn run_errand(&mut self, slot: u32) {
        // An errand has nothing left to say when it is done.
        let _ = self.errands.poll(slot);
    }
}
