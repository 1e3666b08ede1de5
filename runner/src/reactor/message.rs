//! What is said to a reactor, and what it says.

use std::sync::Arc;
use std::sync::mpsc::Sender;

use tcmu_handler::Error;

use super::lun::{Context, Done, Lun};
use super::ready::ReadyQueue;
use crate::copy::RemoteCopy;

/// Names a LUN: its uio device's minor number.
pub(crate) type LunId = u32;

/// Makes a LUN on the reactor's thread.
pub(crate) type MakeLun = Box<dyn FnOnce(Context) -> Result<Box<dyn Lun>, Error> + Send>;

/// What a reactor is asked to do.
pub(crate) enum Message {
    /// Serve a new LUN.
    Attach {
        id: LunId,
        make: MakeLun,
        done: Done,
    },
    /// Finish what is in flight, close the backstore, and let go of the device. Commands that have
    /// not been fetched stay in the ring for whoever serves it next.
    Detach { id: LunId, done: Done },
    /// Let go of a LUN whose device is going away, although its backstore may never finish what is in
    /// flight. Its id can be attached again.
    Abandon { id: LunId },
    /// Fetch no further command of a LUN; done when nothing is in flight and all is durable.
    Hold { id: LunId, done: Done },
    /// Fetch commands of a LUN again.
    Resume { id: LunId },
    /// Change a LUN's size.
    Resize { id: LunId, size: u64, done: Done },
    /// Change what a LUN says of its write cache.
    SetWriteCache {
        id: LunId,
        enabled: bool,
        done: Done,
    },
    /// Do what a copy of another LUN's asks of the LUN `id`, if it is still the one known by `key`.
    Copy {
        id: LunId,
        key: u64,
        copy: RemoteCopy,
    },
    /// Say that the reactor turns.
    Ping { done: Done },
    /// End the thread. LUNs that are still there are dropped as they are.
    Stop,
}

/// What a reactor says by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Notice {
    /// The LUN's device is gone.
    Gone(LunId),
    /// The LUN's ring cannot be read any further.
    Broken(LunId),
    /// The LUN's backstore does not answer, or does again.
    Stuck { id: LunId, stuck: bool },
    /// The reactor has ended, and its LUNs are not served any more.
    Failed,
}

/// Is told the notices, on the reactor's thread.
pub(crate) type OnNotice = Arc<dyn Fn(Notice) + Send + Sync>;

/// Hands messages to a reactor, from any thread.
#[derive(Clone)]
pub(crate) struct Mailer {
    messages: Sender<Message>,
    ready: Arc<ReadyQueue>,
}

impl Mailer {
    pub(super) fn new(messages: Sender<Message>, ready: Arc<ReadyQueue>) -> Self {
        Self { messages, ready }
    }

    /// Hands over a message. A reactor that has ended drops it.
    pub(crate) fn send(&self, message: Message) {
        if self.messages.send(message).is_ok() {
            self.ready.ring();
        }
    }
}

impl std::fmt::Debug for Mailer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Mailer").finish_non_exhaustive()
    }
}
