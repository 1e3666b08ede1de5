//! A LUN on its reactor: commands come out of the ring, become tasks, and go back as completions.

use std::collections::HashSet;
use std::future::{Future, poll_fn};
use std::os::fd::{AsRawFd, RawFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::task::{self, Poll, Waker};
use std::time::Instant;

use tcmu::cdb::Cdb;
use tcmu::doorbell::Doorbell;
use tcmu::ring::recovery::Phases;
use tcmu::ring::{Command, Completion, Entry, Ring, TaskManagement, TmrKind};
use tcmu::scsi::sense::SENSE_BUFFER_LEN;
use tcmu_handler::{Backstore, Error, ErrorKind, Io, Memory, OwnedBuffer, Segment};

use super::age::{Age, Finding};
use super::clock::Clock;
use super::hold::Hold;
use super::memory::SharedMemory;
use super::message::{LunId, Mailer};
use super::ready::{ReadyQueue, TaskId};
use super::recovery::{Noted, Recovery};
use super::tally::{End, Tally};
use super::tasks::Tasks;
use crate::copy::{Directory, RemoteCopy};
use crate::device_server::{CopyFailure, LogicalUnit, Request, Response};
use crate::identity::LateNames;
use crate::meter::Meter;
use crate::slow_log::SlowLimit;

/// Something to be done once, apart from commands.
pub(crate) type Errand = Pin<Box<dyn Future<Output = ()>>>;

/// Is told how an errand ended; called on the reactor's thread.
pub(crate) type Done = Box<dyn FnOnce(Result<(), Error>) + Send>;

/// How much is fetched at once: whichever is reached first.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Portion {
    pub(crate) commands: usize,
    /// Of data that the commands come with or ask for.
    pub(crate) bytes: usize,
}

/// Whether commands are left to be fetched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Rest {
    None,
    Perhaps,
}

/// A LUN, whatever its backstore is.
pub(crate) trait Lun {
    /// What people call it.
    fn name(&self) -> &str;

    /// The uio device: readable when commands wait; a write kicks the kernel.
    fn device(&self) -> &dyn Doorbell;

    /// Fetches new commands and starts them, until they make up the `portion`. Returns how many, and
    /// whether there may be more.
    fn fetch(&mut self, portion: Portion) -> (usize, Rest);

    /// Runs the task in `slot` a step further.
    fn step(&mut self, slot: u32);

    /// Runs the background task in `slot` a step further.
    fn step_background(&mut self, slot: u32);

    /// Goes on waiting for the image to change its size.
    fn step_watch(&mut self);

    /// Starts what a copy of another LUN's asks for, if this LUN is the one known by `key`.
    fn serve_copy(&mut self, key: u64, copy: RemoteCopy);

    /// Shows the kernel what has been completed since the last time. `forgotten` says whether the
    /// engine still runs operations that nobody waits for. Returns how many commands
    /// that are, if it is worth a kick.
    fn publish(&mut self, forgotten: bool) -> Option<usize>;

    /// How many commands have been fetched and not completed, and how much else is being done.
    fn in_flight(&self) -> usize;

    /// Stops fetching until [`resume`](Self::resume). `done` is told when nothing is in flight and the
    /// backstore is flushed.
    fn hold(&mut self, done: Done);

    /// Whether somebody waits for that nothing is in flight, and it is so; [`fetch`](Self::fetch)
    /// flushes the backstore then.
    fn is_drained(&self) -> bool;

    /// Fetches again.
    fn resume(&mut self);

    /// Stops fetching, and has what runs in the background end soon.
    fn quiesce(&mut self);

    /// Stops fetching, and lets go of the device's memory: what is in flight goes on with other memory
    /// in its place, and reaches nobody.
    fn abandon(&mut self);

    /// Looks how old the oldest command is. Returns whether the backstore is stuck, where that is
    /// news.
    fn look_at_age(&mut self, now: Instant) -> Option<bool>;

    /// Whether the ring cannot be read any further.
    fn is_broken(&self) -> bool;

    /// How many commands have been completed.
    fn completed(&self) -> u64;

    /// An errand that makes the LUN `size` bytes large.
    fn resize(&self, size: u64, done: Done) -> Errand;

    /// An errand that switches the write cache.
    fn set_write_cache(&self, enabled: bool, done: Done) -> Errand;

    /// Closes the backstore.
    fn close(&self) -> Pin<Box<dyn Future<Output = Result<(), Error>>>>;
}

/// What a reactor gives to its LUNs.
#[derive(Clone)]
pub(crate) struct Context {
    pub(crate) io: Io,
    pub(crate) ready: Arc<ReadyQueue>,
    /// The LUN's place in the reactor.
    pub(crate) place: u32,
    pub(crate) id: LunId,
    pub(crate) clock: Rc<Clock>,
    pub(crate) slow_limit: Arc<SlowLimit>,
    /// Where the LUN meets others, and the way to its reactor.
    pub(crate) meeting: Option<(Arc<Directory>, Mailer)>,
}

impl Context {
    /// Lets `unit`, whose configuration stands in `folder`, copy to and from other LUNs.
    pub(crate) fn introduce<B: Backstore>(&self, unit: &mut LogicalUnit<B>, folder: PathBuf) {
        if let Some((directory, mailer)) = &self.meeting {
            unit.meet(Rc::new(directory.join(folder, self.id, mailer.clone())));
        }
    }
}

/// The LUN `name` on `device`: `ring` serves `unit`, and goes on with what is in `recovery`.
pub(crate) fn lun<B: Backstore>(
    name: String,
    device: Box<dyn Doorbell>,
    (ring, recovery): (Ring, Recovery),
    unit: LogicalUnit<B>,
    names: Option<LateNames>,
    meter: Arc<Meter>,
    context: Context,
) -> Box<dyn Lun> {
    for found in recovery.waiting().filter(|found| found.runs > 1) {
        tracing::warn!(lun = name, command = ?found.command, runs = found.runs, "again in flight");
    }
    let unit = Rc::new(unit);
    let names = names.map(Rc::new);
    let slow_limit = Arc::clone(&context.slow_limit);
    let tally = Tally::new(Arc::clone(&meter), Rc::clone(&context.clock), slow_limit);
    let memory: Arc<dyn Memory> = Arc::new(SharedMemory::new(Arc::clone(ring.memory())));
    let (server, io) = (Rc::clone(&unit), context.io.clone());
    let serve = move |cdb: Cdb, buffer: OwnedBuffer, progress: Noted| {
        let (server, io) = (Rc::clone(&server), io.clone());
        let names = names
            .as_ref()
            .filter(|names| names.are_asked_by(&cdb))
            .map(Rc::clone);
        async move {
            if let Some(names) = names {
                names.complete(&io, &server).await;
            }
            let request = Request {
                cdb: &cdb,
                data: buffer.view(),
            };
            let response = server.execute_noting(&io, request, &progress).await;
            (response, buffer)
        }
    };
    let watch = follow_image(Rc::clone(&unit), context.io.clone(), meter);
    Box::new(Served {
        watch: Box::pin(watch),
        watch_waker: context.ready.waker(TaskId::Watch { lun: context.place }),
        name,
        device,
        phases: ring.phases().map(Rc::new),
        ring,
        recovery,
        age: Age::default(),
        unit,
        memory,
        tally,
        context,
        serve,
        tasks: Tasks::new(),
        background: Tasks::new(),
        commands: Vec::new(),
        since: Vec::new(),
        spare: Vec::new(),
        failed: Vec::new(),
        aborted: HashSet::new(),
        quiescent: false,
        broken: false,
        hold: Hold::default(),
    })
}

struct Served<B, F, S> {
    name: String,
    device: Box<dyn Doorbell>,
    ring: Ring,
    recovery: Recovery,
    phases: Option<Rc<Phases>>,
    age: Age,
    unit: Rc<LogicalUnit<B>>,
    memory: Arc<dyn Memory>,
    tally: Tally,
    context: Context,
    /// Has the LUN follow the size of its image.
    watch: Errand,
    watch_waker: Waker,
    /// Makes the task of a command.
    serve: S,
    tasks: Tasks<F>,
    /// What is done beside commands.
    background: Tasks<Errand>,
    /// The command of each task, by slot.
    commands: Vec<Option<Command>>,
    /// When each of them was fetched.
    since: Vec<u64>,
    /// Lists of segments to be used again.
    spare: Vec<Vec<Segment>>,
    /// Commands whose task panicked. They are answered when nothing runs that could still touch
    /// their memory.
    failed: Vec<Command>,
    /// The slots of commands that were aborted and have not ended.
    aborted: HashSet<u32>,
    quiescent: bool,
    broken: bool,
    hold: Hold,
}

impl<B, F, S> Served<B, F, S>
where
    B: Backstore,
    F: Future<Output = (Response, OwnedBuffer)>,
    S: Fn(Cdb, OwnedBuffer, Noted) -> F,
{
    /// Starts a command that has come as far as `phase` says.
    fn start(&mut self, command: Command, phase: u64) {
        let mut segments = self.spare.pop().unwrap_or_default();
        segments.clear();
        segments.extend(command.data().iter().map(|from| Segment {
            offset: from.offset,
            len: from.len,
        }));
        let buffer = match OwnedBuffer::new(Arc::clone(&self.memory), segments) {
            Ok(buffer) => buffer,
            Err(error) => {
                tracing::error!(lun = %self.name, %error, "a command's memory is not in the ring's mapping");
                self.count(&command, self.tally.now(), End::DROPPED);
                return; // Dropping the command answers it with HARDWARE ERROR.
            }
        };
        let progress = Noted {
            phases: self.phases.clone(),
            id: command.id(),
            phase,
        };
        let task = (self.serve)(command.cdb().clone(), buffer, progress);
        let Context { ready, place, .. } = &self.context;
        let slot = self.tasks.insert(task, |slot| {
            ready.waker(TaskId::Command { lun: *place, slot })
        });
        if self.commands.len() <= slot as usize {
            self.commands.resize_with(slot as usize + 1, || None);
            self.since.resize(slot as usize + 1, 0);
        }
        self.commands[slot as usize] = Some(command);
        self.since[slot as usize] = self.tally.now();
        self.step(slot);
    }

    /// Starts the work that commands have left for the background.
    fn start_background(&mut self) {
        if self.unit.has_background() {
            let (unit, io) = (Rc::clone(&self.unit), self.context.io.clone());
            self.run_in_background(Box::pin(async move { unit.background(&io).await }));
        }
    }

    fn run_in_background(&mut self, errand: Errand) {
        let Context { ready, place, .. } = &self.context;
        let slot = self.background.insert(errand, |slot| {
            ready.waker(TaskId::Background { lun: *place, slot })
        });
        self.step_background(slot);
    }

    /// Makes all durable, and tells who waits for that.
    fn flush_drained(&mut self) {
        let Some(done) = self.hold.drained() else {
            return;
        };
        let (unit, io) = (Rc::clone(&self.unit), self.context.io.clone());
        self.run_in_background(Box::pin(async move {
            let flushed = caught(async {
                let backstore = unit.backstore();
                if backstore.capabilities().volatile_cache {
                    backstore.flush(&io).await?;
                }
                Ok(())
            });
            done(flushed.await);
        }));
    }

    /// Notes which commands were aborted. They are carried out all the same: no operation is cancelled,
    /// and nothing that waits is dropped. `device_server/abort.rs` says why.
    fn manage(&mut self, request: &TaskManagement) {
        let ids: HashSet<u16> = request.commands.iter().copied().collect();
        let mut go_on = 0;
        for (slot, command) in self.commands.iter().enumerate() {
            let is_meant = command.as_ref().is_some_and(|c| ids.contains(&c.id()));
            if is_meant && let Some(waker) = self.tasks.waker(slot as u32) {
                self.unit.abort(waker);
                self.aborted.insert(slot as u32);
                go_on += 1;
            }
        }
        if request.kind == TmrKind::LunReset {
            self.unit.reset();
        }
        tracing::info!(
            lun = %self.name,
            kind = ?request.kind,
            commands = ids.len(),
            in_flight = go_on,
            "task management"
        );
    }

    /// The command in `slot` has ended, perhaps one that was aborted.
    fn end_of_abort(&mut self, slot: u32) {
        if !self.aborted.is_empty()
            && self.aborted.remove(&slot)
            && let Some(waker) = self.tasks.waker(slot)
        {
            self.unit.ended(waker);
        }
    }

    #[inline]
    fn ended(&mut self, command: &Command) {
        if self.recovery.is_under_way() {
            self.recovery.ended(command.number());
        }
    }

    #[inline]
    fn count(&mut self, command: &Command, since: u64, end: End) {
        let (name, cdb) = (&self.name, command.cdb());
        self.tally.ended(name, cdb, since, end, self.tasks.len());
    }

    fn finish(&mut self, slot: u32, response: &Response, buffer: OwnedBuffer) {
        self.end_of_abort(slot);
        if let Some(command) = self.commands[slot as usize].take() {
            let mut bytes = [0; SENSE_BUFFER_LEN];
            let len = match &response.sense {
                Some(sense) => sense.write_to(&mut bytes, self.unit.descriptor_sense()),
                None => 0,
            };
            let completion = Completion {
                status: response.status.code(),
                sense: &bytes[..len],
                read_len: response.read_len,
            };
            self.ended(&command);
            let end = End {
                status: response.status,
                key: response.sense.as_ref().map(|sense| sense.key),
                moved: response.read_len.unwrap_or(command.data_len() as u32),
            };
            self.count(&command, self.since[slot as usize], end);
            self.ring.complete(command, completion);
        }
        self.spare.push(buffer.into_segments());
    }
}

impl<B, F, S> Lun for Served<B, F, S>
where
    B: Backstore,
    F: Future<Output = (Response, OwnedBuffer)>,
    S: Fn(Cdb, OwnedBuffer, Noted) -> F,
{
    fn name(&self) -> &str {
        &self.name
    }

    fn device(&self) -> &dyn Doorbell {
        &*self.device
    }

    fn fetch(&mut self, portion: Portion) -> (usize, Rest) {
        if self.is_drained() {
            self.flush_drained();
        }
        self.start_background();
        let mut bytes = 0;
        for fetched in 0..portion.commands {
            if self.quiescent || self.broken {
                return (fetched, Rest::None);
            }
            if bytes >= portion.bytes {
                return (fetched, Rest::Perhaps);
            }
            if let Some(interrupted) = self.recovery.next() {
                bytes += interrupted.command.data_len();
                self.start(interrupted.command, interrupted.phase);
                continue;
            }
            if self.hold.is_on() {
                return (fetched, Rest::None);
            }
            match self.ring.next() {
                Ok(Some(Entry::Command(command))) => {
                    bytes += command.data_len();
                    self.start(command, 0);
                }
                Ok(Some(Entry::TaskManagement(request))) => self.manage(&request),
                Ok(None) => return (fetched, Rest::None),
                Err(error) => {
                    tracing::error!(lun = %self.name, %error, "the command ring is damaged");
                    self.broken = true;
                }
            }
        }
        (portion.commands, Rest::Perhaps)
    }

    fn step(&mut self, slot: u32) {
        match catch_unwind(AssertUnwindSafe(|| self.tasks.poll(slot))) {
            Ok(Poll::Pending) => self.start_background(),
            Ok(Poll::Ready((response, buffer))) => self.finish(slot, &response, buffer),
            Err(_) => {
                tracing::error!(lun = %self.name, "a command failed with a panic; its initiator gets HARDWARE ERROR");
                self.tasks.discard(slot);
                self.end_of_abort(slot);
                if let Some(command) = self.commands[slot as usize].take() {
                    self.ended(&command);
                    self.count(&command, self.since[slot as usize], End::DROPPED);
                    self.failed.push(command);
                }
            }
        }
    }

    fn step_background(&mut self, slot: u32) {
        if catch_unwind(AssertUnwindSafe(|| self.background.poll(slot))).is_err() {
            tracing::error!(lun = %self.name, "work in the background failed with a panic");
            self.background.discard(slot);
        }
    }

    fn step_watch(&mut self) {
        let mut context = task::Context::from_waker(&self.watch_waker);
        let step = catch_unwind(AssertUnwindSafe(|| self.watch.as_mut().poll(&mut context)));
        if step.is_err() {
            tracing::error!(lun = %self.name, "watching the image's size failed with a panic: the LUN follows it no more");
            self.watch = Box::pin(std::future::pending());
        }
    }

    fn serve_copy(&mut self, key: u64, copy: RemoteCopy) {
        let Some(RemoteCopy { request, answer }) = self.hold.keep(key, copy) else {
            return;
        };
        if self.quiescent || !self.unit.is_known_by(key) {
            // Whoever asked may have gone.
            let _ = answer.send(Err(CopyFailure::gone()));
            return;
        }
        let (unit, io) = (Rc::clone(&self.unit), self.context.io.clone());
        self.run_in_background(Box::pin(async move {
            let _ = answer.send(unit.serve_copy(&io, request).await);
        }));
    }

    fn publish(&mut self, forgotten: bool) -> Option<usize> {
        if !forgotten {
            self.failed.clear();
        }
        if let Some(error) = self.ring.take_table_error() {
            tracing::warn!(lun = %self.name, %error, "the in-flight table is given up: if tcmu-runner is killed, initiators have to repeat what is in flight. Is /run full?");
        }
        let finished = self.tally.publish(self.in_flight());
        self.ring.publish().then_some(finished)
    }

    fn in_flight(&self) -> usize {
        self.tasks.len() + self.failed.len() + self.background.len()
    }

    fn hold(&mut self, done: Done) {
        self.hold.begin(done);
        if self.quiescent {
            self.hold.end();
        }
    }

    fn is_drained(&self) -> bool {
        self.hold.is_awaited() && self.in_flight() == 0 && !self.recovery.is_under_way()
    }

    fn resume(&mut self) {
        for (key, copy) in self.hold.end() {
            self.serve_copy(key, copy);
        }
    }

    fn quiesce(&mut self) {
        self.quiescent = true;
        self.watch = Box::pin(std::future::pending());
        self.hold.end();
        self.unit.stop_background();
    }

    fn abandon(&mut self) {
        self.quiescent = true;
        self.watch = Box::pin(std::future::pending());
        self.hold.end();
        if let Err(error) = self.ring.memory().let_go() {
            tracing::error!(lun = %self.name, %error, "the device's memory stays mapped; a backstore that answers late may bring tcmu-runner down");
        }
    }

    fn look_at_age(&mut self, now: Instant) -> Option<bool> {
        let in_flight = self.commands.iter().flatten();
        let oldest = in_flight.min_by_key(|command| command.number());
        match self.age.look(oldest.map(Command::number), now)? {
            Finding::Stuck(age) => {
                tracing::warn!(lun = %self.name, command = ?oldest.map(Command::cdb), in_flight = self.in_flight(), ?age, "the backstore does not answer");
                Some(true)
            }
            Finding::AnswersAgain(age) => {
                tracing::info!(lun = %self.name, ?age, "the backstore answers again");
                Some(false)
            }
        }
    }

    fn is_broken(&self) -> bool {
        self.broken
    }

    fn completed(&self) -> u64 {
        self.tally.completed()
    }

    fn resize(&self, size: u64, done: Done) -> Errand {
        let (unit, io) = (Rc::clone(&self.unit), self.context.io.clone());
        let meter = Arc::clone(self.tally.meter());
        Box::pin(async move {
            let resized = caught(async {
                unit.backstore().resize(&io, size).await?;
                unit.set_size(size);
                meter.resized(size);
                Ok(())
            });
            done(resized.await);
        })
    }

    fn set_write_cache(&self, enabled: bool, done: Done) -> Errand {
        let (unit, io) = (Rc::clone(&self.unit), self.context.io.clone());
        Box::pin(async move {
            done(caught(async { unit.set_write_cache(&io, enabled).await }).await);
        })
    }

    fn close(&self) -> Pin<Box<dyn Future<Output = Result<(), Error>>>> {
        let (unit, io) = (Rc::clone(&self.unit), self.context.io.clone());
        Box::pin(async move { caught(async { unit.backstore().close(&io).await }).await })
    }
}

/// Gives the LUN its image's size whenever somebody else has changed that.
async fn follow_image<B: Backstore>(unit: Rc<LogicalUnit<B>>, io: Io, meter: Arc<Meter>) {
    loop {
        let known = unit.backstore().capabilities().size;
        unit.backstore().resized(&io, known).await;
        if let Some(size) = unit.follow_image(&io, known).await {
            meter.resized(size);
        }
    }
}

/// `future`, with a panic of the backstore's made an error.
async fn caught(future: impl Future<Output = Result<(), Error>>) -> Result<(), Error> {
    let mut future = pin!(future);
    poll_fn(|context| {
        catch_unwind(AssertUnwindSafe(|| future.as_mut().poll(context))).unwrap_or_else(|_| {
            Poll::Ready(Err(Error::new(
                ErrorKind::Internal,
                "the backstore panicked",
            )))
        })
    })
    .await
}

/// The file descriptor of a LUN's device.
pub(crate) fn device_fd(lun: &dyn Lun) -> RawFd {
    lun.device().poll_fd().as_raw_fd()
}
