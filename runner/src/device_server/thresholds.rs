//! Logical block provisioning thresholds (SBC-3, 4.7.3.7): a thinly provisioned unit says that its
//! storage is running out before it has.
//!
//! The backstore is asked now and then while an initiator writes and has enabled a threshold.

use std::cell::Cell;

use tcmu::scsi::log::{
    AVAILABLE_RESOURCES, ResourceCount, SCOPE_LOGICAL_UNIT, SCOPE_SHARED, USED_RESOURCES,
};
use tcmu::scsi::mode::{
    ARMED_DECREASING, ARMED_INCREASING, ENABLED, LogicalBlockProvisioning, SITUA,
    ThresholdDescriptor,
};
use tcmu_handler::{Backstore, Io, Usage};

use super::LogicalUnit;
use super::unit::Unit;
use super::unit_attention::Condition;

/// The size of a threshold set in bytes, where 32 bits count enough of them.
const SET_BYTES: u64 = 1 << 20;
/// The usage is looked at after every so many commands that write.
const INTERVAL: u32 = 64;

/// A soft threshold, as initiators set it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Threshold {
    pub(super) enabled: bool,
    /// In threshold sets.
    pub(super) count: u32,
}

/// The thresholds: of available and of used resources.
pub(super) type Thresholds = [Threshold; 2];

/// What was found when the usage was looked at last.
#[derive(Debug, Default)]
pub(super) struct Watch {
    /// Commands that wrote since then.
    writes: Cell<u32>,
    /// Which thresholds are reached. They are reported again only after they were not.
    reached: Cell<[bool; 2]>,
}

impl Watch {
    /// Forgets what was found: the thresholds are others now.
    pub(super) fn restart(&self) {
        self.writes.set(INTERVAL);
        self.reached.set([false; 2]);
    }
}

impl Unit {
    /// Storage is taken as needed, and the backstore says how much.
    pub(super) fn has_thresholds(&self) -> bool {
        let capabilities = self.capabilities();
        capabilities.usage && capabilities.unmap.is_some()
    }

    /// THRESHOLD EXPONENT: the binary logarithm of how many blocks a threshold set has; 0 without
    /// thresholds.
    pub(super) fn threshold_exponent(&self) -> u8 {
        if !self.has_thresholds() {
            return 0;
        }
        // The unit is to have less than 2^32 sets.
        let least = self
            .blocks()
            .checked_ilog2()
            .unwrap_or(0)
            .saturating_sub(31);
        let usual = self.in_blocks(SET_BYTES).checked_ilog2().unwrap_or(0);
        least.max(usual).max(1) as u8
    }

    fn in_sets(&self, bytes: u64) -> u32 {
        let sets = self.in_blocks(bytes) >> self.threshold_exponent();
        u32::try_from(sets).unwrap_or(u32::MAX)
    }

    /// The parameters of the log page.
    pub(super) fn resource_counts(&self, usage: Usage) -> [ResourceCount; 2] {
        let available = self.in_sets(usage.available);
        let used = self.in_sets(usage.used);
        [
            ResourceCount::new(AVAILABLE_RESOURCES, available, SCOPE_SHARED),
            ResourceCount::new(USED_RESOURCES, used, SCOPE_LOGICAL_UNIT),
        ]
    }

    /// Whether it is time to look at the usage, after a command that wrote.
    pub(super) fn is_usage_due(&self) -> bool {
        let thresholds = self.mode.get().thresholds;
        if !thresholds.iter().any(|threshold| threshold.enabled) {
            return false;
        }
        let writes = self.watch.writes.get() + 1;
        let due = writes >= INTERVAL;
        self.watch.writes.set(if due { 0 } else { writes });
        due
    }

    /// Reports thresholds that were not reached before.
    fn compare(&self, usage: Usage) {
        let [available, used] = self.mode.get().thresholds;
        let before = self.watch.reached.get();
        let now = [
            available.enabled && self.in_sets(usage.available) <= available.count,
            used.enabled && self.in_sets(usage.used) >= used.count,
        ];
        self.watch.reached.set(now);
        if now.iter().zip(before).any(|(now, before)| *now && !before) {
            self.attention.establish(Condition::SoftThreshold);
        }
    }
}

impl<B: Backstore> LogicalUnit<B> {
    /// Looks at the usage. A backstore that cannot tell it now will when it is asked again.
    pub(super) async fn watch_usage(&self, io: &Io) {
        match self.backstore.usage(io).await {
            Ok(usage) => self.unit.compare(usage),
            Err(error) => {
                self.failed("looking at the storage in use", &error);
            }
        }
    }
}

/// The mode page with these thresholds.
pub(super) fn page([available, used]: Thresholds) -> LogicalBlockProvisioning {
    let descriptor = |threshold: Threshold, arming, resource: u16| {
        let enabled = if threshold.enabled { ENABLED } else { 0 };
        ThresholdDescriptor::new(enabled | arming, resource as u8, threshold.count)
    };
    // An initiator cannot be told from another, so one of them hears of it.
    LogicalBlockProvisioning::new(
        SITUA,
        [
            descriptor(available, ARMED_DECREASING, AVAILABLE_RESOURCES),
            descriptor(used, ARMED_INCREASING, USED_RESOURCES),
        ],
    )
}

/// What of the mode page can be changed.
pub(super) fn changeable_page() -> LogicalBlockProvisioning {
    LogicalBlockProvisioning::new(0, [ThresholdDescriptor::new(ENABLED, 0, u32::MAX); 2])
}

/// The thresholds in a mode page that has been found valid.
pub(super) fn selected(page: &LogicalBlockProvisioning) -> Thresholds {
    page.thresholds.map(|descriptor| Threshold {
        enabled: descriptor.flags & ENABLED != 0,
        count: descriptor.count.get(),
    })
}
