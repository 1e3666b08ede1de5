//! Requests that run at the same time on one thread, as on a reactor.

use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

use super::UnorderedEngine;

/// How long nothing at all may happen before requests count as hung.
const HUNG: Duration = Duration::from_secs(60);

/// Whether a future was woken, and the thread that waits for it.
struct Flag {
    woken: AtomicBool,
    thread: Thread,
}

impl Wake for Flag {
    fn wake(self: Arc<Self>) {
        self.woken.store(true, Ordering::Release);
        self.thread.unpark();
    }
}

type Running<'a, T> = (Pin<Box<dyn Future<Output = T> + 'a>>, Arc<Flag>);

/// Futures that run together on this thread, on an [`UnorderedEngine`].
pub struct Together<'a, T> {
    engine: Rc<UnorderedEngine>,
    running: Vec<Running<'a, T>>,
}

impl<'a, T> Together<'a, T> {
    /// None yet.
    pub fn new(engine: &Rc<UnorderedEngine>) -> Self {
        Self {
            engine: Rc::clone(engine),
            running: Vec::new(),
        }
    }

    /// Adds one; it begins to run with the next [`poll`](Self::poll).
    pub fn add(&mut self, future: impl Future<Output = T> + 'a) {
        let flag = Arc::new(Flag {
            woken: AtomicBool::new(true),
            thread: thread::current(),
        });
        self.running.push((Box::pin(future), flag));
    }

    /// How many have not ended.
    pub fn len(&self) -> usize {
        self.running.len()
    }

    /// Whether all have ended.
    pub fn is_empty(&self) -> bool {
        self.running.is_empty()
    }

    /// Lets those run that were woken; returns the output of the first one to end.
    pub fn poll(&mut self) -> Option<T> {
        for place in 0..self.running.len() {
            let (future, flag) = &mut self.running[place];
            if !flag.woken.swap(false, Ordering::AcqRel) {
                continue;
            }
            let waker = Waker::from(Arc::clone(flag));
            if let Poll::Ready(output) = future.as_mut().poll(&mut Context::from_waker(&waker)) {
                drop(self.running.swap_remove(place));
                return Some(output);
            }
        }
        None
    }

    /// Runs until one has ended, the engine's operations in its order; `None` if there is none.
    ///
    /// # Panics
    /// If nothing happens for a minute: the requests wait for each other, or were never woken.
    pub fn finish_one(&mut self) -> Option<T> {
        if self.running.is_empty() {
            return None;
        }
        let mut since = Instant::now();
        loop {
            if let Some(output) = self.poll() {
                return Some(output);
            }
            if self.is_awake() || self.engine.step() {
                since = Instant::now();
                continue;
            }
            // Only other threads can bring something.
            thread::park_timeout(HUNG);
            assert!(
                self.is_awake() || since.elapsed() < HUNG,
                "{} requests never end: nobody wakes them",
                self.running.len()
            );
        }
    }

    /// Runs until nothing moves any more, or one has ended; returns its output.
    pub fn run_dry(&mut self) -> Option<T> {
        loop {
            if let Some(output) = self.poll() {
                return Some(output);
            }
            if !self.is_awake() && !self.engine.step() {
                return None;
            }
        }
    }

    fn is_awake(&self) -> bool {
        let mut flags = self.running.iter().map(|(_, flag)| flag);
        flags.any(|flag| flag.woken.load(Ordering::Acquire))
    }
}

impl<T> std::fmt::Debug for Together<'_, T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Together")
            .field("running", &self.running.len())
            .finish_non_exhaustive()
    }
}
