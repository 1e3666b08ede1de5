//! How far a command has come, kept where the death of the process does not reach it.
//!
//! A command that was under way when the process died is executed again by the next one, from its
//! beginning and with the same data. Most commands do the same twice. Those that do not note their
//! phase before the step that makes the difference, and look at it when they begin.

use tcmu::scsi::Status;

use super::reply::Response;

/// Phase of COMPARE AND WRITE: the blocks were equal, and are being written.
pub(super) const EQUAL: u64 = 1;
/// Phase of COMPARE AND WRITE: the backstore compares and writes.
pub(super) const SWAPPING: u64 = 2;
/// Phase of any command, with its status in the lowest byte: it has ended without sense data, and its
/// data may be gone.
const ENDED: u64 = 1 << 32;

/// Where a command notes how far it has come.
pub trait Progress {
    /// What was noted when the command was under way in another process; 0 if nothing was.
    fn phase(&self) -> u64;

    /// Notes the phase.
    fn note(&self, phase: u64);
}

/// For commands that are never executed again.
#[derive(Clone, Copy, Debug)]
pub struct OnlyOnce;

impl Progress for OnlyOnce {
    fn phase(&self) -> u64 {
        0
    }

    fn note(&self, _: u64) {}
}

/// Notes that the command has ended with this status, before its data are overwritten.
pub(super) fn note_end(progress: &dyn Progress, status: Status) {
    progress.note(ENDED | u64::from(status.code()));
}

/// How a command ends that had ended in another process already.
pub(super) fn end(progress: &dyn Progress) -> Option<Response> {
    let phase = progress.phase();
    let ended = phase & ENDED != 0;
    Some(Response {
        status: Status::from_code(phase as u8).filter(|_| ended)?,
        ..Response::GOOD
    })
}
