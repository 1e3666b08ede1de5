//! A bounded pool of threads for what blocks.
//!
//! A job may hang, with the file system or the server that it waits for, and a few such jobs would keep
//! those of all others waiting. So where jobs wait and none has ended for a while, more threads are
//! started than otherwise.

use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

type Job = Box<dyn FnOnce() + Send>;

/// How long no job ends until the threads are believed to hang.
const PATIENCE: Duration = Duration::from_secs(2);

/// How many threads there may be beyond the limit because the others hang.
const EXTRA: usize = 256;

/// Threads that run jobs; they are started when jobs wait, up to a limit, and end with the pool.
#[derive(Clone)]
pub(crate) struct BlockingPool {
    jobs: Sender<Job>,
    crew: Arc<Crew>,
}

struct Crew {
    waiting: Mutex<Receiver<Job>>,
    size: Mutex<Size>,
    limit: usize,
    patience: Duration,
}

#[derive(Default)]
struct Size {
    threads: usize,
    /// Jobs that were handed in and have not ended.
    jobs: usize,
    /// Jobs that have ended; wraps.
    ended: usize,
    /// There is a foreman.
    watched: bool,
}

impl Size {
    fn waiting(&self) -> usize {
        self.jobs.saturating_sub(self.threads)
    }
}

impl BlockingPool {
    /// A pool of at most `limit` threads that do not hang; none is started yet.
    pub(crate) fn new(limit: usize) -> Self {
        Self::with_patience(limit, PATIENCE)
    }

    fn with_patience(limit: usize, patience: Duration) -> Self {
        let (jobs, waiting) = channel();
        let crew = Crew {
            waiting: Mutex::new(waiting),
            size: Mutex::default(),
            limit: limit.max(1),
            patience,
        };
        Self {
            jobs,
            crew: Arc::new(crew),
        }
    }

    /// Runs `job` as soon as a thread is free. A job that panics ends alone.
    pub(crate) fn run(&self, job: Job) {
        let (start, watch) = {
            let mut size = self.crew.size();
            size.jobs += 1;
            let start = size.waiting() > 0 && size.threads < self.crew.limit;
            size.threads += usize::from(start);
            let watch = size.waiting() > 0 && !size.watched;
            size.watched |= watch;
            (start, watch)
        };
        // The receiver lives in the crew, which lives as long as this sender's pool.
        let _ = self.jobs.send(job);
        if start {
            Crew::grow(&self.crew);
        }
        if watch {
            Crew::watch(&self.crew);
        }
    }
}

impl Crew {
    /// Starts a thread that is counted already.
    fn grow(crew: &Arc<Self>) {
        let mate = Arc::clone(crew);
        let thread = thread::Builder::new().name("blocking".to_owned());
        if thread.spawn(move || mate.work()).is_err() {
            crew.could_not_grow();
        }
    }

    /// Starts the foreman, whose mark is set already.
    fn watch(crew: &Arc<Self>) {
        let foreman = Arc::clone(crew);
        let thread = thread::Builder::new().name("foreman".to_owned());
        if thread.spawn(move || Self::oversee(&foreman)).is_err() {
            crew.size().watched = false;
        }
    }

    /// Starts more threads when those that there are hang, for as long as jobs wait.
    fn oversee(crew: &Arc<Self>) {
        loop {
            let ended = crew.size().ended;
            thread::sleep(crew.patience);
            let more = {
                let mut size = crew.size();
                let room = (crew.limit + EXTRA).saturating_sub(size.threads);
                if size.waiting() == 0 || room == 0 {
                    size.watched = false;
                    return;
                }
                if size.ended != ended {
                    continue;
                }
                let more = size.waiting().min(crew.limit).min(room);
                size.threads += more;
                more
            };
            tracing::warn!(
                more,
                "work that blocks hangs: threads are started for the rest"
            );
            for _ in 0..more {
                Self::grow(crew);
            }
        }
    }

    fn size(&self) -> std::sync::MutexGuard<'_, Size> {
        self.size.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn work(&self) {
        loop {
            let job = self
                .waiting
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .recv();
            let Ok(job) = job else { return };
            self.do_one(job);
        }
    }

    fn do_one(&self, job: Job) {
        if std::panic::catch_unwind(std::panic::AssertUnwindSafe(job)).is_err() {
            tracing::error!("a blocking job panicked");
        }
        let mut size = self.size();
        size.jobs -= 1;
        size.ended = size.ended.wrapping_add(1);
    }

    /// The system has no thread for us. The others will do the job; without others it is done here,
    /// because a slow reactor is better than a request that never ends.
    fn could_not_grow(&self) {
        let alone = {
            let mut size = self.size();
            size.threads -= 1;
            size.threads == 0
        };
        tracing::warn!(alone, "cannot start a thread for blocking work");
        if alone {
            let job = self
                .waiting
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .try_recv();
            if let Ok(job) = job {
                self.do_one(job);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Barrier;
    use std::sync::atomic::{AtomicUsize, Ordering};

    #[test]
    fn runs_as_many_at_once_as_allowed_and_all_in_the_end() {
        // Nothing hangs, however slow the machine is.
        let pool = BlockingPool::with_patience(3, Duration::from_secs(3600));
        let together = Arc::new(Barrier::new(3));
        let (done, results) = channel();
        for number in 0..9 {
            let (together, done) = (Arc::clone(&together), done.clone());
            // Three at a time meet at the barrier: fewer threads would wait for ever.
            pool.run(Box::new(move || {
                together.wait();
                done.send(number).unwrap();
            }));
        }
        let mut numbers: Vec<i32> = results.iter().take(9).collect();
        numbers.sort_unstable();
        assert_eq!(numbers, (0..9).collect::<Vec<_>>());
        assert_eq!(pool.crew.size().threads, 3);
    }

    /// Jobs that hang until what is returned is dropped.
    fn hang(pool: &BlockingPool, count: usize) -> Vec<Sender<()>> {
        let hang = |_| {
            let (keep, kept) = channel::<()>();
            pool.run(Box::new(move || {
                let _ = kept.recv();
            }));
            keep
        };
        (0..count).map(hang).collect()
    }

    #[test]
    fn jobs_that_hang_keep_no_other_waiting() {
        let pool = BlockingPool::with_patience(2, Duration::from_millis(1));
        let hanging = hang(&pool, 7);
        let (done, result) = channel();
        pool.run(Box::new(move || done.send(()).unwrap()));
        result.recv().unwrap();
        assert!(pool.crew.size().threads >= 8);
        drop(hanging);
    }

    #[test]
    fn there_is_a_limit_also_to_threads_that_hang() {
        let pool = BlockingPool::with_patience(64, Duration::from_millis(1));
        let hanging = hang(&pool, 64 + EXTRA + 10);
        while pool.crew.size().watched {
            thread::yield_now();
        }
        assert_eq!(pool.crew.size().threads, 64 + EXTRA);
        let (done, result) = channel();
        pool.run(Box::new(move || done.send(()).unwrap()));
        drop(hanging);
        result.recv().unwrap();
    }

    #[test]
    fn survives_a_job_that_panics() {
        let pool = BlockingPool::new(1);
        let count = Arc::new(AtomicUsize::new(0));
        pool.run(Box::new(|| panic!("on purpose")));
        let (done, result) = channel();
        let counter = Arc::clone(&count);
        pool.run(Box::new(move || {
            counter.fetch_add(1, Ordering::Relaxed);
            done.send(()).unwrap();
        }));
        result.recv().unwrap();
        assert_eq!(count.load(Ordering::Relaxed), 1);
    }
}
