//! Commands that are aborted (SAM-5, 7.2 and 7.6).
//!
//! The target core waits for an aborted command, so it is to end soon. What the backstore works on
//! runs to its end: it may be in the middle of changing the image, and the command's memory must not
//! change hands before. But a command ends at once where it waits for a range of blocks or for
//! something else in the device server ([`Aborts::interruptible`]), and between two steps
//! ([`Aborts::checkpoint`]).
//!
//! A command is known by the waker of its task, which is the same as long as the task runs.

use std::cell::RefCell;
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::task::{Poll, Waker};

use tcmu::scsi::Status;

use super::reply::Failure;

const TASK_ABORTED: Failure = Failure {
    status: Status::TaskAborted,
    sense: None,
};

/// What a command that has to wait or to stop needs.
#[derive(Debug, Default)]
pub(super) struct Aborts {
    /// The commands that wait in the device server.
    waiting: RefCell<Vec<Waker>>,
    /// The commands that were aborted and go on until they notice.
    aborted: RefCell<Vec<Waker>>,
}

fn is_same(a: &Waker, b: &Waker) -> bool {
    a.data() == b.data()
}

fn position(wakers: &[Waker], waker: &Waker) -> Option<usize> {
    wakers.iter().position(|other| is_same(other, waker))
}

impl Aborts {
    /// Waits for `future`. The whole command may be dropped meanwhile, so nothing of the backstore's
    /// may be under way, and what is dropped has to put itself in order.
    pub(super) async fn interruptible<T>(&self, future: impl Future<Output = T>) -> T {
        let mut future = pin!(future);
        let mut wait = Wait {
            aborts: self,
            waker: None,
        };
        poll_fn(|context| {
            let result = future.as_mut().poll(context);
            if result.is_pending() {
                wait.begin(context.waker());
            }
            result
        })
        .await
    }

    /// Ends the command if it was aborted. To be called between steps that each can take long.
    pub(super) async fn checkpoint(&self) -> Result<(), Failure> {
        poll_fn(|context| {
            let aborted = self.aborted.borrow();
            Poll::Ready(match position(&aborted, context.waker()) {
                Some(_) => Err(TASK_ABORTED),
                None => Ok(()),
            })
        })
        .await
    }

    /// Aborts a command. Returns whether it is to be dropped now; otherwise it goes on for a while.
    pub(super) fn abort(&self, waker: &Waker) -> bool {
        if position(&self.waiting.borrow(), waker).is_some() {
            return true;
        }
        let mut aborted = self.aborted.borrow_mut();
        if position(&aborted, waker).is_none() {
            aborted.push(waker.clone());
        }
        false
    }

    /// A command has ended: its task may execute another.
    pub(super) fn ended(&self, waker: &Waker) {
        let mut aborted = self.aborted.borrow_mut();
        if let Some(at) = position(&aborted, waker) {
            aborted.swap_remove(at);
        }
    }
}

/// A wait that is under way, once there is a waker.
struct Wait<'a> {
    aborts: &'a Aborts,
    waker: Option<Waker>,
}

impl Wait<'_> {
    fn begin(&mut self, waker: &Waker) {
        if self.waker.is_none() {
            self.aborts.waiting.borrow_mut().push(waker.clone());
            self.waker = Some(waker.clone());
        }
    }
}

impl Drop for Wait<'_> {
    fn drop(&mut self) {
        if let Some(waker) = &self.waker {
            let mut waiting = self.aborts.waiting.borrow_mut();
            if let Some(at) = position(&waiting, waker) {
                waiting.swap_remove(at);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::task::{Context, Wake};

    struct Task(#[expect(dead_code, reason = "gives each its own address")] u8);

    impl Wake for Task {
        fn wake(self: Arc<Self>) {}
    }

    fn task() -> Waker {
        Waker::from(Arc::new(Task(0)))
    }

    #[test]
    fn only_a_command_that_waits_is_dropped() {
        let aborts = Aborts::default();
        let (first, second) = (task(), task());
        let mut wait = Box::pin(aborts.interruptible(std::future::pending::<()>()));
        assert!(!aborts.abort(&first), "it has not begun to wait");
        aborts.ended(&first);
        let mut context = Context::from_waker(&first);
        assert!(wait.as_mut().poll(&mut context).is_pending());
        assert!(aborts.abort(&first));
        assert!(!aborts.abort(&second));
        drop(wait);
        assert!(aborts.waiting.borrow().is_empty());
    }

    #[test]
    fn a_wait_that_ends_is_over() {
        let aborts = Aborts::default();
        let waker = task();
        let mut polls = 0;
        let future = poll_fn(|_| {
            polls += 1;
            if polls == 1 {
                Poll::Pending
            } else {
                Poll::Ready(7)
            }
        });
        let mut wait = Box::pin(aborts.interruptible(future));
        let mut context = Context::from_waker(&waker);
        assert!(wait.as_mut().poll(&mut context).is_pending());
        assert_eq!(wait.as_mut().poll(&mut context), Poll::Ready(7));
        drop(wait);
        assert!(!aborts.abort(&waker));
    }

    #[test]
    fn a_checkpoint_ends_only_the_command_that_was_aborted() {
        let aborts = Aborts::default();
        let (first, second) = (task(), task());
        let at_checkpoint = |waker: &Waker| {
            let mut future = pin!(aborts.checkpoint());
            future.as_mut().poll(&mut Context::from_waker(waker))
        };
        assert!(!aborts.abort(&first));
        assert_eq!(at_checkpoint(&first), Poll::Ready(Err(TASK_ABORTED)));
        assert_eq!(at_checkpoint(&second), Poll::Ready(Ok(())));
        aborts.ended(&first);
        assert_eq!(at_checkpoint(&first), Poll::Ready(Ok(())));
    }
}
