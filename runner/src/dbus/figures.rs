//! The figures of LUNs, as `Runner1` shows them.

use std::sync::Arc;

use zbus::{SerializeDict, Type};

use crate::daemon::board::LunStatus;
use crate::meter::{ClassReading, Meter};

/// The figures of a LUN.
#[derive(Debug, SerializeDict, Type)]
#[zbus(signature = "a{sv}")]
pub(super) struct StatsRecord {
    /// The minor number of its uio device.
    id: u32,
    name: String,
    /// N of the folder `core/user_N`.
    hba: u32,
    /// As in `ListLuns`.
    state: String,
    /// How many commands are being executed.
    in_flight: u32,
    /// How many took longer than `slow_command_ms` of the configuration.
    slow: u64,
    /// One for each of `read`, `write`, `flush`, `unmap` and `other`.
    classes: Vec<ClassRecord>,
}

/// The figures of the commands of a class, since the LUN was opened.
#[derive(Debug, SerializeDict, Type)]
#[zbus(signature = "a{sv}")]
struct ClassRecord {
    class: String,
    /// How many were completed, whatever their status.
    commands: u64,
    /// How many bytes those that succeeded moved from or to initiators.
    bytes: u64,
    /// How long all of them took together, each from when it was fetched until its completion was
    /// published.
    nanoseconds: u64,
    /// How many took less than so many nanoseconds, and not less than the bucket before allows. Buckets
    /// without commands are left out; the last one, 2^38, holds all that took longer too.
    times: Vec<(u64, u64)>,
    /// How many failed, by status and, with `check-condition`, sense key.
    failures: Vec<(String, String, u64)>,
}

impl StatsRecord {
    pub(super) fn of(lun: LunStatus, meter: &Arc<Meter>) -> Self {
        Self {
            id: lun.id,
            name: lun.name.name,
            hba: lun.name.hba,
            state: lun.state.name().to_owned(),
            in_flight: lun.reading.in_flight,
            slow: lun.reading.slow,
            classes: meter.classes().map(ClassRecord::of).collect(),
        }
    }
}

impl ClassRecord {
    fn of(figures: ClassReading) -> Self {
        let times = figures.times.iter();
        let failures = figures.failures.iter().map(|(failure, count)| {
            let (status, key) = (failure.status(), failure.sense_key());
            (status.to_owned(), key.to_owned(), *count)
        });
        Self {
            class: figures.class.name().to_owned(),
            commands: figures.commands,
            bytes: figures.bytes,
            nanoseconds: figures.nanoseconds,
            times: times.map(|time| (time.limit, time.count)).collect(),
            failures: failures.collect(),
        }
    }
}
