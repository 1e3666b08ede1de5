//! How commands failed, as the figures tell it apart.

use tcmu::scsi::{SenseKey, Status};

/// The names of the sense keys in interfaces, by their numbers (SPC-4, 4.5.6).
const KEYS: [&str; 16] = [
    "no-sense",
    "recovered-error",
    "not-ready",
    "medium-error",
    "hardware-error",
    "illegal-request",
    "unit-attention",
    "data-protect",
    "blank-check",
    "vendor-specific",
    "copy-aborted",
    "aborted-command",
    "reserved",
    "volume-overflow",
    "miscompare",
    "completed",
];

/// The other statuses, which follow the sense keys.
const STATUSES: [&str; 5] = [
    "busy",
    "reservation-conflict",
    "task-set-full",
    "aca-active",
    "task-aborted",
];

/// How a command failed: by the sense key with CHECK CONDITION, otherwise by its status.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Failure(u8);

impl Failure {
    pub(super) const COUNT: usize = KEYS.len() + STATUSES.len();

    /// `None` if the command has not failed.
    #[inline]
    pub(crate) fn of(status: Status, key: Option<SenseKey>) -> Option<Self> {
        match status {
            Status::Good | Status::ConditionMet => None,
            _ => Some(Self::of_failed(status, key)),
        }
    }

    #[cold]
    fn of_failed(status: Status, key: Option<SenseKey>) -> Self {
        let status = match status {
            Status::Good | Status::ConditionMet | Status::CheckCondition => {
                return Self(key.map_or(0, |key| key as u8));
            }
            Status::Busy => 0,
            Status::ReservationConflict => 1,
            Status::TaskSetFull => 2,
            Status::AcaActive => 3,
            Status::TaskAborted => 4,
        };
        Self(KEYS.len() as u8 + status)
    }

    pub(super) fn index(self) -> usize {
        self.0.into()
    }

    pub(super) fn all() -> impl Iterator<Item = Self> {
        (0..Self::COUNT as u8).map(Self)
    }

    /// The status's name in interfaces.
    pub(crate) fn status(self) -> &'static str {
        match self.index().checked_sub(KEYS.len()) {
            Some(status) => STATUSES[status],
            None => "check-condition",
        }
    }

    /// The sense key's name in interfaces; empty where there is none.
    pub(crate) fn sense_key(self) -> &'static str {
        KEYS.get(self.index()).copied().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_are_told_by_status_and_sense_key() {
        let names = |status, key| {
            Failure::of(status, key).map(|failure| (failure.status(), failure.sense_key()))
        };
        let medium = Some(SenseKey::MediumError);
        assert_eq!(names(Status::Good, None), None);
        assert_eq!(names(Status::ConditionMet, None), None);
        assert_eq!(
            names(Status::CheckCondition, medium),
            Some(("check-condition", "medium-error"))
        );
        assert_eq!(
            names(Status::CheckCondition, Some(SenseKey::Completed)),
            Some(("check-condition", "completed"))
        );
        assert_eq!(names(Status::Busy, None), Some(("busy", "")));
        assert_eq!(names(Status::TaskAborted, None), Some(("task-aborted", "")));
        assert_eq!(Failure::all().count(), Failure::COUNT);
        assert!(Failure::all().all(|failure| !failure.status().is_empty()));
    }
}
