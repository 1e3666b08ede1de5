//! Waiting for a point in time without a thread that waits.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::task::{Context, Poll, Waker};
use std::thread;
use std::time::{Duration, Instant};

use tcmu_handler::{Error, Result};

/// The process's thread that wakes sleepers.
#[derive(Debug)]
pub(crate) struct Clock {
    sleepers: Mutex<BinaryHeap<Reverse<Sleeper>>>,
    changed: Condvar,
}

#[derive(Debug)]
struct Sleeper {
    until: Instant,
    waker: Waker,
}

impl PartialEq for Sleeper {
    fn eq(&self, other: &Self) -> bool {
        self.until == other.until
    }
}

impl Eq for Sleeper {}

impl PartialOrd for Sleeper {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Sleeper {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.until.cmp(&other.until)
    }
}

impl Clock {
    /// The clock of this process, started when it is first asked for.
    pub(crate) fn get() -> Result<Arc<Self>> {
        static CLOCK: OnceLock<Arc<Clock>> = OnceLock::new();
        static STARTING: Mutex<()> = Mutex::new(());
        let _starting = STARTING.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(clock) = CLOCK.get() {
            return Ok(Arc::clone(clock));
        }
        let clock = Arc::new(Self {
            sleepers: Mutex::default(),
            changed: Condvar::new(),
        });
        let ticking = Arc::clone(&clock);
        thread::Builder::new()
            .name("layers' clock".to_owned())
            .spawn(move || ticking.run())
            .map_err(|error| Error::os("no thread for the layers' clock", error))?;
        Ok(Arc::clone(CLOCK.get_or_init(|| clock)))
    }

    /// Waits until `until`.
    pub(crate) fn sleep_until(&self, until: Instant) -> Sleep<'_> {
        Sleep {
            clock: self,
            until,
            waker: None,
        }
    }

    fn sleepers(&self) -> MutexGuard<'_, BinaryHeap<Reverse<Sleeper>>> {
        self.sleepers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn run(&self) {
        let mut sleepers = self.sleepers();
        loop {
            let now = Instant::now();
            while let Some(Reverse(first)) = sleepers.peek()
                && first.until <= now
            {
                if let Some(Reverse(sleeper)) = sleepers.pop() {
                    sleeper.waker.wake();
                }
            }
            let pause = match sleepers.peek() {
                Some(Reverse(next)) => next.until.saturating_duration_since(now),
                None => Duration::MAX,
            };
            let woken = self.changed.wait_timeout(sleepers, pause);
            (sleepers, _) = woken.unwrap_or_else(PoisonError::into_inner);
        }
    }
}

/// Ends at a point in time. Dropped before, its task is woken once for nothing.
#[derive(Debug)]
pub(crate) struct Sleep<'c> {
    clock: &'c Clock,
    until: Instant,
    /// Who will be woken.
    waker: Option<Waker>,
}

impl Future for Sleep<'_> {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        if self.until <= Instant::now() {
            return Poll::Ready(());
        }
        let known = self.waker.as_ref();
        if known.is_none_or(|waker| !waker.will_wake(context.waker())) {
            let waker = context.waker().clone();
            self.waker = Some(waker.clone());
            let until = self.until;
            self.clock
                .sleepers()
                .push(Reverse(Sleeper { until, waker }));
            self.clock.changed.notify_one();
        }
        Poll::Pending
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tcmu_handler::testing::block_on;

    #[test]
    fn sleepers_wake_in_the_order_of_their_times() {
        let clock = Clock::get().unwrap();
        let begun = Instant::now();
        let threads: Vec<_> = [30, 10, 20, 0]
            .into_iter()
            .map(|ms| {
                let clock = Arc::clone(&clock);
                thread::spawn(move || {
                    let until = begun + Duration::from_millis(ms);
                    block_on(clock.sleep_until(until));
                    assert!(Instant::now() >= until, "woken too early");
                })
            })
            .collect();
        for thread in threads {
            thread.join().unwrap();
        }
    }
}
