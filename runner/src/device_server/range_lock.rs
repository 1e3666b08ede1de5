//! Which ranges of a logical unit are in use, so that commands which are more than one request to
//! the backstore are one to everybody else.
//!
//! Commands complete out of order, and the backstore may run overlapping requests in any order. That
//! is all that SAM asks of plain reads and writes, which are **shared**: they never wait for each
//! other. A command that reads, decides and writes (COMPARE AND WRITE, ORWRITE), that writes in
//! pieces (WRITE SAME), or that owns the whole unit for a while (FORMAT UNIT, SANITIZE) takes its
//! range **exclusively**: it waits for what overlaps it, and what comes later and overlaps it waits.
//!
//! ```text
//! let _range = self.unit.ranges.shared(extent).await;     // around each read, write and unmap
//! let _range = self.unit.ranges.exclusive(extent).await;  // around the whole of the others
//! ```
//!
//! - A request waits only for earlier ones, in the order of the calls of `shared` and `exclusive`.
//!   So nobody starves, and there is no deadlock as long as nobody waits for a range, of this unit or
//!   of another, while holding one. A copy between units therefore takes the source range, lets go,
//!   and then takes the destination range.
//! - Dropping the future or the guard gives the range up, so a command that panics holds nobody off.
//! - Nothing is allocated once there have been as many requests at a time as there are now; where
//!   nobody is exclusive, a request costs a few stores.

use std::cell::RefCell;
use std::future::Future;
use std::mem;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};

use tcmu_handler::Extent;

/// The ranges of one logical unit that are held or waited for.
#[derive(Debug, Default)]
pub(super) struct RangeLock {
    table: RefCell<Table>,
}

impl RangeLock {
    /// The range for a request that may run beside other shared ones. The request has its place in
    /// the order from now on.
    pub(super) fn shared(&self, extent: Extent) -> Acquire<'_> {
        self.enter(extent, false)
    }

    /// The range for nobody else. The request has its place in the order from now on.
    pub(super) fn exclusive(&self, extent: Extent) -> Acquire<'_> {
        self.enter(extent, true)
    }

    fn enter(&self, extent: Extent, exclusive: bool) -> Acquire<'_> {
        let slot = self.table.borrow_mut().insert(extent, exclusive);
        Acquire {
            place: Some(Place { lock: self, slot }),
        }
    }

    fn leave(&self, slot: u32) {
        let (removed, granted) = self.table.borrow_mut().remove(slot);
        drop(removed);
        if !granted {
            return;
        }
        let mut from = 0;
        loop {
            // A waker is woken when the table can be used again.
            let waker = self.table.borrow_mut().granted_waker(&mut from);
            let Some(waker) = waker else {
                return;
            };
            waker.wake();
        }
    }
}

/// All requests, in slots that are used again.
#[derive(Debug, Default)]
struct Table {
    entries: Vec<Entry>,
    free: Vec<u32>,
    /// How many are exclusive, whether they hold their range or wait for it.
    exclusive: usize,
    /// How many wait.
    waiting: usize,
    next_order: u64,
}

/// One request. A free slot is a request for no bytes, which is in nobody's way.
#[derive(Debug, Default)]
struct Entry {
    start: u64,
    end: u64,
    order: u64,
    exclusive: bool,
    /// How many earlier requests have to leave before this one holds its range.
    blockers: usize,
    waker: Option<Waker>,
}

impl Entry {
    fn conflicts_with(&self, other: &Self) -> bool {
        let overlap = self.start.max(other.start) < self.end.min(other.end);
        overlap && (self.exclusive || other.exclusive)
    }
}

impl Table {
    fn insert(&mut self, extent: Extent, exclusive: bool) -> u32 {
        let mut entry = Entry {
            start: extent.offset,
            end: extent.end(),
            order: self.next_order,
            exclusive,
            ..Entry::default()
        };
        self.next_order += 1;
        if exclusive || self.exclusive != 0 {
            let conflicting = |other: &&Entry| entry.conflicts_with(other);
            entry.blockers = self.entries.iter().filter(conflicting).count();
            self.exclusive += usize::from(exclusive);
            self.waiting += usize::from(entry.blockers != 0);
        }
        match self.free.pop() {
            Some(slot) => {
                self.entries[slot as usize] = entry;
                slot
            }
            None => {
                self.entries.push(entry);
                self.entries.len() as u32 - 1
            }
        }
    }

    /// Takes a request out, and says whether others now hold their ranges.
    fn remove(&mut self, slot: u32) -> (Entry, bool) {
        let removed = mem::take(&mut self.entries[slot as usize]);
        self.free.push(slot);
        self.exclusive -= usize::from(removed.exclusive);
        self.waiting -= usize::from(removed.blockers != 0);
        let before = self.waiting;
        if self.waiting != 0 {
            for entry in &mut self.entries {
                let waited = entry.blockers != 0 && entry.order > removed.order;
                if waited && entry.conflicts_with(&removed) {
                    entry.blockers -= 1;
                    self.waiting -= usize::from(entry.blockers == 0);
                }
            }
        }
        (removed, self.waiting < before)
    }

    /// The waker of a request that holds its range and has not been told, in a slot not before `from`.
    fn granted_waker(&mut self, from: &mut usize) -> Option<Waker> {
        while let Some(entry) = self.entries.get_mut(*from) {
            *from += 1;
            if entry.blockers == 0
                && let Some(waker) = entry.waker.take()
            {
                return Some(waker);
            }
        }
        None
    }

    /// Whether the request holds its range. If not, `waker` is woken when it does.
    fn poll(&mut self, slot: u32, waker: &Waker) -> bool {
        let entry = &mut self.entries[slot as usize];
        if entry.blockers == 0 {
            return true;
        }
        match &mut entry.waker {
            Some(known) => known.clone_from(waker),
            None => entry.waker = Some(waker.clone()),
        }
        false
    }
}

/// A request's place in the table.
#[derive(Debug)]
struct Place<'a> {
    lock: &'a RangeLock,
    slot: u32,
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.lock.leave(self.slot);
    }
}

/// Waits until the range can be used.
#[derive(Debug)]
#[must_use = "the range is given up when this is dropped"]
pub(super) struct Acquire<'a> {
    place: Option<Place<'a>>,
}

impl<'a> Future for Acquire<'a> {
    type Output = RangeGuard<'a>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let place = self
            .place
            .take()
            .expect("a future is not polled after its end");
        let held = (place.lock.table.borrow_mut()).poll(place.slot, context.waker());
        if held {
            return Poll::Ready(RangeGuard { _place: place });
        }
        self.place = Some(place);
        Poll::Pending
    }
}

/// Holds a range.
#[derive(Debug)]
#[must_use = "the range is given up when this is dropped"]
pub(super) struct RangeGuard<'a> {
    _place: Place<'a>,
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::task::Wake;

    use proptest::prelude::*;

    use super::*;

    /// A waker that remembers.
    #[derive(Default)]
    struct Bell(AtomicBool);

    impl Wake for Bell {
        fn wake(self: Arc<Self>) {
            self.0.store(true, Ordering::Relaxed);
        }
    }

    impl Bell {
        fn rang(&self) -> bool {
            self.0.swap(false, Ordering::Relaxed)
        }
    }

    /// A request as a command makes it.
    struct Request<'a> {
        acquire: Option<Acquire<'a>>,
        guard: Option<RangeGuard<'a>>,
        bell: Arc<Bell>,
        /// The lock knows the bell.
        waits: bool,
    }

    impl<'a> Request<'a> {
        fn new(acquire: Acquire<'a>) -> Self {
            Self {
                acquire: Some(acquire),
                guard: None,
                bell: Arc::default(),
                waits: false,
            }
        }

        fn poll(&mut self) -> bool {
            if let Some(acquire) = &mut self.acquire {
                let waker = Waker::from(Arc::clone(&self.bell));
                let mut context = Context::from_waker(&waker);
                if let Poll::Ready(guard) = Pin::new(acquire).poll(&mut context) {
                    self.guard = Some(guard);
                    self.acquire = None;
                }
            }
            self.waits = self.guard.is_none();
            self.guard.is_some()
        }
    }

    fn extent(offset: u64, len: u64) -> Extent {
        Extent { offset, len }
    }

    fn is_empty(lock: &RangeLock) -> bool {
        let table = lock.table.borrow();
        table.free.len() == table.entries.len() && table.exclusive == 0 && table.waiting == 0
    }

    #[test]
    fn shared_ranges_overlap() {
        let lock = RangeLock::default();
        let mut first = Request::new(lock.shared(extent(0, 100)));
        let mut second = Request::new(lock.shared(extent(50, 100)));
        assert!(first.poll() && second.poll());
    }

    #[test]
    fn an_exclusive_range_is_for_one() {
        let lock = RangeLock::default();
        let mut read = Request::new(lock.shared(extent(0, 100)));
        let mut swap = Request::new(lock.exclusive(extent(50, 100)));
        let mut beside = Request::new(lock.exclusive(extent(150, 1)));
        let mut late = Request::new(lock.shared(extent(149, 1)));
        assert!(read.poll() && beside.poll());
        assert!(!swap.poll() && !late.poll());
        drop(read);
        assert!(swap.bell.rang() && !late.bell.rang());
        assert!(swap.poll() && !late.poll());
        drop(swap);
        assert!(late.bell.rang() && late.poll());
        drop((beside, late));
        assert!(is_empty(&lock));
    }

    #[test]
    fn later_requests_do_not_overtake_one_that_waits() {
        let lock = RangeLock::default();
        let mut reads = vec![Request::new(lock.shared(extent(0, 10)))];
        let mut format = Request::new(lock.exclusive(extent(0, 1000)));
        for _ in 0..5 {
            reads.push(Request::new(lock.shared(extent(0, 10))));
        }
        assert!(reads[0].poll() && !format.poll());
        assert!(reads[1..].iter_mut().all(|read| !read.poll()));
        drop(reads.remove(0));
        assert!(format.poll());
        drop(format);
        assert!(reads.iter_mut().all(|read| read.bell.rang() && read.poll()));
    }

    #[test]
    fn a_request_that_is_given_up_holds_nobody_off() {
        let lock = RangeLock::default();
        let mut first = Request::new(lock.exclusive(extent(0, 10)));
        let mut second = Request::new(lock.exclusive(extent(0, 20)));
        let mut third = Request::new(lock.exclusive(extent(10, 10)));
        assert!(first.poll() && !second.poll() && !third.poll());
        drop(second);
        assert!(third.bell.rang() && third.poll());
    }

    #[test]
    fn no_bytes_and_the_last_bytes() {
        let lock = RangeLock::default();
        let mut all = Request::new(lock.exclusive(extent(0, u64::MAX)));
        let mut nothing = Request::new(lock.exclusive(extent(5, 0)));
        let mut last = Request::new(lock.shared(extent(u64::MAX - 1, u64::MAX)));
        assert!(all.poll() && nothing.poll() && !last.poll());
    }

    #[test]
    fn slots_are_used_again() {
        let lock = RangeLock::default();
        for _ in 0..100 {
            let requests = [lock.shared(extent(0, 1)), lock.exclusive(extent(0, 1))];
            drop(requests);
        }
        assert_eq!(lock.table.borrow().entries.len(), 2);
        assert!(is_empty(&lock));
    }

    /// What the lock promises, in the plainest words: a request holds its range once no earlier one
    /// that is still there conflicts with it.
    #[derive(Clone, Copy)]
    struct Model {
        extent: Extent,
        exclusive: bool,
    }

    impl Model {
        fn conflicts_with(self, other: Self) -> bool {
            let (a, b) = (self.extent, other.extent);
            let common = (a.offset..a.end()).any(|byte| (b.offset..b.end()).contains(&byte));
            common && (self.exclusive || other.exclusive)
        }
    }

    #[derive(Clone, Copy, Debug)]
    enum Step {
        Enter {
            offset: u64,
            len: u64,
            exclusive: bool,
        },
        /// The one with this number, among those that are there.
        Leave(usize),
        Poll(usize),
    }

    fn any_step() -> impl Strategy<Value = Step> {
        prop_oneof![
            3 => (0..20u64, 0..12u64, prop::bool::weighted(0.3)).prop_map(
                |(offset, len, exclusive)| Step::Enter { offset, len, exclusive }
            ),
            2 => any::<usize>().prop_map(Step::Leave),
            2 => any::<usize>().prop_map(Step::Poll),
        ]
    }

    proptest! {
        #[test]
        fn the_lock_is_its_model(steps in prop::collection::vec(any_step(), 1..80)) {
            let lock = RangeLock::default();
            // In the order of arrival.
            let mut requests: Vec<(Model, Request<'_>)> = Vec::new();
            for step in steps {
                let held_before: Vec<bool> = (0..requests.len())
                    .map(|index| holds(&requests, index))
                    .collect();
                let mut gone = requests.len();
                match step {
                    Step::Enter { offset, len, exclusive } => {
                        let extent = Extent { offset, len };
                        let acquire = if exclusive {
                            lock.exclusive(extent)
                        } else {
                            lock.shared(extent)
                        };
                        requests.push((Model { extent, exclusive }, Request::new(acquire)));
                    }
                    Step::Leave(number) if !requests.is_empty() => {
                        gone = number % requests.len();
                        requests.remove(gone);
                    }
                    Step::Poll(number) if !requests.is_empty() => {
                        let number = number % requests.len();
                        let holds = holds(&requests, number);
                        prop_assert_eq!(requests[number].1.poll(), holds);
                    }
                    Step::Leave(_) | Step::Poll(_) => {}
                }
                for index in 0..requests.len() {
                    let before = index + usize::from(index >= gone);
                    let waited = held_before.get(before) == Some(&false);
                    let granted = waited && holds(&requests, index);
                    let request = &requests[index].1;
                    // One that was never polled has left no waker.
                    let rang = request.bell.rang();
                    prop_assert!(!rang || granted);
                    prop_assert!(rang || !(granted && request.waits));
                }
            }
            for index in 0..requests.len() {
                let holds = holds(&requests, index);
                prop_assert_eq!(requests[index].1.poll(), holds);
            }
            drop(requests);
            prop_assert!(is_empty(&lock));
        }
    }

    fn holds(requests: &[(Model, Request<'_>)], index: usize) -> bool {
        let request = requests[index].0;
        requests[..index]
            .iter()
            .all(|(earlier, _)| !earlier.conflicts_with(request))
    }
}
