//! The order in which suspect LUNs are tried, see [`crate::recovery`].

use std::time::{Duration, Instant};

use super::Daemon;
use super::board::LunState;
use super::device::{Device, Phase};
use super::open::Inheritance;
use crate::reactor::LunId;
use crate::recovery::{CrashLoop, TRIAL};

/// Where the trials stand.
#[derive(Debug, Default)]
pub(super) struct Trials {
    /// The first suspect was found then.
    since: Option<Instant>,
    on_trial: Option<Trial>,
}

#[derive(Debug)]
struct Trial {
    id: LunId,
    since: Instant,
    crash_loop: CrashLoop,
}

/// What was in flight has not been completed, as far as can be told.
fn is_busy(device: &Device) -> bool {
    device.recovering || matches!(device.phase, Phase::Opening | Phase::Waiting)
}

/// The next look is due no sooner than this: something else has to happen first, and is reported.
const SOON: Duration = Duration::from_millis(10);

impl Daemon {
    /// A LUN is suspect: it waits for its trial.
    pub(super) fn suspect(&mut self, id: LunId, crash_loop: CrashLoop) {
        let Some(device) = self.devices.get_mut(&id) else {
            return;
        };
        tracing::warn!(
            lun = device.name.name,
            "the same commands were in flight when tcmu-runner died before: this LUN waits until \
             the others are in order, and is then tried alone"
        );
        device.phase = Phase::Suspect(crash_loop);
        self.board
            .turned(id, LunState::Opening, "waits for its trial");
        self.trials.since.get_or_insert_with(Instant::now);
    }

    /// What was in flight when the LUN was attached has been completed.
    pub(super) fn recovered(&mut self, id: LunId) {
        if let Some(device) = self.devices.get_mut(&id) {
            device.recovering = false;
            tracing::info!(
                lun = device.name.name,
                "all that was in flight is completed"
            );
        }
    }

    /// When to look at the trials again if nothing is reported before.
    pub(super) fn next_trial(&self) -> Option<Instant> {
        let begun = self.trials.on_trial.as_ref().map(|trial| trial.since);
        let deadline = begun.or(self.trials.since)? + TRIAL;
        Some(deadline.max(Instant::now() + SOON))
    }

    /// Ends the trial that is over, and begins the next.
    pub(super) fn hold_trials(&mut self) {
        if let Some(trial) = &self.trials.on_trial {
            let ended = match self.devices.get(&trial.id) {
                Some(device) => !is_busy(device),
                None => true,
            };
            if !ended && trial.since.elapsed() < TRIAL {
                return;
            }
            trial.crash_loop.acquit();
            self.trials.on_trial = None;
        }
        let Some(since) = self.trials.since else {
            return;
        };
        if since.elapsed() < TRIAL && self.devices.values().any(is_busy) {
            return;
        }
        let next = self.devices.iter().find_map(|(id, device)| {
            if let Phase::Suspect(crash_loop) = &device.phase {
                Some((*id, crash_loop.clone()))
            } else {
                None
            }
        });
        let Some((id, crash_loop)) = next else {
            self.trials.since = None;
            return;
        };
        if let Some(Device { name, ticket, .. }) = self.devices.remove(&id) {
            tracing::warn!(lun = name.name, "on trial");
            crash_loop.begin_trial();
            let device = Device {
                ticket,
                ..self.new_device(name)
            };
            self.open(id, device, Inheritance::GoOn);
            self.trials.on_trial = Some(Trial {
                id,
                since: Instant::now(),
                crash_loop,
            });
        }
    }
}
