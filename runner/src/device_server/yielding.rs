//! Long work of one unit must not keep the thread from the others.

use std::future::poll_fn;
use std::task::Poll;

/// Lets everything else that is ready on this thread run before the caller goes on.
pub(super) async fn yield_now() {
    let mut yielded = false;
    poll_fn(|context| {
        if yielded {
            return Poll::Ready(());
        }
        yielded = true;
        context.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}
