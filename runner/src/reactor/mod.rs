//! Reactors: threads that own an io_uring and a share of the LUNs.
//!
//! One turn: hand the kernel all that has been queued and wait (one system call); step the tasks
//! whose I/O has finished; fetch the new commands of the LUNs that something happened to; publish
//! what was completed, one store and one kick per LUN. The kicks go to the kernel with the next
//! turn's system call.

mod blocking;
mod engine;
mod lun;
mod memory;
mod ready;
mod tasks;

use std::cell::RefCell;
use std::collections::HashMap;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::{self, JoinHandle};

use tcmu_handler::{Error, ErrorKind, Io};

pub(crate) use blocking::BlockingPool;
use engine::{Event, Source, UringEngine};
pub(crate) use lun::{Context, Done, Errand, Lun, lun};
use ready::{ReadyQueue, TaskId};
use tasks::Tasks;

/// Names a LUN: its uio device's minor number.
pub(crate) type LunId = u32;

/// Makes a LUN on the reactor's thread.
pub(crate) type MakeLun = Box<dyn FnOnce(Context) -> Result<Box<dyn Lun>, Error> + Send>;

/// What a reactor is asked to do.
pub(crate) enum Message {
    /// Serve a new LUN.
    Attach {
        id: LunId,
        make: MakeLun,
        done: Done,
    },
    /// Finish what is in flight, close the backstore, and let go of the device. Commands that have
    /// not been fetched stay in the ring for whoever serves it next.
    Detach { id: LunId, done: Done },
    /// Change a LUN's size.
    Resize { id: LunId, size: u64, done: Done },
    /// Change what a LUN says of its write cache.
    SetWriteCache {
        id: LunId,
        enabled: bool,
        done: Done,
    },
    /// End the thread. LUNs that are still there are dropped as they are.
    Stop,
}

/// What a reactor says by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Notice {
    /// The LUN's device is gone.
    Gone(LunId),
    /// The LUN's ring cannot be read any further.
    Broken(LunId),
    /// The reactor has ended, and its LUNs are not served any more.
    Failed,
}

/// Is told the notices, on the reactor's thread.
pub(crate) type OnNotice = Arc<dyn Fn(Notice) + Send + Sync>;

/// A reactor's thread, seen from others.
pub(crate) struct ReactorHandle {
    messages: Sender<Message>,
    ready: Arc<ReadyQueue>,
    thread: Option<JoinHandle<()>>,
}

impl ReactorHandle {
    /// Starts reactor `number`.
    pub(crate) fn start(
        number: usize,
        pool: BlockingPool,
        on_notice: OnNotice,
    ) -> io::Result<Self> {
        let (messages, inbox) = channel();
        let (started, start) = channel();
        let ready = ReadyQueue::new()?;
        let own = Arc::clone(&ready);
        let thread = thread::Builder::new()
            .name(format!("reactor-{number}"))
            .spawn(move || {
                own.adopt();
                match UringEngine::new(pool) {
                    Ok(engine) => {
                        let _ = started.send(Ok(()));
                        let mut reactor = Reactor::new(engine, own, inbox, Arc::clone(&on_notice));
                        // A panic here is a defect of the reactor's own, and ends it; those of
                        // backstores are caught where they are called.
                        let end = catch_unwind(AssertUnwindSafe(|| reactor.run()));
                        if !matches!(end, Ok(Ok(()))) {
                            tracing::error!(?end, "a reactor failed");
                            on_notice(Notice::Failed);
                        }
                    }
                    Err(error) => {
                        let _ = started.send(Err(error));
                    }
                }
            })?;
        start
            .recv()
            .map_err(|_| io::Error::other("a reactor's thread died at its start"))??;
        Ok(Self {
            messages,
            ready,
            thread: Some(thread),
        })
    }

    /// Hands over a message.
    pub(crate) fn send(&self, message: Message) {
        // A reactor lives until its handle is dropped.
        if self.messages.send(message).is_ok() {
            self.ready.ring();
        }
    }
}

impl Drop for ReactorHandle {
    fn drop(&mut self) {
        self.send(Message::Stop);
        if let Some(thread) = self.thread.take() {
            // A panic was reported when it happened.
            let _ = thread.join();
        }
    }
}

/// The bell has the place behind all LUNs.
const BELL: Source = Source {
    place: u32::MAX,
    generation: 0,
};

/// How often tasks that wake themselves are stepped before the turn goes on.
const STEPS_PER_TURN: usize = 16;

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

struct Reactor {
    engine: Rc<UringEngine>,
    io: Io,
    ready: Arc<ReadyQueue>,
    inbox: Receiver<Message>,
    on_notice: OnNotice,
    places: Vec<Place>,
    by_id: HashMap<LunId, u32>,
    /// The places that something happened to in this turn.
    touched: Vec<u32>,
    errands: Tasks<Errand>,
    /// Left there by errands.
    closed: Closed,
    stop: bool,
}

impl Reactor {
    fn new(
        engine: UringEngine,
        ready: Arc<ReadyQueue>,
        inbox: Receiver<Message>,
        on_notice: OnNotice,
    ) -> Self {
        let engine = Rc::new(engine);
        Self {
            io: Io::new(Rc::clone(&engine) as Rc<dyn tcmu_handler::Engine>),
            engine,
            ready,
            inbox,
            on_notice,
            places: Vec::new(),
            by_id: HashMap::new(),
            touched: Vec::new(),
            errands: Tasks::new(),
            closed: Rc::default(),
            stop: false,
        }
    }

    fn run(&mut self) -> io::Result<()> {
        let mut events = Vec::new();
        let mut tasks = Vec::new();
        self.engine.watch(self.ready.bell(), BELL);
        let mut idle = true;
        while !self.stop {
            self.engine.turn(idle, &mut events)?;
            for event in events.drain(..) {
                self.handle(event, &mut tasks);
            }
            self.step(&mut tasks);
            self.serve();
            idle = !self.step(&mut tasks);
            self.publish();
        }
        let counters = self.engine.counters();
        tracing::debug!(?counters, "reactor ends");
        Ok(())
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
                    && std::mem::replace(&mut attached.present, false)
                {
                    let id = attached.id;
                    attached.lun.quiesce();
                    (self.on_notice)(Notice::Gone(id));
                }
            }
            Event::Unwatched { source } => self.remove(source),
        }
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

    /// Fetches the new commands of the LUNs that something happened to.
    fn serve(&mut self) {
        for &place in &self.touched {
            if let Some(attached) = &mut self.places[place as usize].lun {
                let was_broken = attached.lun.is_broken();
                attached.lun.fetch();
                if attached.lun.is_broken() && !was_broken {
                    (self.on_notice)(Notice::Broken(attached.id));
                }
            }
        }
    }

    /// Publishes what was completed, and goes on with LUNs that are to leave.
    fn publish(&mut self) {
        let forgotten = self.engine.has_forgotten();
        for index in 0..self.touched.len() {
            let place = self.touched[index];
            let Place {
                generation,
                lun,
                touched,
            } = &mut self.places[place as usize];
            *touched = false;
            let source = Source {
                place,
                generation: *generation,
            };
            let Some(attached) = lun else { continue };
            if attached.lun.publish(forgotten) && attached.present {
                self.engine.kick(lun::device_fd(&*attached.lun), source);
            }
            if attached.lun.in_flight() == 0 {
                self.close_if_leaving(place);
            }
        }
        self.touched.clear();
        for (place, result) in self.closed.take() {
            self.unwatch(place, result);
        }
    }

    fn obey(&mut self, message: Message) {
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
            Message::Stop => self.stop = true,
        }
    }

    fn attach(&mut self, id: LunId, make: MakeLun) -> Result<(), Error> {
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
        self.by_id.remove(&id);
        tracing::debug!(lun = lun.name(), commands = lun.completed(), "detached");
        drop(lun);
        if let Some(Leaving::Unwatching(done, result)) = leaving {
            done(result);
        }
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
            && !std::mem::replace(touched, true)
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
