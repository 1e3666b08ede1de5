//! The daemon: which devices there are, and who serves them.
//!
//! One thread hears the kernel (netlink), the signals, and what openers and reactors report. It never
//! blocks on a backstore: images are opened on a pool of threads, and everything about a LUN that is
//! attached happens on its reactor.

use std::collections::HashMap;
use std::io::Read;
use std::os::unix::net::UnixStream;
use std::process::Command;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use anyhow::Context;
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::fd::OwnedFd;
use tcmu::configfs::ResetVerdict;
use tcmu::discovery::{DeviceName, Sysfs};
use tcmu::netlink::{Change, Delivery, Event, Netlink, NetlinkError, Ticket};
use tcmu::ring::Ring;
use tcmu::uio::Uio;
use tcmu_handler::Error;

use crate::config::Config;
use crate::reactor::{BlockingPool, Done, LunId, MakeLun, Message, Notice, ReactorHandle};
use crate::registry::{OpenDevice, Registry};
use crate::run_dir::RunDir;

/// How many images are opened at once.
const OPENERS: usize = 16;

/// How long the kernel, and whoever enables a device, waits for its image to be opened. tcmuctl waits
/// a little longer, so that it hears of it.
const OPENING_LIMIT: Duration = Duration::from_secs(25);

/// How often a LUN whose ring is damaged is given a fresh one before it is left alone.
const RING_RESETS: u32 = 3;

/// How often a shutdown says what it is waiting for.
const PATIENCE: Duration = Duration::from_secs(5);

/// `EOPNOTSUPP`, `EAGAIN`, `ENODEV` and `ETIMEDOUT` as answers to the kernel.
const NOT_SUPPORTED: i32 = -95;
const TRY_AGAIN: i32 = -11;
const NO_DEVICE: i32 = -19;
const TIMED_OUT: i32 = -110;

/// What other threads report to the daemon's.
enum Report {
    /// An image was opened, or not.
    Opened {
        id: LunId,
        result: Result<MakeLun, Error>,
    },
    /// A LUN was attached to its reactor, or not.
    Attached {
        id: LunId,
        result: Result<(), Error>,
    },
    /// A LUN's backstore is closed and its device let go.
    Detached {
        id: LunId,
        result: Result<(), Error>,
    },
    /// A change that the kernel waits for was made, or refused.
    Changed {
        id: LunId,
        ticket: Ticket,
        result: Result<(), Error>,
    },
    /// A reactor noticed something.
    Notice(Notice),
}

/// Reports from any thread, with a bell.
#[derive(Clone)]
struct Reporter {
    reports: Sender<Report>,
    bell: Arc<OwnedFd>,
}

impl Reporter {
    fn send(&self, report: Report) {
        // Without a daemon nobody needs the report.
        if self.reports.send(report).is_ok() {
            let _ = rustix::io::write(&*self.bell, &1u64.to_ne_bytes());
        }
    }
}

/// Where a device stands.
#[derive(Debug)]
enum Phase {
    /// Its image is being opened, or it is on its way to a reactor.
    Opening,
    Serving,
    /// It is on its way from its reactor.
    Leaving {
        then: Next,
    },
}

/// What follows when a device has left its reactor.
#[derive(Debug, PartialEq, Eq)]
enum Next {
    Forget,
    /// Reset the ring and serve the device again.
    Reset,
}

struct Device {
    name: DeviceName,
    phase: Phase,
    since: Instant,
    reactor: usize,
    /// The kernel's question that is answered when the phase ends.
    ticket: Option<Ticket>,
    /// The device is to go as soon as its opening has ended.
    unwanted: bool,
    ring_resets: u32,
}

/// The daemon.
pub(crate) struct Daemon {
    registry: Arc<Registry>,
    sysfs: Sysfs,
    run_dir: RunDir,
    netlink: Netlink,
    reactors: Vec<ReactorHandle>,
    openers: BlockingPool,
    devices: HashMap<LunId, Device>,
    reporter: Reporter,
    reports: Receiver<Report>,
    signals: UnixStream,
    stopping: Option<Instant>,
}

impl Daemon {
    /// Takes the lock, starts the reactors, and begins to hear the kernel. Whoever waits for an
    /// answer of a daemon that is gone is let go with an error.
    pub(crate) fn start(registry: Registry, config: &Config) -> anyhow::Result<Self> {
        let sysfs = Sysfs::system();
        let run_dir = RunDir::lock()?;
        run_dir
            .note_handlers(registry.help().map(|(subtype, _)| subtype))
            .context("naming the handlers in /run")?;
        let signals = catch_signals()?;
        load_module(&sysfs);
        let (reports, inbox) = channel();
        let bell = Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?);
        let reporter = Reporter { reports, bell };

        // No event may come between the reset and the time when somebody listens.
        let module = sysfs.module();
        if module.is_loaded() {
            module
                .block_netlink(true)
                .context("blocking TCMU's netlink interface")?;
        }
        let netlink = release_predecessors_waiters(&sysfs).and_then(|()| Ok(Netlink::connect()?));
        let netlink = match netlink {
            Ok(netlink) => netlink,
            Err(error) => {
                if module.is_loaded() {
                    module.block_netlink(false).ok();
                }
                return Err(error);
            }
        };

        let reactors = (0..config.reactors())
            .map(|number| {
                let reporter = reporter.clone();
                let on_notice = Arc::new(move |notice| reporter.send(Report::Notice(notice)));
                ReactorHandle::start(
                    number,
                    BlockingPool::new(config.blocking_threads()),
                    on_notice,
                )
                .with_context(|| {
                    format!("starting reactor {number} (this needs io_uring, Linux 6.1 or later)")
                })
            })
            .collect::<anyhow::Result<Vec<_>>>();
        let reactors = match reactors {
            Ok(reactors) => reactors,
            Err(error) => {
                module.block_netlink(false).ok();
                return Err(error);
            }
        };
        Ok(Self {
            registry: Arc::new(registry),
            sysfs,
            run_dir,
            netlink,
            reactors,
            openers: BlockingPool::new(OPENERS),
            devices: HashMap::new(),
            reporter,
            reports: inbox,
            signals,
            stopping: None,
        })
    }

    /// Serves until a signal says to stop, and everything is in order.
    pub(crate) fn run(mut self) -> anyhow::Result<()> {
        self.resync().context("looking for devices")?;
        self.sysfs
            .module()
            .block_netlink(false)
            .context("unblocking TCMU's netlink interface")?;
        tracing::info!(
            reactors = self.reactors.len(),
            handlers = ?self.registry,
            devices = self.devices.len(),
            "ready"
        );
        loop {
            self.wait()?;
            self.give_up_openings();
            self.hear_signals()?;
            self.hear_kernel()?;
            self.hear_reports()?;
            if self.stopping.is_some() && self.devices.is_empty() {
                tracing::info!("stopped");
                return Ok(());
            }
        }
    }

    /// When the first opening takes too long that the kernel waits for.
    fn next_deadline(&self) -> Option<Instant> {
        let waited_for =
            |device: &&Device| matches!(device.phase, Phase::Opening) && device.ticket.is_some();
        self.devices
            .values()
            .filter(waited_for)
            .map(|device| device.since + OPENING_LIMIT)
            .min()
    }

    /// Refuses devices whose image takes too long to open: the kernel waits uninterruptibly.
    fn give_up_openings(&mut self) {
        let now = Instant::now();
        let mut late = Vec::new();
        for device in self.devices.values_mut() {
            if matches!(device.phase, Phase::Opening)
                && device.since + OPENING_LIMIT <= now
                && let Some(ticket) = device.ticket.take()
            {
                device.unwanted = true;
                tracing::error!(lun = device.name.name, "opening takes too long; refused");
                late.push(ticket);
            }
        }
        for ticket in late {
            self.reply(ticket, TIMED_OUT);
        }
    }

    /// Waits for something to do.
    fn wait(&self) -> anyhow::Result<()> {
        let mut watched = [
            PollFd::new(&self.netlink, PollFlags::IN),
            PollFd::new(&self.signals, PollFlags::IN),
            PollFd::new(&*self.reporter.bell, PollFlags::IN),
        ];
        let deadline = self
            .next_deadline()
            .map(|deadline| deadline.saturating_duration_since(Instant::now()));
        let patience = self.stopping.is_some().then_some(PATIENCE);
        let timeout = deadline.into_iter().chain(patience).min();
        let timeout = timeout.and_then(|timeout| Timespec::try_from(timeout).ok());
        match poll(&mut watched, timeout.as_ref()) {
            Ok(0) if self.stopping.is_some() => {
                let names: Vec<_> = self
                    .devices
                    .values()
                    .map(|device| &device.name.name)
                    .collect();
                tracing::warn!(luns = ?names, "still waiting for these to finish; a second signal ends the wait");
                Ok(())
            }
            Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
            Err(error) => Err(error).context("waiting for events"),
        }
    }

    fn hear_signals(&mut self) -> anyhow::Result<()> {
        let mut signals = [0; 16];
        let count = self.signals.read(&mut signals).unwrap_or(0);
        for _ in 0..count {
            if let Some(since) = self.stopping {
                anyhow::bail!(
                    "stopped by a second signal after {:?}; commands of {} LUNs were left in flight",
                    since.elapsed(),
                    self.devices.len()
                );
            }
            tracing::info!(
                luns = self.devices.len(),
                "stopping: finishing what is in flight"
            );
            self.stopping = Some(Instant::now());
            for id in self.devices.keys().copied().collect::<Vec<_>>() {
                self.detach(id, Next::Forget);
            }
        }
        Ok(())
    }

    fn hear_kernel(&mut self) -> anyhow::Result<()> {
        loop {
            match self.netlink.receive() {
                Ok(None) => return Ok(()),
                Ok(Some(Event::Added {
                    device,
                    minor,
                    ticket,
                })) => {
                    if let Some(name) = self.ours(&device) {
                        self.added(minor, name, ticket);
                    }
                }
                Ok(Some(Event::Removed {
                    device,
                    minor,
                    ticket,
                })) => {
                    if let Some(name) = self.ours(&device) {
                        self.removed(minor, &name, ticket);
                    }
                }
                Ok(Some(Event::Reconfigured {
                    device,
                    minor,
                    change,
                    ticket,
                })) => {
                    if self.ours(&device).is_some() {
                        self.reconfigured(minor, change, ticket);
                    }
                }
                Ok(Some(Event::Overflow)) => {
                    tracing::warn!("the kernel's events overflowed; looking for devices again");
                    self.resync().context("looking for devices")?;
                }
                Err(NetlinkError::Malformed(why)) => {
                    tracing::warn!(%why, "a netlink message was not understood");
                }
                Err(error) => return Err(error).context("hearing the kernel"),
            }
        }
    }

    /// The device's name, if a handler of ours serves it. Events of others are theirs to answer.
    fn ours(&self, device: &str) -> Option<DeviceName> {
        match device.parse::<DeviceName>() {
            Ok(name) if self.registry.serves(&name.subtype) => Some(name),
            Ok(name) => {
                tracing::debug!(device, subtype = name.subtype, "not ours");
                None
            }
            Err(error) => {
                tracing::debug!(device, %error, "not ours");
                None
            }
        }
    }

    fn added(&mut self, id: LunId, name: DeviceName, ticket: Ticket) {
        if self.stopping.is_some() {
            return self.reply(ticket, TRY_AGAIN);
        }
        match self.devices.get_mut(&id) {
            Some(Device {
                phase: Phase::Opening,
                ticket: waiting,
                ..
            }) => *waiting = Some(ticket),
            Some(Device {
                phase: Phase::Serving,
                ..
            }) => self.reply(ticket, 0),
            Some(Device {
                phase: Phase::Leaving { .. },
                ..
            }) => self.reply(ticket, TRY_AGAIN),
            None => self.open(id, name, Some(ticket), 0, false),
        }
    }

    fn removed(&mut self, id: LunId, name: &DeviceName, ticket: Ticket) {
        tracing::info!(lun = name.name, "removed");
        match self.devices.get_mut(&id) {
            None => self.reply(ticket, 0),
            Some(device) => {
                // An earlier question about the same device has nobody waiting any more.
                device.ticket = Some(ticket);
                self.detach(id, Next::Forget);
            }
        }
    }

    fn reconfigured(&mut self, id: LunId, change: Change, ticket: Ticket) {
        let Some(Device {
            phase: Phase::Serving,
            reactor,
            name,
            ..
        }) = self.devices.get(&id)
        else {
            let known = self.devices.contains_key(&id);
            return self.reply(ticket, if known { TRY_AGAIN } else { NO_DEVICE });
        };
        let reporter = self.reporter.clone();
        let done: Box<dyn FnOnce(Ticket) -> Done> = Box::new(move |ticket| {
            Box::new(move |result| reporter.send(Report::Changed { id, ticket, result }))
        });
        let message = match change {
            Change::Size(size) => {
                tracing::info!(lun = name.name, size, "resizing");
                Message::Resize {
                    id,
                    size,
                    done: done(ticket),
                }
            }
            Change::WriteCache(enabled) => {
                tracing::info!(lun = name.name, enabled, "switching the write cache");
                Message::SetWriteCache {
                    id,
                    enabled,
                    done: done(ticket),
                }
            }
            Change::Config(config) => {
                tracing::warn!(
                    lun = name.name,
                    config,
                    "refused: a LUN cannot get another image while it is served; delete and create it"
                );
                return self.reply(ticket, NOT_SUPPORTED);
            }
            Change::Unknown => return self.reply(ticket, NOT_SUPPORTED),
        };
        self.reactors[*reactor].send(message);
    }

    /// Opens a device's image on another thread, and has a reactor serve it then.
    fn open(
        &mut self,
        id: LunId,
        name: DeviceName,
        ticket: Option<Ticket>,
        ring_resets: u32,
        reset: bool,
    ) {
        let drained = self.run_dir.take_drained(&name);
        tracing::info!(
            lun = name.name,
            subtype = name.subtype,
            config = name.config,
            "opening"
        );
        let reactor = self.least_busy_reactor();
        let device = Device {
            name,
            phase: Phase::Opening,
            since: Instant::now(),
            reactor,
            ticket,
            unwanted: false,
            ring_resets,
        };
        self.devices.insert(id, device);
        let (registry, sysfs) = (Arc::clone(&self.registry), self.sysfs.clone());
        let reporter = self.reporter.clone();
        self.openers.run(Box::new(move || {
            let reset = match (reset, drained) {
                (true, _) => Reset::Always,
                (false, true) => Reset::Never,
                (false, false) => Reset::IfInUse,
            };
            let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                open_device(&registry, &sysfs, id, reset)
            }));
            let result = result.unwrap_or_else(|_| {
                Err(Error::new(
                    tcmu_handler::ErrorKind::Internal,
                    "the handler panicked",
                ))
            });
            reporter.send(Report::Opened { id, result });
        }));
    }

    fn least_busy_reactor(&self) -> usize {
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
    fn detach(&mut self, id: LunId, next: Next) {
        let Some(device) = self.devices.get_mut(&id) else {
            return;
        };
        match &mut device.phase {
            Phase::Opening => device.unwanted = true,
            Phase::Leaving { then } => {
                if next == Next::Forget {
                    *then = Next::Forget;
                }
            }
            Phase::Serving => {
                device.phase = Phase::Leaving { then: next };
                let reporter = self.reporter.clone();
                let done: Done =
                    Box::new(move |result| reporter.send(Report::Detached { id, result }));
                self.reactors[device.reactor].send(Message::Detach { id, done });
            }
        }
    }

    fn hear_reports(&mut self) -> anyhow::Result<()> {
        // EAGAIN: the bell was silent.
        let _ = rustix::io::read(&*self.reporter.bell, &mut [0u8; 8]);
        while let Ok(report) = self.reports.try_recv() {
            match report {
                Report::Opened { id, result } => self.opened(id, result),
                Report::Attached { id, result } => self.attached(id, result),
                Report::Detached { id, result } => self.detached(id, result),
                Report::Changed { id, ticket, result } => self.changed(id, ticket, result),
                Report::Notice(Notice::Gone(id)) => {
                    if let Some(device) = self.devices.get(&id) {
                        tracing::warn!(lun = device.name.name, "the device vanished");
                    }
                    self.detach(id, Next::Forget);
                }
                Report::Notice(Notice::Broken(id)) => self.detach(id, Next::Reset),
                Report::Notice(Notice::Failed) => anyhow::bail!("a reactor failed"),
            }
        }
        Ok(())
    }

    fn opened(&mut self, id: LunId, result: Result<MakeLun, Error>) {
        let Some(device) = self.devices.get(&id) else {
            return;
        };
        match result {
            Ok(_) if device.unwanted => self.forget(id, TRY_AGAIN),
            Ok(make) => {
                let reporter = self.reporter.clone();
                let done: Done =
                    Box::new(move |result| reporter.send(Report::Attached { id, result }));
                self.reactors[device.reactor].send(Message::Attach { id, make, done });
            }
            Err(error) => {
                tracing::error!(lun = device.name.name, config = device.name.config, %error, "cannot be opened");
                self.forget(id, -error.errno());
            }
        }
    }

    fn attached(&mut self, id: LunId, result: Result<(), Error>) {
        let Some(device) = self.devices.get_mut(&id) else {
            return;
        };
        match result {
            Ok(()) => {
                device.phase = Phase::Serving;
                tracing::info!(lun = device.name.name, reactor = device.reactor, "serving");
                if device.unwanted {
                    self.detach(id, Next::Forget);
                } else if let Some(ticket) = device.ticket.take() {
                    self.reply(ticket, 0);
                }
            }
            Err(error) => {
                tracing::error!(lun = device.name.name, %error, "cannot be served");
                self.forget(id, -error.errno());
            }
        }
    }

    fn detached(&mut self, id: LunId, result: Result<(), Error>) {
        let Some(device) = self.devices.get(&id) else {
            return;
        };
        if let Err(error) = &result {
            tracing::error!(lun = device.name.name, %error, "closing the image failed; what was not flushed may be lost");
        }
        let reset = matches!(device.phase, Phase::Leaving { then: Next::Reset });
        if !reset {
            if self.stopping.is_some()
                && let Err(error) = self.run_dir.note_drained(&device.name)
            {
                tracing::warn!(lun = device.name.name, %error, "the next daemon will have to reset this LUN's ring");
            }
            return self.forget(id, 0);
        }
        let Some(device) = self.devices.remove(&id) else {
            return;
        };
        if device.ring_resets >= RING_RESETS {
            tracing::error!(
                lun = device.name.name,
                "the command ring was damaged again; this LUN is not served until tcmu-runner is restarted"
            );
            if let Some(ticket) = device.ticket {
                self.reply(ticket, 0);
            }
        } else {
            tracing::warn!(lun = device.name.name, "resetting the command ring");
            self.open(id, device.name, device.ticket, device.ring_resets + 1, true);
        }
    }

    fn changed(&mut self, id: LunId, ticket: Ticket, result: Result<(), Error>) {
        let status = match (result, self.devices.get(&id)) {
            (Ok(()), _) => 0,
            (Err(error), Some(device)) => {
                tracing::error!(lun = device.name.name, %error, "the change was refused");
                -error.errno()
            }
            (Err(_), None) => NO_DEVICE,
        };
        self.reply(ticket, status);
    }

    /// The device is not served any more; tells the kernel `status` if it waits.
    fn forget(&mut self, id: LunId, status: i32) {
        if let Some(Device {
            ticket: Some(ticket),
            ..
        }) = self.devices.remove(&id)
        {
            self.reply(ticket, status);
        }
    }

    fn reply(&self, ticket: Ticket, status: i32) {
        match self.netlink.reply(ticket, status) {
            Ok(Delivery::Accepted | Delivery::NobodyWaited) => {}
            Err(error) => tracing::error!(%error, "the kernel did not take an answer"),
        }
    }

    /// Serves the devices that are there and are not served yet.
    fn resync(&mut self) -> std::io::Result<()> {
        for device in self.sysfs.scan()? {
            let known = self.devices.contains_key(&device.minor);
            if !known && self.registry.serves(&device.name.subtype) && self.stopping.is_none() {
                self.open(device.minor, device.name, None, 0, false);
            }
        }
        Ok(())
    }
}

/// Whether the commands in a ring have to be given back to the kernel before it can be served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reset {
    Always,
    /// Unless it is empty: some of what stands in it may have been done by a predecessor that died.
    IfInUse,
    /// What stands in it was never fetched.
    Never,
}

fn open_device(
    registry: &Registry,
    sysfs: &Sysfs,
    id: LunId,
    reset: Reset,
) -> Result<MakeLun, Error> {
    let device = sysfs
        .device(id)
        .map_err(|error| Error::os("looking at the device", error))?;
    let uio = Uio::open(&device).map_err(|error| Error::os("opening the device", error))?;
    let mapping = uio
        .map()
        .map_err(|error| Error::os("mapping the device", error))?;
    let mapping = Arc::new(mapping);
    let backstore = sysfs.backstore(uio.name());
    let in_use = || Ring::new(Arc::clone(&mapping)).map_or(true, |ring| ring.has_new());
    if reset == Reset::Always || (reset == Reset::IfInUse && in_use()) {
        tracing::warn!(
            lun = uio.name().name,
            "commands were in flight; initiators repeat them"
        );
        let reset = backstore
            .set_blocked(true)
            .and_then(|()| backstore.reset_ring(ResetVerdict::Busy));
        let unblocked = backstore.set_blocked(false);
        reset
            .and(unblocked)
            .map_err(|error| Error::os("resetting the command ring", error))?;
    }
    registry.open(OpenDevice {
        uio,
        mapping,
        backstore,
    })
}

/// Lets go whoever waits for the answer of a daemon that is gone.
fn release_predecessors_waiters(sysfs: &Sysfs) -> anyhow::Result<()> {
    let module = sysfs.module();
    if module.is_loaded() {
        module
            .reset_netlink()
            .context("resetting TCMU's netlink interface")?;
    }
    Ok(())
}

/// SIGTERM and SIGINT, as bytes in a stream.
fn catch_signals() -> anyhow::Result<UnixStream> {
    let (read, write) = UnixStream::pair()?;
    read.set_nonblocking(true)?;
    for signal in [signal_hook::consts::SIGTERM, signal_hook::consts::SIGINT] {
        signal_hook::low_level::pipe::register(signal, write.try_clone()?)?;
    }
    Ok(read)
}

/// Loads the kernel module where it is one and is not loaded; that it cannot be is reported by
/// whoever needs it.
fn load_module(sysfs: &Sysfs) {
    if !sysfs.module().is_loaded() {
        let result = Command::new("modprobe")
            .args(["--quiet", "target_core_user"])
            .status();
        tracing::debug!(?result, "modprobe target_core_user");
    }
}
