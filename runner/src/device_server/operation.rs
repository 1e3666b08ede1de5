//! FORMAT UNIT and SANITIZE while they run: what is to be done, who waits for it, and how it ended.
//!
//! The command that asks for an operation only starts it. It runs in the unit's background
//! ([`LogicalUnit::background`](super::LogicalUnit::background)), so that neither a task management
//! request nor the loss of a nexus ends it (SBC-3, 4.11.2).

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::rc::Rc;
use std::task::{Poll, Waker};

use serde::{Deserialize, Serialize};
use tcmu::scsi::{AdditionalSense, Sense, SenseKey};

/// How an operation treats the blocks, and which command asked for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Method {
    /// FORMAT UNIT.
    Format,
    /// SANITIZE, BLOCK ERASE.
    BlockErase,
    /// SANITIZE, OVERWRITE.
    Overwrite,
}

/// What is done to every block of the unit. The journal keeps it until it has succeeded.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Operation {
    pub(super) method: Method,
    /// Repeated from the beginning of each block to its end. Without one, the blocks read as zeroes
    /// afterwards, and their storage may be given back.
    pub(super) pattern: Option<Vec<u8>>,
    /// How often every block is written, from 1 to 31.
    pub(super) passes: u8,
    /// Every other pass writes the inverse of the pattern.
    pub(super) invert: bool,
    /// AUSE: EXIT FAILURE MODE ends a failure.
    pub(super) may_exit_failure: bool,
    /// It has failed.
    pub(super) failed: bool,
}

impl Operation {
    /// What one pass, counted from 0, fills each block with; `None`: zeroes by any means. The last
    /// pass writes the pattern as it is, whether passes invert or not (SBC-3, 5.24.2.2).
    pub(super) fn block(&self, pass: u8, block_size: usize) -> Option<Vec<u8>> {
        let pattern = self
            .pattern
            .as_ref()
            .filter(|pattern| !pattern.is_empty())?;
        let passes_left = self.passes.saturating_sub(pass + 1);
        let mask = if self.invert && passes_left % 2 == 1 {
            0xff
        } else {
            0
        };
        let bytes = pattern.iter().cycle().map(|byte| byte ^ mask);
        Some(bytes.take(block_size).collect())
    }

    /// What commands hear while it runs, `progress` in 65536ths.
    pub(super) fn in_progress(&self, progress: u16) -> Sense {
        let code = match self.method {
            Method::Format => AdditionalSense::FORMAT_IN_PROGRESS,
            Method::BlockErase | Method::Overwrite => AdditionalSense::SANITIZE_IN_PROGRESS,
        };
        Sense::new(SenseKey::NotReady, code).with_progress(progress)
    }

    /// What the command that asked for it hears if it fails.
    pub(super) fn failure(&self) -> Sense {
        let code = match self.method {
            Method::Format => AdditionalSense::FORMAT_COMMAND_FAILED,
            Method::BlockErase | Method::Overwrite => AdditionalSense::SANITIZE_COMMAND_FAILED,
        };
        Sense::new(SenseKey::MediumError, code)
    }

    /// What commands hear after it failed, until another operation has succeeded.
    pub(super) fn aftermath(&self) -> Sense {
        match self.method {
            Method::Format => Sense::new(
                SenseKey::MediumError,
                AdditionalSense::MEDIUM_FORMAT_CORRUPTED,
            ),
            Method::BlockErase | Method::Overwrite => self.failure(),
        }
    }
}

/// Where an operation stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    /// Nothing was changed yet.
    Starting,
    Running,
    Succeeded,
    Failed,
    /// It could not be noted in the journal, and changed nothing.
    Refused,
    /// The unit is leaving; whoever serves it next goes on.
    Interrupted,
}

/// One operation on its way.
#[derive(Debug)]
pub(super) struct Run {
    pub(super) operation: Operation,
    stage: Cell<Stage>,
    waiting: RefCell<Vec<Waker>>,
}

impl Run {
    pub(super) fn new(operation: Operation) -> Rc<Self> {
        Rc::new(Self {
            operation,
            stage: Cell::new(Stage::Starting),
            waiting: RefCell::default(),
        })
    }

    pub(super) fn enter(&self, stage: Stage) {
        self.stage.set(stage);
        for waker in self.waiting.take() {
            waker.wake();
        }
    }

    /// Waits until the operation has ended or, if `started` is enough, begun.
    pub(super) async fn wait(&self, started: bool) -> Stage {
        poll_fn(|context| match self.stage.get() {
            Stage::Running if started => Poll::Ready(Stage::Running),
            Stage::Starting | Stage::Running => {
                self.waiting.borrow_mut().push(context.waker().clone());
                Poll::Pending
            }
            ended => Poll::Ready(ended),
        })
        .await
    }
}

/// The operations of a unit; there is one at a time.
#[derive(Debug, Default)]
pub(super) struct Operations {
    /// It waits to be run in the background.
    pub(super) pending: RefCell<Option<Rc<Run>>>,
    /// The last one failed, and nothing has made up for it since.
    pub(super) failed: RefCell<Option<Operation>>,
    /// The unit is leaving.
    pub(super) stopping: Cell<bool>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn overwrite(passes: u8, invert: bool) -> Operation {
        Operation {
            method: Method::Overwrite,
            pattern: Some(vec![1, 2, 0xff]),
            passes,
            invert,
            may_exit_failure: false,
            failed: false,
        }
    }

    #[test]
    fn patterns_are_repeated_and_cut_off() {
        assert_eq!(
            overwrite(1, false).block(0, 8).unwrap(),
            [1, 2, 0xff, 1, 2, 0xff, 1, 2]
        );
    }

    #[test]
    fn the_last_pass_is_never_inverted() {
        let first = |passes| overwrite(passes, true).block(0, 3).unwrap();
        assert_eq!(first(1), [1, 2, 0xff]);
        assert_eq!(first(2), [0xfe, 0xfd, 0]);
        assert_eq!(first(3), [1, 2, 0xff]);
        let three = overwrite(3, true);
        assert_eq!(three.block(1, 3).unwrap(), [0xfe, 0xfd, 0]);
        assert_eq!(three.block(2, 3).unwrap(), [1, 2, 0xff]);
    }

    #[test]
    fn the_journals_text_is_read_back() {
        let operation = overwrite(31, true);
        let text = toml::to_string(&operation).unwrap();
        assert_eq!(toml::from_str::<Operation>(&text).unwrap(), operation);
    }
}
