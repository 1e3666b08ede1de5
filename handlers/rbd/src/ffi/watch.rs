//! News of an image: that others have changed its size, snapshots, or features.

use std::ffi::c_void;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::Context;

use futures_util::task::AtomicWaker;

/// Where news of an image arrive, from any number of connections.
#[derive(Debug, Default)]
pub(crate) struct Watch {
    news: AtomicBool,
    waker: AtomicWaker,
}

impl Watch {
    /// Whether there are news since the last time. If not, the task of `context` is woken by the next.
    pub(crate) fn take_news(&self, context: &mut Context<'_>) -> bool {
        self.waker.register(context.waker());
        self.news.swap(false, Ordering::AcqRel)
    }

    /// There may be news.
    pub(crate) fn tell(&self) {
        self.news.store(true, Ordering::Release);
        self.waker.wake();
    }

    /// What librbd is given to call [`on_news`] with; it is given back by [`release`](Self::release).
    pub(super) fn retain(self: Arc<Self>) -> *mut c_void {
        Arc::into_raw(self).cast_mut().cast()
    }

    /// Takes back what [`retain`](Self::retain) gave.
    ///
    /// # Safety
    /// `pointer` is from `retain`, is taken back only once, and librbd calls with it no more.
    pub(super) unsafe fn release(pointer: *mut c_void) {
        // SAFETY: the caller's promise.
        drop(unsafe { Arc::from_raw(pointer.cast::<Self>().cast_const()) });
    }
}

/// Called by librbd, on one of its threads.
///
/// # Safety
/// `watch` is from [`Watch::retain`], and not released yet.
pub(super) unsafe extern "C" fn on_news(watch: *mut c_void) {
    // SAFETY: the caller's promise: the watch lives.
    let watch = unsafe { &*watch.cast::<Watch>().cast_const() };
    watch.tell();
}
