//! From a device in sysfs to a LUN that a reactor can serve.

use std::sync::Arc;

use tcmu::configfs::{BackstoreDir, ResetVerdict};
use tcmu::discovery::{Device, Sysfs};
use tcmu::mapping::Mapping;
use tcmu::ring::Ring;
use tcmu::ring::recovery::Table;
use tcmu::uio::Uio;
use tcmu_handler::Error;

use crate::meter::Meter;
use crate::reactor::{LunId, MakeLun, Recovered};
use crate::recovery::{CrashLoop, Found, Tables, Verdict};
use crate::registry::{OpenDevice, Registry};

/// What to make of what a predecessor left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Inheritance {
    /// Go on with it, unless the LUN is suspected of having brought daemons down.
    Judge,
    /// Go on with it: the LUN is on trial.
    Trial,
    /// Give the commands in the ring back to their initiators: the ring is damaged.
    Refuse,
}

/// What became of opening a device.
pub(super) enum Opened {
    /// It can be served.
    Lun {
        make: MakeLun,
        crash_loop: Option<CrashLoop>,
        /// It is served without its image.
        offline: bool,
        /// How many commands run again.
        interrupted: usize,
    },
    /// It has to be tried alone.
    Suspect(CrashLoop),
}

/// Opens devices and their images.
#[derive(Clone)]
pub(super) struct Opener {
    pub(super) registry: Arc<Registry>,
    pub(super) sysfs: Sysfs,
    pub(super) tables: Tables,
}

impl Opener {
    /// Opens a device and its image. Blocks as long as the handler does.
    pub(super) fn open(
        &self,
        id: LunId,
        inheritance: Inheritance,
        meter: Arc<Meter>,
        recovered: Recovered,
    ) -> Result<Opened, Error> {
        let device = self
            .sysfs
            .device(id)
            .map_err(|error| Error::os("looking at the device", error))?;
        let uio = Uio::open(&device).map_err(|error| Error::os("opening the device", error))?;
        let mapping = uio
            .map()
            .map_err(|error| Error::os("mapping the device", error))?;
        let mapping = Arc::new(mapping);
        let backstore = self.sysfs.backstore(uio.name());
        let inherited = self.inherit(&device, &mapping, &backstore, inheritance)?;
        let Inherited {
            table,
            in_flight,
            runs,
        } = inherited;
        let crash_loop = table.as_ref().map(|table| CrashLoop::new(table.notes()));
        let verdict = match &crash_loop {
            Some(crash_loop) if inheritance == Inheritance::Judge => crash_loop.judge(runs),
            _ => Verdict::Innocent,
        };
        let open = OpenDevice {
            uio,
            mapping,
            backstore,
            table,
            recovered,
            meter,
        };
        let make = match (verdict, crash_loop.clone()) {
            (Verdict::Suspect, Some(crash_loop)) => return Ok(Opened::Suspect(crash_loop)),
            (Verdict::Guilty, _) => {
                tracing::error!(
                    lun = device.name.name,
                    in_flight,
                    "tcmu-runner died again and again while this LUN alone was at work on the same \
                     commands: the LUN is offline, and its commands are answered with NOT READY. \
                     Repair its image, then restart tcmu-runner to serve it again, or delete it"
                );
                Registry::open_offline(open)?
            }
            _ => self.registry.open(open)?,
        };
        Ok(Opened::Lun {
            make,
            crash_loop,
            offline: verdict == Verdict::Guilty,
            interrupted: in_flight,
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
