//! Status codes (SAM-5, 5.3).

/// How a command ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Status {
    /// Done.
    Good = 0x00,
    /// Sense data say what there is to know.
    CheckCondition = 0x02,
    /// The condition that the command asked for is met (PRE-FETCH).
    ConditionMet = 0x04,
    /// Not now; the same command can be sent again.
    Busy = 0x08,
    /// Another initiator holds a reservation.
    ReservationConflict = 0x18,
    /// There is no room for another command.
    TaskSetFull = 0x28,
    /// An auto contingent allegiance condition exists.
    AcaActive = 0x30,
    /// The command was aborted by another initiator.
    TaskAborted = 0x40,
}

impl Status {
    /// The byte that goes over the wire.
    pub const fn code(self) -> u8 {
        self as u8
    }

    /// The status with this code, if it is one of these.
    pub const fn from_code(code: u8) -> Option<Self> {
        Some(match code {
            0x00 => Self::Good,
            0x02 => Self::CheckCondition,
            0x04 => Self::ConditionMet,
            0x08 => Self::Busy,
            0x18 => Self::ReservationConflict,
            0x28 => Self::TaskSetFull,
            0x30 => Self::AcaActive,
            0x40 => Self::TaskAborted,
            _ => return None,
        })
    }
}
