//! A unit that is out of service until somebody looks after it.

use tcmu::scsi::{AdditionalSense, Sense, SenseKey};

use super::LogicalUnit;
use super::unit_attention::Condition;

impl<B> LogicalUnit<B> {
    /// Refuses all commands that need the medium, for good: NOT READY, MANUAL INTERVENTION REQUIRED.
    /// Initiators do not repeat that.
    pub fn take_offline(&self) {
        self.unit.not_ready.set(Some(Sense::new(
            SenseKey::NotReady,
            AdditionalSense::MANUAL_INTERVENTION_REQUIRED,
        )));
    }

    /// Says with the next command that the unit was out of service and is ready again: NOT READY TO
    /// READY CHANGE, MEDIUM MAY HAVE CHANGED.
    pub fn became_ready(&self) {
        self.unit.attention.establish(Condition::BecameReady);
    }
}
