//! A mapping of the kernel's memory, as handlers see it.

use std::sync::Arc;

use tcmu::mapping::Mapping;
use tcmu_handler::Memory;

/// A [`Mapping`] that handlers may use.
pub(crate) struct SharedMemory(Arc<Mapping>);

impl SharedMemory {
    pub(crate) fn new(mapping: Arc<Mapping>) -> Self {
        Self(mapping)
    }
}

// SAFETY: a mapping is `len` bytes from `as_ptr` on, readable and writable, at one place for as long
// as it lives, and it lives as long as `self`.
unsafe impl Memory for SharedMemory {
    fn base(&self) -> *mut u8 {
        self.0.as_ptr()
    }

    fn len(&self) -> usize {
        self.0.len()
    }

    fn load(&self, offset: usize, to: &mut [u8]) {
        let read = self.0.read(offset, to);
        debug_assert!(
            read.is_ok(),
            "the range was checked when the buffer was made"
        );
    }

    fn store(&self, offset: usize, from: &[u8]) {
        let written = self.0.write(offset, from);
        debug_assert!(
            written.is_ok(),
            "the range was checked when the buffer was made"
        );
    }

    fn fill(&self, offset: usize, len: usize, byte: u8) {
        let filled = self.0.fill(offset, len, byte);
        debug_assert!(
            filled.is_ok(),
            "the range was checked when the buffer was made"
        );
    }
}
