//! A bounded pool of threads for what blocks.

use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

type Job = Box<dyn FnOnce() + Send>;

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
}

#[derive(Default)]
struct Size {
    threads: usize,
    /// Jobs that were handed in and have not ended.
    jobs: usize,
}

impl BlockingPool {
    /// A pool of at most `limit` threads; none is started yet.
    pub(crate) fn new(limit: usize) -> Self {
        let (jobs, waiting) = channel();
        let crew = Crew {
            waiting: Mutex::new(waiting),
            size: Mutex::default(),
            limit: limit.max(1),
        };
        Self {
            jobs,
            crew: Arc::new(crew),
        }
    }

    /// Runs `job` as soon as a thread is free. A job that panics ends alone.
    pub(crate) fn run(&self, job: Job) {
        let start = {
            let mut size = self.crew.size();
            size.jobs += 1;
            let start = size.jobs > size.threads && size.threads < self.crew.limit;
            size.threads += usize::from(start);
            start
        };
        // The receiver lives in the crew, which lives as long as this sender's pool.
        let _ = self.jobs.send(job);
        if start {
            let crew = Arc::clone(&self.crew);
            let thread = thread::Builder::new().name("blocking".to_owned());
            if thread.spawn(move || crew.work()).is_err() {
                self.crew.could_not_grow();
            }
        }
    }
}

impl Crew {
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
        self.size().jobs -= 1;
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
        let pool = BlockingPool::new(3);
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
