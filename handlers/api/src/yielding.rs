//! Long work of one image must not keep the thread from the others.

use std::future::poll_fn;
use std::task::Poll;

/// Lets everything else that is ready on this thread run before the caller goes on.
pub async fn yield_now() {
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

#[cfg(test)]
mod tests {
    use std::pin::pin;

    use futures_util::future::{Either, select};

    use super::*;
    use crate::testing::block_on;

    #[test]
    fn others_run_first() {
        let patient = pin!(yield_now());
        let other = pin!(async {});
        let first = block_on(select(patient, other));
        assert!(matches!(first, Either::Right(_)));
    }
}
