//! Unit attention conditions (SAM-5, 5.14).
//!
//! Power on, reset and nexus loss are not raised here: the target core does, for each nexus
//! (`core_tpg_add_node_to_devs` and `core_allocate_nexus_loss_ua` in target_core_tpg.c, LUN reset in
//! target_core_transport.c), and reports them before a command gets here, TCMU or not
//! (`__target_execute_cmd`). A daemon that starts anew goes on serving a unit that was never off.
//!
//! TCMU does not say which nexus a command came from. A condition is therefore reported once, on
//! the first command that arrives, whoever sent it; other initiators learn of it when they look.

use std::cell::Cell;

use tcmu::scsi::{AdditionalSense, Sense, SenseKey};

/// What has changed; the order is that of reporting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Condition {
    BecameReady,
    Capacity,
    InquiryData,
    ModeParameters,
    SoftThreshold,
}

const ALL: [Condition; 5] = [
    Condition::BecameReady,
    Condition::Capacity,
    Condition::InquiryData,
    Condition::ModeParameters,
    Condition::SoftThreshold,
];

impl Condition {
    const fn bit(self) -> u8 {
        1 << self as u8
    }

    const fn sense(self) -> Sense {
        let code = match self {
            Self::BecameReady => AdditionalSense::NOT_READY_TO_READY_CHANGE,
            Self::Capacity => AdditionalSense::CAPACITY_DATA_HAS_CHANGED,
            Self::InquiryData => AdditionalSense::INQUIRY_DATA_HAS_CHANGED,
            Self::ModeParameters => AdditionalSense::MODE_PARAMETERS_CHANGED,
            Self::SoftThreshold => AdditionalSense::THIN_PROVISIONING_SOFT_THRESHOLD_REACHED,
        };
        Sense::new(SenseKey::UnitAttention, code)
    }
}

/// The conditions not yet reported.
#[derive(Debug, Default)]
pub(super) struct UnitAttention {
    pending: Cell<u8>,
}

impl UnitAttention {
    /// Establishes a condition; one that is pending already is not reported twice.
    pub(super) fn establish(&self, condition: Condition) {
        self.pending.set(self.pending.get() | condition.bit());
    }

    /// The next condition to report, which is then cleared.
    pub(super) fn take(&self) -> Option<Sense> {
        let pending = self.pending.get();
        if pending == 0 {
            return None;
        }
        let condition = ALL
            .into_iter()
            .find(|condition| pending & condition.bit() != 0)?;
        self.pending.set(pending & !condition.bit());
        Some(condition.sense())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_condition_is_reported_once() {
        let attention = UnitAttention::default();
        assert_eq!(attention.take(), None);
        attention.establish(Condition::ModeParameters);
        attention.establish(Condition::Capacity);
        attention.establish(Condition::Capacity);
        let codes: Vec<_> = (0..3)
            .filter_map(|_| attention.take())
            .map(|sense| (sense.key, sense.code))
            .collect();
        assert_eq!(
            codes,
            [
                (
                    SenseKey::UnitAttention,
                    AdditionalSense::CAPACITY_DATA_HAS_CHANGED
                ),
                (
                    SenseKey::UnitAttention,
                    AdditionalSense::MODE_PARAMETERS_CHANGED
                ),
            ]
        );
    }
}
