//! Whose fault it is when the daemon dies again and again.
//!
//! A command that brings the daemon down runs again in its successor, and brings that down as well.
//! The in-flight tables tell which commands were in flight at each death, but not which of them is to
//! blame: that takes a trial.
//!
//! 1. A command that was in flight at one death simply runs again.
//! 2. If the daemon dies once more, the LUNs with commands that were in flight both times are
//!    *suspect*. They wait until all others have finished what was in flight. Then they are *tried*:
//!    attached one by one, each when the one before has finished what was in flight, or has survived
//!    for [`TRIAL`].
//! 3. A LUN in whose trial the daemon died [`MOST_DEATHS`] times in a row is taken offline: what is in
//!    flight, and all that follows, is answered with NOT READY. The other LUNs go on.
//!
//! A clean end of the daemon acquits everybody, so a restart by hand tries an offline LUN again.

use std::time::Duration;

use tcmu::ring::recovery::Notes;

/// How long a LUN on trial has to finish what was in flight, until the next one's turn, and how long
/// the trials wait for the LUNs that are above suspicion.
pub(crate) const TRIAL: Duration = Duration::from_secs(5);

/// How many deaths in its trial take a LUN offline.
const MOST_DEATHS: u64 = 2;

/// In how many processes a command has been in flight that makes its LUN suspect: it ran again and
/// did not end.
const SUSPECT: u32 = 1;

/// The notes, by word.
const ON_TRIAL: usize = 0;
const DEATHS: usize = 1;

/// What the notes in a LUN's table say of it.
#[derive(Clone, Debug)]
pub(crate) struct CrashLoop(Notes);

/// How a LUN is to be served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// At once.
    Innocent,
    /// When its turn has come.
    Suspect,
    /// Not at all.
    Guilty,
}

impl CrashLoop {
    pub(crate) fn new(notes: Notes) -> Self {
        Self(notes)
    }

    /// Judges a LUN that a daemon finds at its start, one of whose commands was found in flight by so
    /// many daemons before.
    pub(crate) fn judge(&self, runs: u32) -> Verdict {
        if self.0.get(ON_TRIAL) != 0 {
            self.0.set(ON_TRIAL, 0);
            self.0.set(DEATHS, self.0.get(DEATHS).saturating_add(1));
        }
        if self.0.get(DEATHS) >= MOST_DEATHS {
            Verdict::Guilty
        } else if runs >= SUSPECT {
            Verdict::Suspect
        } else {
            Verdict::Innocent
        }
    }

    /// The LUN is about to be tried.
    pub(crate) fn begin_trial(&self) {
        self.0.set(ON_TRIAL, 1);
    }

    /// The LUN has survived its trial, or the daemon ends as it should.
    pub(crate) fn acquit(&self) {
        self.0.set(ON_TRIAL, 0);
        self.0.set(DEATHS, 0);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tcmu::mock::{Config, MockKernel};
    use tcmu::ring::recovery::Table;

    use super::*;

    fn crash_loop() -> CrashLoop {
        let (_kernel, device) = MockKernel::new(Config::default()).unwrap();
        let file = tempfile::tempfile().unwrap();
        let table = Table::create(file, &[0; 32], &Arc::clone(device.memory())).unwrap();
        CrashLoop::new(table.notes())
    }

    #[test]
    fn a_lun_is_offline_after_repeated_deaths_in_its_trial() {
        let lun = crash_loop();
        assert_eq!(lun.judge(0), Verdict::Innocent);
        for _ in 0..MOST_DEATHS {
            assert_eq!(lun.judge(1), Verdict::Suspect);
            lun.begin_trial();
        }
        assert_eq!(lun.judge(3), Verdict::Guilty);
        // A daemon that is killed meanwhile changes nothing.
        assert_eq!(lun.judge(0), Verdict::Guilty);
        lun.acquit();
        assert_eq!(lun.judge(0), Verdict::Innocent);
    }

    #[test]
    fn deaths_before_and_after_a_trial_do_not_count() {
        let lun = crash_loop();
        for runs in 1..10 {
            assert_eq!(lun.judge(runs), Verdict::Suspect);
        }
        lun.begin_trial();
        lun.acquit();
        for runs in 1..10 {
            assert_eq!(lun.judge(runs), Verdict::Suspect);
        }
        lun.begin_trial();
        assert_eq!(lun.judge(1), Verdict::Suspect);
        lun.begin_trial();
        lun.acquit();
        assert_eq!(lun.judge(1), Verdict::Suspect);
    }
}
