//! A reactor without a daemon: one thread of the caller's serves LUNs of the caller's.

use std::io;
use std::sync::Arc;
use std::sync::mpsc::{Sender, channel};

use tcmu::doorbell::Doorbell;
use tcmu::mapping::Mapping;
use tcmu::ring::Ring;
use tcmu::ring::recovery::Table;
use tcmu_handler::{Backstore, Error, ErrorKind};

use super::blocking::BlockingPool;
use super::engine::{Counters, UringEngine};
use super::lun::lun;
use super::message::{LunId, Mailer, Message};
use super::ready::ReadyQueue;
use super::recovery::Recovery;
use super::turn::Reactor;
use crate::copy::Directory;
use crate::device_server::{Geometry, Identity, LogicalUnit};

/// A reactor on the calling thread.
///
/// It is what the daemon's threads run, for programs that find their devices by themselves, and for
/// tests and benchmarks on the mock kernel of the crate `tcmu`.
pub struct LocalReactor {
    reactor: Reactor,
    next: LunId,
    messages: Sender<Message>,
    ready: Arc<ReadyQueue>,
}

impl LocalReactor {
    /// A reactor for this thread, which has at most `blocking_threads` threads for what blocks.
    ///
    /// # Errors
    /// Where io_uring is missing or forbidden.
    pub fn new(blocking_threads: usize) -> io::Result<Self> {
        let ready = ReadyQueue::new()?;
        ready.adopt();
        let engine = UringEngine::new(BlockingPool::new(blocking_threads))?;
        // The caller sees what becomes of its devices.
        let (messages, inbox) = channel();
        let reactor = Reactor::new(engine, Arc::clone(&ready), inbox, Arc::new(|_| {}));
        Ok(Self {
            reactor,
            next: 0,
            messages,
            ready,
        })
    }

    /// Lets the LUNs that are attached from now on copy to and from others in `directory`, where they
    /// go by the names of their identities.
    pub fn meet(&mut self, directory: Arc<Directory>) {
        let mailer = Mailer::new(self.messages.clone(), Arc::clone(&self.ready));
        self.reactor.meet(directory, mailer);
    }

    /// Serves the ring in `memory`, whose signals go through `device`, on `backstore`.
    /// `write_cache` is the initial WCE of the unit.
    ///
    /// # Errors
    /// If the memory is not that of a command ring.
    pub fn attach<B: Backstore>(
        &mut self,
        device: Box<dyn Doorbell>,
        memory: Arc<Mapping>,
        backstore: B,
        identity: Identity,
        geometry: Geometry,
        write_cache: bool,
    ) -> Result<(), Error> {
        let name = identity.name.clone();
        let ring = Ring::new(memory).map_err(unusable)?;
        let unit = LogicalUnit::new(backstore, identity, geometry, write_cache);
        self.attach_ring(name, device, ring, Recovery::default(), unit)
    }

    /// The same for a unit that is made already, and a ring with an in-flight table: goes on with what
    /// it says. `name` is for the log.
    ///
    /// # Errors
    /// If the table does not fit the ring in `memory`, or that is none.
    pub fn attach_with_table<B: Backstore>(
        &mut self,
        name: String,
        device: Box<dyn Doorbell>,
        memory: Arc<Mapping>,
        table: Table,
        unit: LogicalUnit<B>,
    ) -> Result<(), Error> {
        let (ring, interrupted) = Ring::with_table(memory, table).map_err(unusable)?;
        let recovery = Recovery::new(interrupted, Box::new(|| {}));
        self.attach_ring(name, device, ring, recovery, unit)
    }

    fn attach_ring<B: Backstore>(
        &mut self,
        name: String,
        device: Box<dyn Doorbell>,
        ring: Ring,
        recovery: Recovery,
        mut unit: LogicalUnit<B>,
    ) -> Result<(), Error> {
        let id = self.next;
        self.next += 1;
        self.reactor.attach(id, |context| {
            context.introduce(&mut unit, name.clone().into());
            Ok(lun(
                name,
                device,
                (ring, recovery),
                unit,
                None,
                Arc::default(),
                context,
            ))
        })
    }

    /// One turn: starts what can be started, publishes what is completed. With `wait`, sleeps until
    /// there is something to do.
    ///
    /// # Errors
    /// If io_uring fails; the reactor cannot be used any more then.
    pub fn turn(&mut self, wait: bool) -> io::Result<()> {
        self.reactor.turn(wait)
    }

    /// What was done so far.
    pub fn counters(&self) -> Counters {
        self.reactor.counters()
    }
}

fn unusable(error: impl std::error::Error + Send + Sync + 'static) -> Error {
    Error::new(ErrorKind::Internal, "the command ring cannot be used").with_source(error)
}

impl std::fmt::Debug for LocalReactor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LocalReactor")
            .field("counters", &self.counters())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU32;
    use std::sync::Mutex;
    use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
    use std::thread;
    use std::time::Duration;

    use tcmu::mock::{Config, Data, MockKernel};
    use tcmu_handler::{Buffer, Capabilities, Io, Result, WriteFlags};

    use super::*;

    /// An image whose reads wait until it is opened.
    #[derive(Clone, Default)]
    struct Gate {
        open: Arc<AtomicBool>,
        flushes: Arc<AtomicUsize>,
    }

    impl Backstore for Gate {
        fn capabilities(&self) -> Capabilities {
            Capabilities {
                volatile_cache: true,
                ..Capabilities::new(1 << 20)
            }
        }

        async fn read(&self, io: &Io, buffer: Buffer<'_>, _: u64) -> Result<()> {
            let open = Arc::clone(&self.open);
            let wait = move || {
                while !open.load(Ordering::Relaxed) {
                    thread::sleep(Duration::from_millis(1));
                }
            };
            let waited = io.blocking(wait).await;
            waited.map_err(|error| Error::os("waiting", error))?;
            buffer.fill(1);
            Ok(())
        }

        async fn write(&self, _: &Io, _: Buffer<'_>, _: u64, _: WriteFlags) -> Result<()> {
            Ok(())
        }

        async fn flush(&self, _: &Io) -> Result<()> {
            self.flushes.fetch_add(1, Ordering::Relaxed);
            Ok(())
        }
    }

    /// A LUN on a gate, with one read in flight.
    fn reading() -> (MockKernel, LocalReactor, Gate) {
        let (mut kernel, device) = MockKernel::new(Config::default()).unwrap();
        let mut reactor = LocalReactor::new(1).unwrap();
        let memory = Arc::clone(device.memory());
        let gate = Gate::default();
        let geometry = Geometry {
            size: 1 << 20,
            block_size: NonZeroU32::new(512).unwrap(),
            max_transfer_blocks: 0,
        };
        let identity = Identity::default();
        let device = Box::new(device);
        let attached = reactor.attach(device, memory, gate.clone(), identity, geometry, true);
        attached.unwrap();
        // The first command may hear of the power on.
        kernel.submit(&[0; 6], Data::None).unwrap();
        while kernel.reap().is_empty() {
            reactor.turn(false).unwrap();
        }
        read(&mut kernel);
        for _ in 0..5 {
            reactor.turn(false).unwrap();
        }
        assert!(kernel.reap().is_empty());
        (kernel, reactor, gate)
    }

    fn read(kernel: &mut MockKernel) {
        let cdb = [0x28, 0, 0, 0, 0, 0, 0, 0, 1, 0];
        kernel.submit(&cdb, Data::In(512)).unwrap();
    }

    type Answer = Arc<Mutex<Option<Result<()>>>>;

    fn hold(reactor: &mut LocalReactor) -> Answer {
        let answer = Answer::default();
        let told = Arc::clone(&answer);
        let done = Box::new(move |result| *told.lock().unwrap() = Some(result));
        reactor.reactor.obey(Message::Hold { id: 0, done });
        answer
    }

    #[test]
    fn a_held_lun_finishes_what_it_has_and_takes_no_more() {
        let (mut kernel, mut reactor, gate) = reading();
        let answer = hold(&mut reactor);
        read(&mut kernel);
        for _ in 0..5 {
            reactor.turn(false).unwrap();
        }
        assert!(kernel.reap().is_empty() && answer.lock().unwrap().is_none());

        gate.open.store(true, Ordering::Relaxed);
        let mut finished = 0;
        while answer.lock().unwrap().is_none() {
            reactor.turn(false).unwrap();
            finished += kernel.reap().len();
        }
        assert!(matches!(*answer.lock().unwrap(), Some(Ok(()))));
        assert_eq!(gate.flushes.load(Ordering::Relaxed), 1);
        for _ in 0..5 {
            reactor.turn(false).unwrap();
            finished += kernel.reap().len();
        }
        assert_eq!(finished, 1, "only what was in flight");

        reactor.reactor.obey(Message::Resume { id: 0 });
        while finished < 2 {
            reactor.turn(true).unwrap();
            finished += kernel.reap().len();
        }
        assert_eq!(gate.flushes.load(Ordering::Relaxed), 1);
    }

    #[test]
    fn whoever_waits_for_a_drain_hears_when_it_ends_otherwise() {
        let (_kernel, mut reactor, gate) = reading();
        let first = hold(&mut reactor);
        let second = hold(&mut reactor);
        assert!(matches!(*first.lock().unwrap(), Some(Err(_))));
        reactor.reactor.obey(Message::Resume { id: 0 });
        assert!(matches!(*second.lock().unwrap(), Some(Err(_))));
        let third = hold(&mut reactor);
        let done: super::super::lun::Done = Box::new(|_| {});
        reactor.reactor.obey(Message::Detach { id: 0, done });
        assert!(matches!(*third.lock().unwrap(), Some(Err(_))));
        let late = hold(&mut reactor);
        assert!(matches!(*late.lock().unwrap(), Some(Err(_))));
        gate.open.store(true, Ordering::Relaxed);
        assert_eq!(gate.flushes.load(Ordering::Relaxed), 0);
    }
}
