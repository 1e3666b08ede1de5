//! From a device in sysfs to a LUN that a reactor can serve.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use tcmu::configfs::{BackstoreDir, ResetVerdict};
use tcmu::discovery::{Device, Sysfs};
use tcmu::mapping::Mapping;
use tcmu::ring::Ring;
use tcmu::ring::recovery::Table;
use tcmu::uio::Uio;
use tcmu_handler::{Error, ErrorKind};

#[cfg(feature = "kill-points")]
use super::hold_points;
use crate::meter::Meter;
use crate::reactor::{LunId, Recovered};
use crate::recovery::{CrashLoop, Found, Tables, Verdict};
use crate::registry::{OpenDevice, Registry};

/// How long a device may be open after the process has ended that had it, and how often it is tried.
const RELEASE: Duration = Duration::from_secs(10);
const RELEASE_POLL: Duration = Duration::from_millis(1);

/// What to make of what a predecessor left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Inheritance {
    /// Go on with it, unless the LUN is suspected of having brought daemons down.
    Judge,
    /// Go on with it: the LUN is on trial, or its commands are only to be answered.
    GoOn,
    /// Give the commands in the ring back to their initiators: the ring is damaged.
    Refuse,
}

/// A device that is ours, without its image yet.
pub(super) struct Taken {
    pub(super) device: OpenDevice,
    pub(super) crash_loop: Option<CrashLoop>,
    pub(super) verdict: Verdict,
    /// How many commands run again.
    pub(super) in_flight: usize,
}

/// What `open` returns, with a panic of a handler's made an error.
pub(super) fn guarded<T>(open: impl FnOnce() -> Result<T, Error>) -> Result<T, Error> {
    catch_unwind(AssertUnwindSafe(open))
        .unwrap_or_else(|_| Err(Error::new(ErrorKind::Internal, "the handler panicked")))
}

/// What `open` returns, once nobody else has open what it opens. A daemon that was killed has its
/// devices open a little longer than it lives: until the kernel has taken its io_urings apart
/// (`io_ring_exit_work` in io_uring/io_uring.c).
fn once_released<T>(mut open: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    let begin = Instant::now();
    loop {
        match open() {
            Err(error)
                if error.kind() == io::ErrorKind::ResourceBusy && begin.elapsed() < RELEASE =>
            {
                thread::sleep(RELEASE_POLL);
            }
            result => return result,
        }
    }
}

/// Opens devices and their images.
#[derive(Clone)]
pub(super) struct Opener {
    pub(super) registry: Arc<Registry>,
    pub(super) sysfs: Sysfs,
    pub(super) tables: Tables,
}

impl Opener {
    /// Opens a device. May wait for a lock of configfs.
    pub(super) fn take(
        &self,
        id: LunId,
        inheritance: Inheritance,
        meter: Arc<Meter>,
        recovered: Recovered,
    ) -> Result<Taken, Error> {
        #[cfg(feature = "kill-points")]
        hold_points::pass("opening");
        let device = self
            .sysfs
            .device(id)
            .map_err(|error| Error::os("looking at the device", error))?;
        let opening = |error| Error::os("opening the device", error);
        let uio = once_released(|| Uio::open(&device)).map_err(opening)?;
        let mapping = uio
            .map()
            .map_err(|error| Error::os("mapping the device", error))?;
        let mapping = Arc::new(mapping);
        let backstore = self.sysfs.backstore(uio.name());
        let Inherited {
            table,
            in_flight,
            runs,
        } = self.inherit(&device, &mapping, &backstore, inheritance)?;
        let crash_loop = table.as_ref().map(|table| CrashLoop::new(table.notes()));
        let verdict = match &crash_loop {
            Some(crash_loop) if inheritance == Inheritance::Judge => crash_loop.judge(runs),
            _ => Verdict::Innocent,
        };
        let device = OpenDevice::new(uio, mapping, backstore, meter, table, recovered)?;
        Ok(Taken {
            device,
            crash_loop,
            verdict,
            in_flight,
        })
    }

    /// Takes over what a predecessor left, or makes a new start.
    fn inherit(
        &self,
        device: &Device,
        mapping: &Arc<Mapping>,
        backstore: &BackstoreDir,
        inheritance: Inheritance,
    ) -> Result<Inherited, Error> {
        let lun = &device.name.name;
        let refused = inheritance == Inheritance::Refuse;
        let reason = if refused {
            "the ring is damaged".to_owned()
        } else {
            match self.tables.find(device, mapping) {
                Found::Table {
                    table,
                    in_flight,
                    runs,
                } => {
                    if in_flight > 0 {
                        tracing::info!(lun, in_flight, "going on with the commands in flight");
                    }
                    return Ok(Inherited {
                        table: Some(table),
                        in_flight,
                        runs,
                    });
                }
                Found::Nothing => "no in-flight table was left".to_owned(),
                Found::Unusable(mismatch) => mismatch.to_string(),
            }
        };
        let in_use = || Ring::new(Arc::clone(mapping)).map_or(true, |ring| ring.has_new());
        if refused || in_use() {
            tracing::warn!(
                lun,
                reason,
                "resetting the command ring: initiators repeat what was in flight"
            );
            let reset = backstore
                .set_blocked(true)
                .and_then(|()| backstore.reset_ring(ResetVerdict::Busy));
            let unblocked = backstore.set_blocked(false);
            reset
                .and(unblocked)
                .map_err(|error| Error::os("resetting the command ring", error))?;
        }
        let table = match self.tables.create(device, mapping) {
            Ok(table) => Some(table),
            Err(error) => {
                tracing::warn!(
                    lun,
                    error = &error as &dyn std::error::Error,
                    "no in-flight table can be kept: if tcmu-runner is killed, initiators have to \
                     repeat what is in flight"
                );
                None
            }
        };
        Ok(Inherited {
            table,
            in_flight: 0,
            runs: 0,
        })
    }
}

/// What there is to go on with.
struct Inherited {
    table: Option<Table>,
    /// How many commands run again.
    in_flight: usize,
    /// By how many daemons the one was found that was found most often.
    runs: u32,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_predecessor_has_open_is_waited_for() {
        let mut tries = 0;
        let opened = once_released(|| {
            tries += 1;
            match tries {
                1..=3 => Err(io::ErrorKind::ResourceBusy.into()),
                _ => Ok(tries),
            }
        });
        assert_eq!(opened.unwrap(), 4);
    }

    #[test]
    fn other_errors_are_told_at_once() {
        let mut tries = 0;
        let refused: io::Result<()> = once_released(|| {
            tries += 1;
            Err(io::ErrorKind::NotFound.into())
        });
        assert_eq!(refused.unwrap_err().kind(), io::ErrorKind::NotFound);
        assert_eq!(tries, 1);
    }
}
