//! Counts what a thread allocates, for tests of what must allocate nothing.
//!
//! ```
//! use tcmu_allocations::{Counting, allocations};
//!
//! #[global_allocator]
//! static ALLOCATOR: Counting = Counting;
//!
//! assert_eq!(allocations(|| drop(std::hint::black_box(Box::new(1)))), 1);
//! assert_eq!(allocations(|| ()), 0);
//! ```
#![deny(missing_docs)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

thread_local! {
    static COUNT: Cell<Option<usize>> = const { Cell::new(None) };
}

/// The system's allocator, which counts for [`allocations`]. A test program makes it its own by
/// `#[global_allocator]`.
#[derive(Clone, Copy, Debug)]
pub struct Counting;

// SAFETY: everything is passed on to the system's allocator as it is.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: the caller's promises are the system allocator's.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: as above; `pointer` came from there.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count();
        // SAFETY: as above.
        unsafe { System.realloc(pointer, layout, size) }
    }
}

fn count() {
    COUNT.set(COUNT.get().map(|count| count + 1));
}

/// How often `work` allocates, or lets an allocation grow, on this thread. Always 0 where [`Counting`] is
/// not the allocator.
pub fn allocations(work: impl FnOnce()) -> usize {
    COUNT.set(Some(0));
    work();
    COUNT.replace(None).unwrap_or(0)
}
