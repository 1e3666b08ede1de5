//! Which tasks of a reactor want to run again.
//!
//! Nearly every wake-up comes from the reactor's own thread, while it looks at finished I/O: that
//! path is a push onto a plain vector. Wake-ups from other threads (blocking jobs, libraries with
//! threads of their own) go through a queue without locks, and ring the reactor's eventfd once for
//! all that come until it looks.

use std::cell::{Cell, RefCell};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Wake, Waker};

use crossbeam_queue::ArrayQueue;
use rustix::event::{EventfdFlags, eventfd};

/// More wake-ups from other threads than a reactor leaves unheard as a rule.
const REMOTE_WAKE_UPS: usize = 1024;

/// Names a task of a reactor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TaskId {
    /// A command: the LUN's place in the reactor, and the command's slot in the LUN.
    Command { lun: u32, slot: u32 },
    /// What a LUN does beside its commands: the LUN's place, and the task's slot in the LUN.
    Background { lun: u32, slot: u32 },
    /// What a LUN does as long as it is there: the LUN's place.
    Watch { lun: u32 },
    /// Anything else that the reactor runs.
    Control(u32),
}

thread_local! {
    /// The queue whose reactor this thread is, by address, and its local wake-ups.
    static OWN_QUEUE: Cell<usize> = const { Cell::new(0) };
    static LOCAL: RefCell<Vec<TaskId>> = const { RefCell::new(Vec::new()) };
}

/// The tasks of one reactor that were woken.
#[derive(Debug)]
pub(crate) struct ReadyQueue {
    remote: ArrayQueue<TaskId>,
    /// Those that found the queue full.
    overflow: Mutex<Vec<TaskId>>,
    overflown: AtomicBool,
    rung: AtomicBool,
    bell: OwnedFd,
}

impl ReadyQueue {
    pub(crate) fn new() -> io::Result<Arc<Self>> {
        let bell = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Arc::new(Self {
            remote: ArrayQueue::new(REMOTE_WAKE_UPS),
            overflow: Mutex::new(Vec::new()),
            overflown: AtomicBool::new(false),
            rung: AtomicBool::new(false),
            bell,
        }))
    }

    /// Makes the calling thread the one that runs this queue's tasks.
    pub(crate) fn adopt(self: &Arc<Self>) {
        OWN_QUEUE.set(Arc::as_ptr(self) as usize);
        LOCAL.with_borrow_mut(Vec::clear);
    }

    /// What becomes readable when another thread has something for the reactor.
    pub(crate) fn bell(&self) -> BorrowedFd<'_> {
        self.bell.as_fd()
    }

    /// Wakes the reactor from another thread.
    pub(crate) fn ring(&self) {
        if !self.rung.swap(true, Ordering::AcqRel) {
            // Fails only when the counter would overflow; then it is readable already.
            let _ = rustix::io::write(&self.bell, &1u64.to_ne_bytes());
        }
    }

    /// Makes the bell silent. To be called before looking at what other threads left.
    pub(crate) fn silence(&self) {
        // EAGAIN: it was silent.
        let _ = rustix::io::read(&self.bell, &mut [0u8; 8]);
        // In this order: who rings from now on is heard. Who found the bell rung before has left
        // something that is seen after this.
        self.rung.swap(false, Ordering::AcqRel);
    }

    fn push(self: &Arc<Self>, task: TaskId) {
        if OWN_QUEUE.get() == Arc::as_ptr(self) as usize {
            LOCAL.with_borrow_mut(|local| local.push(task));
        } else {
            if let Err(task) = self.remote.push(task) {
                self.overflow().push(task);
                self.overflown.store(true, Ordering::Release);
            }
            self.ring();
        }
    }

    fn overflow(&self) -> MutexGuard<'_, Vec<TaskId>> {
        self.overflow.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Moves the local wake-ups to `tasks`, which is empty.
    pub(crate) fn take_local(tasks: &mut Vec<TaskId>) {
        LOCAL.with_borrow_mut(|local| std::mem::swap(local, tasks));
    }

    /// Appends the wake-ups of other threads to `tasks`.
    pub(crate) fn take_remote(&self, tasks: &mut Vec<TaskId>) {
        // Who pushes meanwhile rings again: not more than there is room for, so that this ends.
        for _ in 0..REMOTE_WAKE_UPS {
            match self.remote.pop() {
                Some(task) => tasks.push(task),
                None => break,
            }
        }
        if self.overflown.swap(false, Ordering::AcqRel) {
            tasks.append(&mut self.overflow());
        }
    }

    /// A waker for `task`; made once per task slot and used again.
    pub(crate) fn waker(self: &Arc<Self>, task: TaskId) -> Waker {
        Waker::from(Arc::new(TaskWaker {
            queue: Arc::clone(self),
            task,
        }))
    }
}

struct TaskWaker {
    queue: Arc<ReadyQueue>,
    task: TaskId,
}

impl Wake for TaskWaker {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.queue.push(self.task);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn readable(queue: &ReadyQueue) -> bool {
        rustix::io::read(queue.bell(), &mut [0u8; 8]).is_ok()
    }

    #[test]
    fn a_wake_up_on_the_own_thread_rings_no_bell() {
        let queue = ReadyQueue::new().unwrap();
        queue.adopt();
        queue.waker(TaskId::Control(7)).wake();
        let mut tasks = Vec::new();
        ReadyQueue::take_local(&mut tasks);
        assert_eq!(tasks, [TaskId::Control(7)]);
        assert!(!readable(&queue));
    }

    #[test]
    fn wake_ups_of_other_threads_ring_once_until_heard() {
        let queue = ReadyQueue::new().unwrap();
        queue.adopt();
        let waker = queue.waker(TaskId::Command { lun: 1, slot: 2 });
        std::thread::spawn(move || {
            waker.wake_by_ref();
            waker.wake();
        })
        .join()
        .unwrap();
        let mut count = [0u8; 8];
        rustix::io::read(queue.bell(), &mut count).unwrap();
        assert_eq!(u64::from_ne_bytes(count), 1);
        queue.silence();
        let mut tasks = Vec::new();
        queue.take_remote(&mut tasks);
        assert_eq!(tasks, [TaskId::Command { lun: 1, slot: 2 }; 2]);
        queue.ring();
        assert!(readable(&queue));
    }

    #[test]
    fn no_wake_up_is_lost_however_many_there_are() {
        const EACH: u32 = 2 * REMOTE_WAKE_UPS as u32;
        let queue = ReadyQueue::new().unwrap();
        queue.adopt();
        let threads: Vec<_> = (0..4)
            .map(|lun| {
                let queue = Arc::clone(&queue);
                std::thread::spawn(move || {
                    for slot in 0..EACH {
                        queue.waker(TaskId::Command { lun, slot }).wake();
                    }
                })
            })
            .collect();
        let mut tasks = Vec::new();
        while tasks.len() < 4 * EACH as usize {
            if readable(&queue) {
                queue.silence();
                queue.take_remote(&mut tasks);
            }
        }
        for thread in threads {
            thread.join().unwrap();
        }
        for lun in 0..4 {
            let of_lun = |task: &TaskId| match *task {
                TaskId::Command { lun: of, slot } if of == lun => Some(slot),
                _ => None,
            };
            let mut slots: Vec<u32> = tasks.iter().filter_map(of_lun).collect();
            slots.sort_unstable();
            assert_eq!(slots, (0..EACH).collect::<Vec<_>>());
        }
    }
}
