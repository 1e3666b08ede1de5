//! Requests that librbd works on.

use std::ffi::{c_int, c_void};
use std::io;
use std::ptr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use libc::iovec;
use tcmu_handler::{Buffer, Completer, External, Io, Memory};

use super::answer;
use super::library::{Library, RbdCompletion};

/// What librbd uses until it has called back, and what it leaves. Used again for other requests, so that
/// nothing is allocated here for each.
#[derive(Default)]
pub(crate) struct Request {
    /// Into `memory`.
    pub(super) segments: Vec<iovec>,
    /// Keeps the segments' memory.
    memory: Option<Arc<dyn Memory>>,
    /// For calls that take their bytes in one piece.
    pub(super) bytes: Vec<u8>,
    /// Where librbd notes the first byte that differs. The allocation of its own is what librbd points
    /// to.
    pub(super) difference: Arc<AtomicU64>,
}

// SAFETY: the addresses in `segments` are those of `memory`, which may be used from any thread.
unsafe impl Send for Request {}

impl Request {
    /// Notes the segments of `buffer`, and keeps its memory.
    pub(crate) fn set_buffer(&mut self, buffer: &Buffer<'_>) {
        let base = buffer.memory().base();
        self.segments.clear();
        self.segments.extend(buffer.segments().map(|segment| iovec {
            iov_base: base.wrapping_add(segment.offset).cast(),
            iov_len: segment.len,
        }));
        self.memory = Some(Arc::clone(buffer.memory()));
    }

    /// Copies the bytes of both buffers, one behind the other.
    pub(crate) fn set_bytes(&mut self, buffers: [&Buffer<'_>; 2]) {
        self.bytes
            .resize(buffers.iter().map(|buffer| buffer.len()).sum(), 0);
        let mut at = 0;
        for buffer in buffers {
            buffer.copy_to(0, &mut self.bytes[at..at + buffer.len()]);
            at += buffer.len();
        }
    }

    /// Lets go of what belongs to the request that has ended.
    pub(crate) fn clear(&mut self) {
        self.segments.clear();
        self.memory = None;
    }

    /// The offset that librbd noted.
    pub(crate) fn difference(&self) -> u64 {
        self.difference.load(Ordering::Relaxed)
    }

    /// Has `call` hand the request to librbd. The future completes with what librbd calls back with.
    ///
    /// `call` gets the request, which is where it will stay, and the completion that librbd takes; it
    /// returns librbd's immediate answer.
    pub(super) fn start(
        self,
        library: Library,
        io: &Io,
        call: impl FnOnce(&Self, RbdCompletion) -> c_int,
    ) -> External<Self> {
        let (completer, operation) = io.external(self);
        let completer = completer.into_raw();
        let begun = begin(library, completer, |completion| {
            call(operation.payload(), completion)
        });
        if let Err(error) = begun {
            let code = error.raw_os_error().unwrap_or(libc::EIO);
            // SAFETY: librbd did not take the request, so it will not call back with the completer.
            unsafe { Completer::from_raw(completer) }.complete(-i64::from(code));
        }
        operation
    }
}

impl std::fmt::Debug for Request {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Request").finish_non_exhaustive()
    }
}

/// Makes a completion whose callback ends `completer`, and uses it in `call`.
fn begin(
    library: Library,
    completer: *mut c_void,
    call: impl FnOnce(RbdCompletion) -> c_int,
) -> io::Result<()> {
    let functions = library.functions;
    let mut completion = ptr::null_mut();
    // SAFETY: `done` takes a completer as its argument; `completion` is a place.
    answer(unsafe { (functions.rbd_aio_create_completion)(completer, done, &mut completion) })?;
    answer(call(completion)).map(drop).inspect_err(|_| {
        // SAFETY: the completion is ours: librbd refused it.
        unsafe { (functions.rbd_aio_release)(completion) };
    })
}

/// Called by librbd, on one of its threads, when a request has ended.
///
/// # Safety
/// `completion` was made with a completer's pointer as its argument, and this is its only call.
unsafe extern "C" fn done(completion: RbdCompletion, completer: *mut c_void) {
    // SAFETY: the caller's promise.
    let completer = unsafe { Completer::from_raw(completer) };
    // It is loaded: this is a call of its.
    let Some(Library { functions }) = Library::loaded() else {
        return;
    };
    // SAFETY: the completion has ended, and lives until it is released.
    let result = unsafe { (functions.rbd_aio_get_return_value)(completion) };
    // SAFETY: nobody uses it any more; librbd holds on to its own reference during the call.
    unsafe { (functions.rbd_aio_release)(completion) };
    completer.complete(result as i64);
}
