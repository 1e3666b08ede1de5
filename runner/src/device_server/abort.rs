//! Commands that are aborted (SAM-5, 7.2 and 7.6): they are carried out all the same.
//!
//! SAM leaves open how much of an aborted command was done. But Linux's loopback tells its initiator
//! that an aborted command has succeeded, whatever status it is given
//! (`drivers/target/loopback/tcm_loop.c`, `tcm_loop_release_cmd`): a write that was not done would be
//! lost, and a read would return what happens to be in the data area. TCMU does not say which fabric a
//! command is from. So neither what waits for a range of blocks nor what is between two steps is
//! dropped; LIO's own backstores finish what they have begun, too.
//!
//! That is safe: the kernel keeps the place in the ring and the data blocks of an aborted command until
//! it is completed (`drivers/target/target_core_user.c`, `tcmu_handle_completion`), and answers the task
//! management request only then (`core_tmr_lun_reset`), so that nothing is done too late.
//!
//! An abort ends only waits for what goes on without the command ([`Aborts::unless_aborted`]).
//!
//! A command is known by the waker of its task, which is the same as long as the task runs.

use std::cell::RefCell;
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::task::{Poll, Waker};

/// The commands that were aborted and have not ended.
#[derive(Debug, Default)]
pub(super) struct Aborts(RefCell<Vec<Waker>>);

impl Aborts {
    /// Waits for `future`, or until the command is aborted: `None`. What is dropped then has to put
    /// itself in order.
    pub(super) async fn unless_aborted<T>(&self, future: impl Future<Output = T>) -> Option<T> {
        let mut future = pin!(future);
        poll_fn(|context| match future.as_mut().poll(context) {
            Poll::Ready(result) => Poll::Ready(Some(result)),
            Poll::Pending if self.position(context.waker()).is_some() => Poll::Ready(None),
            Poll::Pending => Poll::Pending,
        })
        .await
    }

    /// A command was aborted.
    pub(super) fn abort(&self, waker: &Waker) {
        if self.position(waker).is_none() {
            self.0.borrow_mut().push(waker.clone());
        }
        waker.wake_by_ref();
    }

    /// A command has ended: its task may execute another.
    pub(super) fn ended(&self, waker: &Waker) {
        if let Some(at) = self.position(waker) {
            self.0.borrow_mut().swap_remove(at);
        }
    }

    fn position(&self, waker: &Waker) -> Option<usize> {
        let is_same = |other: &Waker| other.data() == waker.data();
        self.0.borrow().iter().position(is_same)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::{pending, ready};
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::task::{Context, Wake};

    #[derive(Default)]
    struct Task(AtomicU32);

    impl Wake for Task {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn poll<T>(waker: &Waker, future: impl Future<Output = T>) -> Poll<T> {
        pin!(future).poll(&mut Context::from_waker(waker))
    }

    #[test]
    fn only_the_command_that_is_aborted_stops_waiting() {
        let aborts = Aborts::default();
        let tasks = [Arc::<Task>::default(), Arc::<Task>::default()];
        let [first, second] = tasks.clone().map(Waker::from);
        let mut wait = Box::pin(aborts.unless_aborted(pending::<()>()));
        assert_eq!(poll(&first, wait.as_mut()), Poll::Pending);
        aborts.abort(&second);
        assert_eq!(poll(&first, wait.as_mut()), Poll::Pending);
        aborts.abort(&first);
        aborts.abort(&first);
        let woken = tasks.map(|task| task.0.load(Ordering::Relaxed));
        assert_eq!(woken, [2, 1], "nobody else would poll it again");
        assert_eq!(poll(&first, wait.as_mut()), Poll::Ready(None));
        // The task of the command that has ended may have another.
        aborts.ended(&first);
        let wait = aborts.unless_aborted(pending::<()>());
        assert_eq!(poll(&first, wait), Poll::Pending);
        let wait = aborts.unless_aborted(pending::<()>());
        assert_eq!(poll(&second, wait), Poll::Ready(None));
    }

    #[test]
    fn what_is_there_already_counts() {
        let aborts = Aborts::default();
        let waker = Waker::from(Arc::<Task>::default());
        aborts.abort(&waker);
        let wait = aborts.unless_aborted(ready(7));
        assert_eq!(poll(&waker, wait), Poll::Ready(Some(7)));
    }
}
