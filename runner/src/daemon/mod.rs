//! The daemon: which devices there are, and who serves them.
//!
//! One thread hears the kernel (netlink), the signals, and what openers and reactors report. It never
//! blocks on a backstore: images are opened on a pool of threads, and everything about a LUN that is
//! attached happens on its reactor.

pub(crate) mod board;
mod device;
mod devices;
mod drains;
mod enabling;
#[cfg(feature = "kill-points")]
mod hold_points;
mod images;
mod insight;
mod medium;
mod open;
mod petition;
mod petitions;
mod reload;
mod report;
mod system;
mod trials;
mod watchdog;

use std::collections::HashMap;
use std::io::Read;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use anyhow::Context;
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use tcmu::discovery::{DeviceName, Sysfs};
use tcmu::netlink::{Event, Netlink, NetlinkError};

pub(crate) use self::petition::{DrainRequest, LONGEST_HOLD, MediumChange, Petition, Petitioner};

use self::board::Board;
use self::device::{Device, Next, Phase};
use self::drains::Drains;
use self::open::Opener;
use self::report::{Report, Reporter};
use self::system::{catch_signals, load_module, release_predecessors_waiters};
use self::trials::Trials;
use self::watchdog::Watchdog;
use crate::config::Settings;
use crate::copy::{ConfigfsAccess, Directory};
use crate::dbus;
use crate::guardian;
use crate::metrics;
use crate::reactor::{BlockingPool, LunId, Message, ReactorHandle};
use crate::refusals::Refusals;
use crate::registry::Registry;
use crate::run_dir::RunDir;
use crate::service_manager;
use crate::slow_log::SlowLimit;

/// How many images are opened at once.
const OPENERS: usize = 16;

/// How often a shutdown says what it is waiting for.
const PATIENCE: Duration = Duration::from_secs(5);

/// `EOPNOTSUPP`, `EAGAIN`, `EBUSY`, `ENODEV` and `ETIMEDOUT` as answers to the kernel.
const NOT_SUPPORTED: i32 = -95;
const TRY_AGAIN: i32 = -11;
const BUSY: i32 = -16;
const NO_DEVICE: i32 = -19;
const TIMED_OUT: i32 = -110;

/// The daemon.
pub(crate) struct Daemon {
    opener: Opener,
    run_dir: RunDir,
    netlink: Netlink,
    reactors: Vec<ReactorHandle>,
    openers: BlockingPool,
    devices: HashMap<LunId, Device>,
    /// How many openings were begun.
    openings: u64,
    reporter: Reporter,
    reports: Receiver<Report>,
    signals: UnixStream,
    board: Arc<Board>,
    refusals: Refusals,
    /// Handlers in other processes.
    externals: Arc<dbus::Externals>,
    settings: Settings,
    reload_requests: UnixStream,
    watchdog: Option<Watchdog>,
    stopping: Option<Instant>,
    trials: Trials,
    drains: Drains,
    slow_limit: Arc<SlowLimit>,
    metrics: Option<metrics::Server>,
    /// Where copies find LUNs.
    directory: Arc<Directory>,
    /// No image is opened: all commands are answered with NOT READY.
    offline: bool,
}

impl Daemon {
    /// Takes the lock, starts the reactors, and begins to hear the kernel. Whoever waits for an
    /// answer of a daemon that is gone is let go with an error.
    ///
    /// If it is to be `offline`, it opens no image and takes no new LUNs.
    pub(crate) fn start(
        mut registry: Registry,
        mut settings: Settings,
        offline: bool,
    ) -> anyhow::Result<Self> {
        let sysfs = Sysfs::system();
        let run_dir = RunDir::lock(&sysfs.module())?;
        for (subtype, handler) in &settings.config().handlers {
            if !handler.is_enabled() {
                registry.remove(subtype);
            }
        }
        let handlers = registry.help().filter(|_| !offline);
        if let Err(error) = run_dir.note_handlers(handlers.map(|(subtype, _)| subtype)) {
            tracing::warn!(%error, "tcmuctl does not learn which handlers there are: is /run full?");
        }
        let signals = catch_signals()?;
        let reload_requests = reload::requests(&mut settings)?;
        let config = settings.config();
        reload::configure_handlers(&registry, config);
        load_module(&sysfs);
        let (reports, inbox) = channel();
        let bell = Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?);
        let reporter = Reporter { reports, bell };

        // After a predecessor's guardian, which may have netlink blocked.
        let guarded = run_dir.guard().and_then(|lock| Ok(guardian::start(lock)?));
        if let Err(error) = guarded {
            tracing::warn!(
                error = format!("{error:#}"),
                "no guardian: if tcmu-runner is killed at the very moment when a LUN is created, changed \
                 or deleted, it may stay a zombie until the next one starts"
            );
        }
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

        let directory = Directory::new(ConfigfsAccess::at(sysfs.target()));
        let slow_limit = Arc::<SlowLimit>::default();
        let reactors = (0..config.reactors())
            .map(|number| {
                let reporter = reporter.clone();
                let on_notice = Arc::new(move |notice| reporter.send(Report::Notice(notice)));
                ReactorHandle::start(
                    number,
                    BlockingPool::new(config.blocking_threads()),
                    on_notice,
                    Arc::clone(&directory),
                    Arc::clone(&slow_limit),
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
        let mut daemon = Self {
            opener: Opener {
                registry: Arc::new(registry),
                sysfs,
                tables: run_dir.tables(),
            },
            refusals: run_dir.refusals(),
            run_dir,
            netlink,
            reactors,
            openers: BlockingPool::new(OPENERS),
            devices: HashMap::new(),
            openings: 0,
            reporter,
            reports: inbox,
            signals,
            board: Arc::default(),
            externals: Arc::default(),
            settings,
            reload_requests,
            watchdog: Watchdog::start(),
            stopping: None,
            trials: Trials::default(),
            drains: Drains::default(),
            slow_limit,
            metrics: None,
            directory,
            offline,
        };
        daemon.show_as_configured();
        Ok(daemon)
    }

    /// Serves until a signal says to stop, and everything is in order; offers the D-Bus service
    /// meanwhile if `on_bus`.
    pub(crate) fn run(mut self, on_bus: bool) -> anyhow::Result<()> {
        self.resync().context("looking for devices")?;
        self.opener
            .sysfs
            .module()
            .block_netlink(false)
            .context("unblocking TCMU's netlink interface")?;
        // Images are still being opened, and new devices are answered from now on. Who finds the name
        // on the bus can use it.
        let _service = (on_bus && !self.offline)
            .then(|| self.offer_on_bus())
            .transpose()
            .context("starting the D-Bus service")?;
        tracing::info!(
            reactors = self.reactors.len(),
            handlers = ?self.opener.registry,
            devices = self.devices.len(),
            "ready"
        );
        let mut luns = self.devices.len();
        service_manager::ready(luns);
        loop {
            self.wait()?;
            if let Some(watchdog) = &mut self.watchdog {
                watchdog.round(&self.reactors);
            }
            self.give_up_openings();
            self.give_up_drains();
            self.tend_images();
            self.hear_reload_requests();
            self.hear_signals()?;
            self.hear_kernel()?;
            self.hear_reports()?;
            // Also of LUNs that have just gone.
            self.end_drains();
            self.hold_trials();
            if self.stopping.is_some() && self.devices.is_empty() {
                tracing::info!("stopped");
                return Ok(());
            }
            if self.devices.len() != luns && self.stopping.is_none() {
                luns = self.devices.len();
                service_manager::luns(luns);
            }
        }
    }

    /// When the first opening takes too long that the kernel waits for.
    fn next_deadline(&self) -> Option<Instant> {
        let since = self.devices.values().filter_map(Device::waited_for_since);
        Some(since.min()? + self.settings.config().opening_limit())
    }

    /// Refuses devices whose image takes too long to open: the kernel waits uninterruptibly.
    fn give_up_openings(&mut self) {
        let (now, limit) = (Instant::now(), self.settings.config().opening_limit());
        let mut late = Vec::new();
        for device in self.devices.values_mut() {
            if let Some(overdue) = device.successor.take_if(|next| next.since + limit <= now) {
                let why = "the device that had its number before is still being closed";
                late.push((overdue.name, overdue.ticket, why));
            }
            if matches!(device.phase, Phase::Opening)
                && device.since + limit <= now
                && let Some(ticket) = device.ticket.take()
            {
                device.unwanted.set();
                let why = "opening its image takes too long";
                late.push((device.name.clone(), ticket, why));
            }
        }
        for (name, ticket, why) in late {
            tracing::error!(lun = name.name, "refused: {why}");
            self.refusals.note(&name, why);
            self.reply(ticket, TIMED_OUT);
        }
    }

    /// When the first removal takes too long.
    fn next_drain(&self) -> Option<Instant> {
        self.devices.values().filter_map(Device::drained_by).min()
    }

    /// Lets go of devices that the kernel removes although their backstore does not answer: the kernel
    /// waits uninterruptibly, and nobody waits for the commands any more.
    fn give_up_drains(&mut self) {
        let now = Instant::now();
        let late = |device: &Device| device.drained_by().is_some_and(|limit| limit <= now);
        let late: Vec<_> = self.devices.extract_if(|_, device| late(device)).collect();
        for (id, device) in late {
            tracing::error!(
                lun = device.name.name,
                stuck = device.stuck,
                "the LUN is removed although its image still works on commands; the image stays open \
                 until it has finished them"
            );
            self.reactors[device.reactor].send(Message::Abandon { id });
            self.opener.tables.remove(&device.name);
            if let Some(ticket) = device.ticket {
                self.reply(ticket, 0);
            }
            if let Some(successor) = device.successor {
                self.succeed(id, successor);
            }
        }
    }

    /// Waits for something to do.
    fn wait(&self) -> anyhow::Result<()> {
        let mut watched = vec![
            PollFd::new(&self.netlink, PollFlags::IN),
            PollFd::new(&self.signals, PollFlags::IN),
            PollFd::new(&self.reload_requests, PollFlags::IN),
            PollFd::new(&*self.reporter.bell, PollFlags::IN),
        ];
        watched.extend(self.drains.watched());
        let deadlines = [
            self.next_deadline(),
            self.next_drain(),
            self.drains.next_end(),
            self.next_trial(),
            self.next_image(),
            self.watchdog.as_ref().map(Watchdog::due),
        ];
        let deadline = deadlines.into_iter().flatten().min();
        let deadline = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
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
            service_manager::stopping();
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
            Ok(name) if self.opener.registry.serves(&name.subtype) => Some(name),
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
}
