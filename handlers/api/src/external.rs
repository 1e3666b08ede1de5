//! Operations that somebody else does: a library with threads of its own.
//!
//! Such a library is told to begin something, and calls back on one of its threads when that has
//! ended. [`Io::external`](crate::Io::external) makes the two ends of the way back: a [`Completer`]
//! for the library's thread, and an [`External`] to be awaited on the reactor. Nothing is allocated
//! once as many operations were under way as ever are, the thread takes no lock, and the reactor is
//! woken by one write to an eventfd for all that ends until it looks.
//!
//! # Memory that the library uses
//!
//! The library reads or writes memory until it has called back. That memory, and whatever else must
//! stay where it is (lists of segments, places for results), goes into the operation's *payload*,
//! which nobody gets back before the operation has been completed:
//!
//! - Awaited, the payload comes back together with the result.
//! - An `External` that is dropped before (its task panicked, or the program ends) leaves the payload
//!   with the operation. The completer frees it; if the library never calls back, nobody does.
//!
//! So pointers into the payload's heap are valid for as long as the library may use them: when a LUN
//! is closed, when a cluster does not answer for ever, and when the process ends while the library's
//! threads run on. What also matters is that a command's part of the data area is not given to another
//! command meanwhile. The runner sees to it: it never drops a command that a backstore works on, and
//! where one has panicked, it answers it only when no operation is left that nobody waits for.
//!
//! ```
//! use tcmu_handler::{Buffer, Completer, Io, OwnedBuffer};
//!
//! # fn library_read(buffer: &OwnedBuffer, done: Completer) {
//! #     buffer.view().fill(7);
//! #     let len = buffer.view().len() as i64;
//! #     std::thread::spawn(move || done.complete(len));
//! # }
//! async fn read(io: &Io, buffer: Buffer<'_>) -> std::io::Result<i64> {
//!     // Keeps the memory: `buffer` itself is gone when this future is dropped.
//!     let (completer, operation) = io.external(buffer.to_owned());
//!     library_read(operation.payload(), completer);
//!     let (result, _payload) = operation.await;
//!     result
//! }
//! # let buffer = tcmu_handler::testing::buffer(10);
//! # let io = tcmu_handler::testing::io();
//! # assert_eq!(tcmu_handler::testing::block_on(read(&io, buffer.view())).unwrap(), 10);
//! ```
//!
//! A C library takes a pointer for its callback: [`Completer::into_raw`] and [`Completer::from_raw`].

use std::any::Any;
use std::cell::{Cell, RefCell};
use std::ffi::c_void;
use std::fmt;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::atomic::{AtomicI64, AtomicU8, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use futures_util::task::AtomicWaker;

/// Somebody works on it, and somebody waits.
const RUNNING: u8 = 0;
/// Somebody works on it, and nobody waits any more.
const FORGOTTEN: u8 = 1;
/// It has ended with a result.
const DONE: u8 = 2;
/// Its completer was dropped.
const ABANDONED: u8 = 3;

/// What both ends of one operation share; used again for others.
struct Slot {
    state: AtomicU8,
    result: AtomicI64,
    waker: AtomicWaker,
    /// The payload, once nobody waits any more.
    kept: Mutex<Option<Box<dyn Any + Send>>>,
    /// How many operations of this origin are forgotten.
    forgotten: Arc<AtomicUsize>,
}

impl Slot {
    fn keep(&self, payload: Option<Box<dyn Any + Send>>) -> Option<Box<dyn Any + Send>> {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::replace(&mut *kept, payload)
    }

    fn end(&self, state: u8) {
        if self.state.swap(state, Ordering::AcqRel) == FORGOTTEN {
            drop(self.keep(None));
            self.forgotten.fetch_sub(1, Ordering::AcqRel);
        }
        // Also where nobody waits for the result: somebody may wait for the operation's end.
        self.waker.wake();
    }
}

/// Where external operations begin: one for each [`Io`](crate::Io) and its clones.
#[derive(Default)]
pub(crate) struct Origin {
    spare: RefCell<Vec<Arc<Slot>>>,
    running: Cell<usize>,
    forgotten: Arc<AtomicUsize>,
}

impl Origin {
    pub(crate) fn begin<T: Send + 'static>(
        self: &Rc<Self>,
        payload: T,
    ) -> (Completer, External<T>) {
        let slot = match self.spare.borrow_mut().pop() {
            Some(slot) => {
                slot.waker.take();
                slot.state.store(RUNNING, Ordering::Release);
                slot
            }
            None => Arc::new(Slot {
                state: AtomicU8::new(RUNNING),
                result: AtomicI64::new(0),
                waker: AtomicWaker::new(),
                kept: Mutex::new(None),
                forgotten: Arc::clone(&self.forgotten),
            }),
        };
        self.running.set(self.running.get() + 1);
        let completer = Completer {
            slot: Some(Arc::clone(&slot)),
        };
        let external = External {
            origin: Rc::clone(self),
            slot: Some(slot),
            payload: Some(payload),
        };
        (completer, external)
    }

    pub(crate) fn work(&self) -> ExternalWork {
        ExternalWork {
            running: self.running.get(),
            forgotten: self.forgotten.load(Ordering::Acquire),
        }
    }

    /// Nobody waits for this operation any more.
    fn release(&self, slot: Option<Arc<Slot>>) {
        self.running.set(self.running.get() - 1);
        // A late wake-up of the former user's reaches the next one, who looks in vain.
        self.spare.borrow_mut().extend(slot);
    }
}

/// How many external operations there are: for those who run backstores.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ExternalWork {
    /// They are waited for.
    pub running: usize,
    /// They run, and nobody waits any more. What they use must not be given to others.
    pub forgotten: usize,
}

/// Says how an external operation ended, from any thread.
///
/// Dropped, it ends the operation with an error: nobody waits for ever.
#[must_use = "dropped, it ends the operation with an error"]
pub struct Completer {
    slot: Option<Arc<Slot>>,
}

impl Completer {
    /// Ends the operation. What `result` means is a matter between those who call this and those who
    /// await the [`External`].
    ///
    /// It neither blocks nor runs code of the waiting side, so it may be called where a library calls
    /// back.
    pub fn complete(mut self, result: i64) {
        if let Some(slot) = self.slot.take() {
            slot.result.store(result, Ordering::Relaxed);
            slot.end(DONE);
        }
    }

    /// The completer as a pointer for a C library's callback, which makes a completer of it again
    /// with [`from_raw`](Self::from_raw).
    pub fn into_raw(mut self) -> *mut c_void {
        match self.slot.take() {
            Some(slot) => Arc::into_raw(slot).cast_mut().cast(),
            None => unreachable!("a completer has its slot until it is used up"),
        }
    }

    /// The completer that became `pointer`.
    ///
    /// # Safety
    /// `pointer` comes from [`into_raw`](Self::into_raw), and this is the first call for it.
    #[allow(unsafe_code)] // Declares the contract that a C library's callback has to keep.
    pub unsafe fn from_raw(pointer: *mut c_void) -> Self {
        // SAFETY: the caller promises that `into_raw` made the pointer of an `Arc<Slot>` and gave its
        // ownership away, and that nobody else takes it back.
        let slot = unsafe { Arc::from_raw(pointer.cast::<Slot>().cast_const()) };
        Self { slot: Some(slot) }
    }
}

impl Drop for Completer {
    fn drop(&mut self) {
        if let Some(slot) = self.slot.take() {
            slot.end(ABANDONED);
        }
    }
}

impl fmt::Debug for Completer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Completer").finish_non_exhaustive()
    }
}

/// An external operation under way; completes with its result and its payload.
///
/// The result is what the [`Completer`] was given, or an error where that was dropped.
#[must_use = "what nobody awaits runs on, and nobody learns how it ends"]
pub struct External<T: Send + 'static> {
    origin: Rc<Origin>,
    slot: Option<Arc<Slot>>,
    payload: Option<T>,
}

impl<T: Send + 'static> External<T> {
    /// What the operation needs until its end.
    ///
    /// # Panics
    /// If the future has completed.
    pub fn payload(&self) -> &T {
        match &self.payload {
            Some(payload) => payload,
            None => panic!("the payload was given back when the operation ended"),
        }
    }
}

/// Pinning the future does not pin the payload.
impl<T: Send + 'static> Unpin for External<T> {}

impl<T: Send + 'static> Future for External<T> {
    type Output = (io::Result<i64>, T);

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.get_mut();
        let Some(slot) = &this.slot else {
            panic!("the operation was polled after its end");
        };
        let mut state = slot.state.load(Ordering::Acquire);
        if state == RUNNING {
            slot.waker.register(context.waker());
            // It may have ended before it knew whom to wake.
            state = slot.state.load(Ordering::Acquire);
        }
        let result = match state {
            RUNNING | FORGOTTEN => return Poll::Pending,
            DONE => Ok(slot.result.load(Ordering::Relaxed)),
            _ => Err(io::Error::other(
                "whoever was to complete an operation gave it up",
            )),
        };
        this.origin.release(this.slot.take());
        match this.payload.take() {
            Some(payload) => Poll::Ready((result, payload)),
            None => unreachable!("the payload goes with the slot"),
        }
    }
}

impl<T: Send + 'static> Drop for External<T> {
    fn drop(&mut self) {
        let (Some(slot), Some(payload)) = (self.slot.take(), self.payload.take()) else {
            return;
        };
        // In this order: whoever finds the operation forgotten finds the payload too.
        slot.keep(Some(Box::new(payload)));
        slot.forgotten.fetch_add(1, Ordering::AcqRel);
        let forgotten =
            slot.state
                .compare_exchange(RUNNING, FORGOTTEN, Ordering::AcqRel, Ordering::Acquire);
        if forgotten.is_ok() {
            self.origin.release(None);
        } else {
            slot.forgotten.fetch_sub(1, Ordering::AcqRel);
            drop(slot.keep(None));
            self.origin.release(Some(slot));
        }
    }
}

impl<T: Send + 'static> fmt::Debug for External<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("External").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{block_on, io};
    use std::sync::mpsc::{Sender, channel};
    use std::task::{Wake, Waker};
    use std::thread;

    /// Tells when it is freed.
    struct Told(Sender<&'static str>);

    impl Drop for Told {
        fn drop(&mut self) {
            self.0.send("freed").unwrap();
        }
    }

    #[test]
    fn a_result_comes_from_another_thread_together_with_the_payload() {
        let io = io();
        for number in 0..1000 {
            let (completer, operation) = io.external(vec![number]);
            assert_eq!(operation.payload(), &[number]);
            let thread = thread::spawn(move || completer.complete(number));
            let (result, payload) = block_on(operation);
            assert_eq!((result.unwrap(), payload), (number, vec![number]));
            thread.join().unwrap();
        }
        assert_eq!(io.external_work(), ExternalWork::default());
    }

    #[test]
    fn many_operations_end_in_any_order_and_use_few_slots() {
        let origin = Rc::new(Origin::default());
        let (jobs, queue) = channel::<(Completer, i64)>();
        let library = thread::spawn(move || {
            let mut held = Vec::new();
            for (completer, number) in queue {
                held.push((completer, number));
                if held.len() == 16 {
                    for (completer, number) in held.drain(..).rev() {
                        completer.complete(number);
                    }
                }
            }
        });
        for round in 0..200 {
            let operations: Vec<_> = (0..16)
                .map(|lane| {
                    let (completer, operation) = origin.begin(());
                    jobs.send((completer, round * 16 + lane)).unwrap();
                    operation
                })
                .collect();
            assert_eq!(origin.work().running, 16);
            for (lane, operation) in operations.into_iter().enumerate() {
                let (result, ()) = block_on(operation);
                assert_eq!(result.unwrap(), round * 16 + lane as i64);
            }
        }
        assert_eq!(origin.spare.borrow().len(), 16);
        drop(jobs);
        library.join().unwrap();
    }

    #[test]
    fn a_dropped_completer_is_an_error_and_no_hang() {
        let io = io();
        let (completer, operation) = io.external(7);
        drop(completer);
        let (result, payload) = block_on(operation);
        assert!(result.is_err());
        assert_eq!(payload, 7);
    }

    #[test]
    fn a_payload_outlives_those_who_wait_until_the_operation_has_ended() {
        let io = io();
        let (tell, told) = channel();
        let (completer, operation) = io.external(Told(tell));
        drop(operation);
        let forgotten = ExternalWork {
            running: 0,
            forgotten: 1,
        };
        assert_eq!(io.external_work(), forgotten);
        assert!(told.try_recv().is_err(), "freed while it was in use");
        thread::spawn(move || completer.complete(0)).join().unwrap();
        assert_eq!(told.try_recv().unwrap(), "freed");
        assert_eq!(io.external_work(), ExternalWork::default());
    }

    #[test]
    fn an_operation_that_has_ended_is_not_forgotten_when_it_is_dropped() {
        let io = io();
        let (tell, told) = channel();
        let (completer, operation) = io.external(Told(tell));
        completer.complete(0);
        drop(operation);
        assert_eq!(told.try_recv().unwrap(), "freed");
        assert_eq!(io.external_work(), ExternalWork::default());
    }

    #[test]
    fn the_task_of_a_forgotten_operation_hears_of_its_end() {
        struct Count(AtomicUsize);
        impl Wake for Count {
            fn wake(self: Arc<Self>) {
                self.0.fetch_add(1, Ordering::Relaxed);
            }
        }
        let io = io();
        let woken = Arc::new(Count(AtomicUsize::new(0)));
        let (completer, mut operation) = io.external(());
        let waker = Waker::from(Arc::clone(&woken));
        let pending = Pin::new(&mut operation).poll(&mut Context::from_waker(&waker));
        assert!(pending.is_pending());
        drop(operation);
        completer.complete(0);
        assert_eq!(woken.0.load(Ordering::Relaxed), 1);
    }

    #[test]
    #[allow(unsafe_code)]
    fn a_pointer_becomes_the_completer_again() {
        let io = io();
        let (completer, operation) = io.external(());
        let pointer = completer.into_raw();
        // SAFETY: it was just made, and is used once.
        unsafe { Completer::from_raw(pointer) }.complete(-5);
        assert_eq!(block_on(operation).0.unwrap(), -5);
    }
}
