//! Futures of one type in slots that are used again: no allocation per task.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};

/// Slots for futures of type `F`. Grows to the largest number of futures that were ever there at
/// once, and never shrinks.
pub(crate) struct Tasks<F> {
    slots: Vec<Slot<F>>,
    free: Vec<u32>,
}

struct Slot<F> {
    future: Pin<Box<Option<F>>>,
    waker: Waker,
}

impl<F: Future> Tasks<F> {
    pub(crate) fn new() -> Self {
        Self {
            slots: Vec::new(),
            free: Vec::new(),
        }
    }

    /// Puts a future into a free slot; `waker` makes the waker of a slot that is new.
    pub(crate) fn insert(&mut self, future: F, waker: impl FnOnce(u32) -> Waker) -> u32 {
        match self.free.pop() {
            Some(slot) => {
                self.slots[slot as usize].future.set(Some(future));
                slot
            }
            None => {
                let slot = self.slots.len() as u32;
                self.slots.push(Slot {
                    future: Box::pin(Some(future)),
                    waker: waker(slot),
                });
                slot
            }
        }
    }

    /// Polls the future in `slot`. An empty slot is pending: a waker may fire after its task ended.
    pub(crate) fn poll(&mut self, slot: u32) -> Poll<F::Output> {
        let Some(Slot { future, waker }) = self.slots.get_mut(slot as usize) else {
            return Poll::Pending;
        };
        let Some(running) = future.as_mut().as_pin_mut() else {
            return Poll::Pending;
        };
        let result = running.poll(&mut Context::from_waker(waker));
        if result.is_ready() {
            future.set(None);
            self.free.push(slot);
        }
        result
    }

    /// The waker of the task in `slot`, if there ever was one.
    pub(crate) fn waker(&self, slot: u32) -> Option<&Waker> {
        self.slots.get(slot as usize).map(|slot| &slot.waker)
    }

    /// Drops the future in `slot`.
    pub(crate) fn discard(&mut self, slot: u32) {
        if let Some(Slot { future, .. }) = self.slots.get_mut(slot as usize)
            && future.is_some()
        {
            future.set(None);
            self.free.push(slot);
        }
    }

    /// How many futures there are.
    pub(crate) fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;

    #[test]
    fn a_slot_is_used_again_and_a_late_wake_up_is_harmless() {
        let open = Cell::new(false);
        let gate = |value: u32| {
            let open = &open;
            async move {
                std::future::poll_fn(|_| {
                    if open.get() {
                        Poll::Ready(())
                    } else {
                        Poll::Pending
                    }
                })
                .await;
                value
            }
        };
        let mut tasks = Tasks::new();
        let first = tasks.insert(gate(1), |_| Waker::noop().clone());
        let second = tasks.insert(gate(2), |_| Waker::noop().clone());
        assert_eq!(tasks.poll(first), Poll::Pending);
        open.set(true);
        assert_eq!(tasks.poll(second), Poll::Ready(2));
        assert_eq!(tasks.poll(second), Poll::Pending);
        assert_eq!(tasks.poll(99), Poll::Pending);
        assert_eq!(tasks.len(), 1);
        let third = tasks.insert(gate(3), |_| unreachable!("a slot is free"));
        assert_eq!(third, second);
        assert_eq!(tasks.poll(third), Poll::Ready(3));
        assert_eq!(tasks.poll(first), Poll::Ready(1));
    }
}
