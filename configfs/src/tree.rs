//! The handle on LIO's tree: where it is, how long to wait, and the one way to change it.

use std::fmt;
use std::fs::FileType;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use crate::change::{self, Change, Helpers, Isolation, Kernel, RealKernel};
use crate::error::{Error, Result};
use crate::roots::Roots;

/// How long one change may wait in the kernel, unless [`Tree::with_time_limit`] says otherwise.
pub const DEFAULT_TIME_LIMIT: Duration = Duration::from_secs(30);

/// How long "try again" from a blocked netlink interface is believed.
const BLOCKED_LIMIT: Duration = Duration::from_secs(10);

/// How long a change that was rescued may take to come back.
const RESCUE_GRACE: Duration = Duration::from_secs(5);

/// After this long, the person waiting is told for what, and again each time it has passed.
const PATIENCE: Duration = Duration::from_secs(3);

/// How often a wait looks up.
const TICK: Duration = Duration::from_millis(100);

type Progress = Arc<dyn Fn(&str) + Send + Sync>;

/// LIO's tree, and how this program deals with it.
///
/// ```no_run
/// use tcmu_configfs::{BackstoreSpec, DeleteOptions, Tree};
///
/// let tree = Tree::system();
/// let spec = BackstoreSpec::new("disk0", "file", "/srv/disk0.img").size(1 << 30).loopback();
/// let disk = tree.create(&spec)?;
/// println!("{}", disk.block_devices().next().expect("exported on loopback").display());
/// tree.delete("disk0", &DeleteOptions::default())?;
/// # Ok::<(), tcmu_configfs::Error>(())
/// ```
#[derive(Clone)]
pub struct Tree {
    pub(crate) roots: Roots,
    pub(crate) time_limit: Duration,
    pub(crate) daemon_check: bool,
    kernel: Arc<dyn Kernel>,
    isolation: Isolation,
    progress: Progress,
    interrupt: Arc<AtomicBool>,
}

impl fmt::Debug for Tree {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tree")
            .field("roots", &self.roots)
            .field("time_limit", &self.time_limit)
            .field("daemon_check", &self.daemon_check)
            .field("isolation", &self.isolation)
            .finish_non_exhaustive()
    }
}

/// What to do for a change that may wait in the kernel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Guard {
    /// It never waits: make it here.
    Quick,
    /// It may wait for something that we cannot end.
    Bounded,
    /// It waits for the daemon's answer by netlink: failing all netlink waits ends it.
    Netlink,
    /// It waits for SCSI commands of this backstore: after `patience`, failing what is in its ring
    /// ends it.
    Ring {
        backstore: PathBuf,
        patience: Duration,
    },
}

impl Guard {
    /// What a change under this guard waits for.
    fn awaits(&self) -> &'static str {
        match self {
            Guard::Quick | Guard::Bounded => "the kernel",
            Guard::Netlink => "the daemon's answer",
            Guard::Ring { .. } => "the LUN's outstanding commands",
        }
    }
}

impl Tree {
    /// This machine's tree.
    pub fn system() -> Self {
        Self::at(Roots::system())
    }

    /// The tree at other places: for tests.
    pub fn at(roots: Roots) -> Self {
        Tree {
            roots,
            time_limit: DEFAULT_TIME_LIMIT,
            daemon_check: true,
            kernel: Arc::new(RealKernel),
            isolation: Isolation::Thread,
            progress: Arc::new(|_| {}),
            interrupt: Arc::new(AtomicBool::new(false)),
        }
    }

    /// Bounds each single wait: for the daemon's answers, and for the disk to appear.
    pub fn with_time_limit(mut self, limit: Duration) -> Self {
        self.time_limit = limit;
        self
    }

    /// Trusts that somebody serves TCMU, rather than looking for a daemon first.
    pub fn without_daemon_check(mut self) -> Self {
        self.daemon_check = false;
        self
    }

    /// Makes the changes that may block in processes of `program`, which must call
    /// [`helper`](crate::helper) when its first argument is
    /// [`HELPER_ARGUMENT`](crate::HELPER_ARGUMENT).
    ///
    /// Otherwise they are made in threads of this process; one that the kernel never lets go then
    /// keeps the process from ending.
    pub fn in_processes(mut self, program: impl Into<PathBuf>) -> Self {
        self.isolation = Isolation::Process(Helpers::of(program.into()));
        self
    }

    /// Hears of long waits and of what the user should know, one sentence each.
    pub fn with_progress(mut self, progress: impl Fn(&str) + Send + Sync + 'static) -> Self {
        self.progress = Arc::new(progress);
        self
    }

    /// Ends waits and undoes what was begun once `flag` is set, as by a signal.
    pub fn with_interrupt(mut self, flag: Arc<AtomicBool>) -> Self {
        self.interrupt = flag;
        self
    }

    #[cfg(test)]
    pub(crate) fn with_kernel(mut self, kernel: Arc<dyn Kernel>) -> Self {
        self.kernel = kernel;
        self
    }

    pub(crate) fn tell(&self, text: &str) {
        (self.progress)(text);
    }

    pub(crate) fn check_interrupt(&self) -> Result<()> {
        if self.interrupt.load(Ordering::Relaxed) {
            Err(Error::Interrupted)
        } else {
            Ok(())
        }
    }

    /// Makes a change that never waits.
    pub(crate) fn apply(&self, change: Change) -> Result<()> {
        self.attempt(&change, &Guard::Quick)?
            .map_err(|e| Error::kernel(change.to_string(), e))
    }

    /// Makes a change under a guard.
    pub(crate) fn apply_guarded(&self, change: Change, guard: &Guard) -> Result<()> {
        self.attempt(&change, guard)?
            .map_err(|e| Error::kernel(change.to_string(), e))
    }

    /// Makes a change under a guard and hands back the kernel's own verdict; the outer error says
    /// that there was none in time.
    pub(crate) fn attempt(&self, change: &Change, guard: &Guard) -> Result<io::Result<()>> {
        if *guard == Guard::Quick {
            return Ok(self.kernel.apply(change));
        }
        let result = change::start(&self.kernel, &self.isolation, change)
            .map_err(|e| Error::kernel("start a helper", e))?;
        match self.wait_for(&result, change, guard) {
            Wait::Done(verdict) => Ok(verdict),
            Wait::GaveUp(why) => self.rescue(&result, change, guard, why),
        }
    }

    /// As [`Tree::attempt`], repeated while the kernel says that netlink is blocked (EAGAIN), that
    /// a starting daemon swept the request away (EINTR), or that the uio device's name is still
    /// taken by one that is just going (EEXIST: `uio_unregister_device` of drivers/uio/uio.c gives
    /// the number back before the name).
    pub(crate) fn attempt_until_unblocked(
        &self,
        change: &Change,
        guard: &Guard,
    ) -> Result<io::Result<()>> {
        let begin = Instant::now();
        let limit = BLOCKED_LIMIT.min(self.time_limit);
        let mut told = false;
        loop {
            let verdict = self.attempt(change, guard)?;
            let blocked = match verdict.as_ref().map_err(io::Error::kind) {
                Err(io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => true,
                Err(io::ErrorKind::AlreadyExists) => false,
                _ => return Ok(verdict),
            };
            if begin.elapsed() >= limit {
                if !blocked {
                    return Ok(verdict);
                }
                return Err(Error::Blocked {
                    seconds: limit.as_secs(),
                    parameter: self
                        .roots
                        .tcmu_parameter("block_netlink")
                        .display()
                        .to_string(),
                });
            }
            if blocked && !told {
                self.tell(
                    "waiting: a daemon is starting or stopping, and takes no new devices yet",
                );
                told = true;
            }
            self.pause(TICK)?;
        }
    }

    /// Waits for `check` to find something; `None` if it did not within the time limit.
    pub(crate) fn poll<T>(
        &self,
        what: &str,
        limit: Duration,
        mut check: impl FnMut() -> Result<Option<T>>,
    ) -> Result<Option<T>> {
        let begin = Instant::now();
        let mut next_note = PATIENCE;
        let mut nap = Duration::from_millis(5);
        loop {
            if let Some(found) = check()? {
                return Ok(Some(found));
            }
            let passed = begin.elapsed();
            if passed >= limit {
                return Ok(None);
            }
            if passed >= next_note {
                self.tell(&format!(
                    "still waiting for {what} ({} s)",
                    passed.as_secs()
                ));
                next_note += PATIENCE;
            }
            self.pause(nap)?;
            nap = (nap * 2).min(TICK);
        }
    }

    fn pause(&self, nap: Duration) -> Result<()> {
        self.check_interrupt()?;
        thread::sleep(nap);
        Ok(())
    }

    fn wait_for(&self, result: &Receiver<io::Result<()>>, change: &Change, guard: &Guard) -> Wait {
        let begin = Instant::now();
        let mut next_note = PATIENCE;
        loop {
            match result.recv_timeout(TICK) {
                Ok(verdict) => return Wait::Done(verdict),
                Err(RecvTimeoutError::Disconnected) => {
                    return Wait::Done(Err(io::Error::other("the helper thread died")));
                }
                Err(RecvTimeoutError::Timeout) => {}
            }
            let passed = begin.elapsed();
            if passed >= next_note {
                self.tell(&format!(
                    "still waiting for {} ({} s)",
                    guard.awaits(),
                    passed.as_secs()
                ));
                next_note += PATIENCE;
            }
            if let Guard::Ring {
                backstore,
                patience,
            } = guard
                && passed >= *patience
            {
                self.fail_ring(backstore);
            }
            if passed >= self.time_limit {
                return Wait::GaveUp(Why::Limit);
            }
            // What undoes or removes goes on: only its own end leaves the tree in order.
            let removes = matches!(change, Change::Unlink(_) | Change::RemoveDir(_));
            if !removes && self.interrupt.load(Ordering::Relaxed) {
                return Wait::GaveUp(Why::Interrupt);
            }
        }
    }

    /// Gets a change out of the kernel that overstayed.
    fn rescue(
        &self,
        result: &Receiver<io::Result<()>>,
        change: &Change,
        guard: &Guard,
        why: Why,
    ) -> Result<io::Result<()>> {
        let begin = Instant::now();
        while begin.elapsed() < RESCUE_GRACE {
            match guard {
                Guard::Netlink => self.fail_netlink_waits(),
                Guard::Ring { backstore, .. } => self.fail_ring(backstore),
                Guard::Quick | Guard::Bounded => {}
            }
            match result.recv_timeout(TICK) {
                // The answer came at the last moment after all.
                Ok(Ok(())) => return Ok(Ok(())),
                Ok(Err(_)) if why == Why::Interrupt => return Err(Error::Interrupted),
                Ok(Err(_)) => {
                    return Err(self.timed_out(
                        change,
                        "the daemon does not answer, so the request was withdrawn from the kernel",
                    ));
                }
                Err(RecvTimeoutError::Disconnected) => break,
                Err(RecvTimeoutError::Timeout) => {}
            }
            if *guard == Guard::Bounded {
                break;
            }
        }
        Err(self.timed_out(
            change,
            "the kernel still waits for the daemon and cannot be made to give up: see whether the \
             daemon works, or start it again",
        ))
    }

    fn timed_out(&self, change: &Change, note: &str) -> Error {
        Error::TimedOut {
            what: format!("trying to {change}"),
            seconds: self.time_limit.as_secs(),
            note: format!("{note}. {} may say more", crate::daemon::LOG_HINT),
        }
    }

    /// Fails every netlink request that waits for a daemon's answer. All others that wait at this
    /// moment are failed with it, and try again.
    fn fail_netlink_waits(&self) {
        let block = self.roots.tcmu_parameter("block_netlink");
        let reset = self.roots.tcmu_parameter("reset_netlink");
        // A starting daemon blocks netlink too; its block must stay.
        let was_blocked = self.read(&block).is_ok_and(|text| text == "blocked");
        let write = |path: &Path, value: &str| {
            self.kernel
                .apply(&Change::Write(path.to_owned(), value.to_owned()))
        };
        let mut outcome = write(&block, "1").and_then(|()| write(&reset, "1"));
        if !was_blocked {
            outcome = outcome.and(write(&block, "0"));
        }
        if let Err(error) = outcome {
            self.tell(&format!("cannot reset TCMU's netlink interface: {error}"));
        }
    }

    /// Fails every command in a backstore's ring with CHECK CONDITION.
    fn fail_ring(&self, backstore: &Path) {
        let reset = Change::Write(backstore.join("action/reset_ring"), "2".to_owned());
        // Absent before `enable` and for other kinds of backstore: there is nothing to fail then.
        let _ = self.kernel.apply(&reset);
    }

    /// An attribute's text without its final newline.
    pub(crate) fn read(&self, path: &Path) -> Result<String> {
        let bytes = std::fs::read(path)
            .map_err(|e| Error::kernel(format!("read {}", path.display()), e))?;
        let text = String::from_utf8_lossy(&bytes);
        Ok(text.strip_suffix('\n').unwrap_or(&text).to_owned())
    }

    /// An attribute's text, if it is there and readable.
    pub(crate) fn read_if_any(&self, path: &Path) -> Option<String> {
        self.read(path).ok()
    }

    /// The names in a folder, sorted; none if the folder is not there.
    pub(crate) fn names(&self, folder: &Path) -> Result<Vec<String>> {
        self.entries(folder, |_| true)
    }

    /// The folders in a folder, sorted by name.
    pub(crate) fn folders(&self, folder: &Path) -> Result<Vec<PathBuf>> {
        let names = self.entries(folder, FileType::is_dir)?;
        Ok(names.into_iter().map(|name| folder.join(name)).collect())
    }

    /// The symbolic links in a folder, sorted by name.
    pub(crate) fn links(&self, folder: &Path) -> Result<Vec<PathBuf>> {
        let names = self.entries(folder, FileType::is_symlink)?;
        Ok(names.into_iter().map(|name| folder.join(name)).collect())
    }

    fn entries(&self, folder: &Path, wanted: impl Fn(&FileType) -> bool) -> Result<Vec<String>> {
        let failed = |e| Error::kernel(format!("list {}", folder.display()), e);
        let entries = match std::fs::read_dir(folder) {
            Ok(entries) => entries,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(e) => return Err(failed(e)),
        };
        let mut names = Vec::new();
        for entry in entries {
            match entry.and_then(|entry| Ok((entry.file_type()?, entry.file_name()))) {
                Ok((kind, name)) if wanted(&kind) => names.extend(name.into_string()),
                Ok(_) => {}
                // Removed while we looked.
                Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                Err(e) => return Err(failed(e)),
            }
        }
        names.sort();
        Ok(names)
    }
}

enum Wait {
    Done(io::Result<()>),
    GaveUp(Why),
}

#[derive(PartialEq, Eq)]
enum Why {
    Limit,
    Interrupt,
}
