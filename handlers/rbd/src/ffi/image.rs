//! Images: librbd.

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::io;
use std::ptr;
use std::sync::Arc;

use tcmu_handler::{BlockStatus, Extent, External, Io};

use super::cluster::Pool;
use super::library::{ConfigOption, Functions, Library, RbdImage};
use super::request::Request;
use super::watch::{Watch, on_news};
use super::{answer, text};

/// `RBD_FEATURE_EXCLUSIVE_LOCK` of include/rbd/features.h.
const EXCLUSIVE_LOCK: u64 = 1 << 2;
/// `RBD_LOCK_MODE_EXCLUSIVE`
const EXCLUSIVE: c_int = 0;
/// `RBD_WRITE_ZEROES_FLAG_THICK_PROVISION`
const THICK: c_int = 1;

/// What becomes of the storage below a range of zeroes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ZeroMode {
    /// It is given back.
    Unmap,
    /// It is kept, or taken.
    Provision,
}

/// An open image.
pub(crate) struct Image {
    library: Library,
    handle: RbdImage,
    /// The watch's handle, and what it was given to call with.
    watch: Option<(u64, *mut c_void)>,
    /// Outlives the image.
    pool: Pool,
}

// SAFETY: librbd's images may be used from any thread, by several at once. The watch's pointer is used
// when the image is dropped, by one.
unsafe impl Send for Image {}
// SAFETY: as above.
unsafe impl Sync for Image {}

impl Image {
    /// Opens an image or a snapshot of it.
    pub(crate) fn open(
        library: Library,
        pool: Pool,
        name: &CStr,
        snapshot: Option<&CStr>,
        read_only: bool,
    ) -> io::Result<Self> {
        let functions = library.functions;
        let open = match read_only {
            true => functions.rbd_open_read_only,
            false => functions.rbd_open,
        };
        let mut handle = ptr::null_mut();
        let snapshot = snapshot.map_or(ptr::null(), CStr::as_ptr);
        // SAFETY: the pool is open; the names are strings, or NULL for no snapshot; `handle` is a place.
        answer(unsafe { open(pool.handle, name.as_ptr(), &mut handle, snapshot) })?;
        Ok(Self {
            library,
            handle,
            watch: None,
            pool,
        })
    }

    fn functions(&self) -> &'static Functions {
        self.library.functions
    }

    /// Asks for one of the image's numbers.
    fn number(&self, get: unsafe extern "C" fn(RbdImage, *mut u64) -> c_int) -> io::Result<u64> {
        let mut number = 0;
        // SAFETY: the image is open; `number` is a place for the only thing that such functions store.
        answer(unsafe { get(self.handle, &mut number) })?;
        Ok(number)
    }

    /// What tells this image from all others, in letters, digits, dots and hyphens.
    pub(crate) fn id(&self) -> io::Result<String> {
        let mut bytes = [0u8; 128];
        let (at, len) = (bytes.as_mut_ptr().cast(), bytes.len());
        // SAFETY: the image is open; there are `len` bytes at `at`.
        answer(unsafe { (self.functions().rbd_get_id)(self.handle, at, len) })?;
        Ok(format!("{}.{}", self.pool.id()?, text(&bytes)))
    }

    /// The size in bytes. May block.
    pub(crate) fn size(&self) -> io::Result<u64> {
        self.number(self.functions().rbd_get_size)
    }

    /// Whether the image has an exclusive lock.
    pub(crate) fn can_be_locked(&self) -> io::Result<bool> {
        let features = self.number(self.functions().rbd_get_features)?;
        Ok(features & EXCLUSIVE_LOCK != 0)
    }

    /// How many bytes lie on one object after the other.
    pub(crate) fn stripe_unit(&self) -> io::Result<u64> {
        self.number(self.functions().rbd_get_stripe_unit)
    }

    /// How many objects such units are spread over before they come to the first again.
    pub(crate) fn stripe_count(&self) -> io::Result<u64> {
        self.number(self.functions().rbd_get_stripe_count)
    }

    /// Makes the image larger. May block long.
    pub(crate) fn grow(&self, size: u64) -> io::Result<()> {
        /// # Safety
        /// None is needed.
        unsafe extern "C" fn unheard(_: u64, _: u64, _: *mut c_void) -> c_int {
            0
        }
        let resize = self.functions().rbd_resize2;
        // SAFETY: the image is open; the callback takes anything.
        answer(unsafe { resize(self.handle, size, false, unheard, ptr::null_mut()) }).map(drop)
    }

    /// The value of an option for this image, with what the image's and the pool's own settings say.
    pub(crate) fn setting(&self, name: &CStr) -> io::Result<Option<String>> {
        let functions = self.functions();
        let empty = ConfigOption {
            name: ptr::null_mut(),
            value: ptr::null_mut(),
            source: 0,
        };
        let mut options = Vec::new();
        let mut room: c_int = 0;
        // SAFETY: the image is open; there is no room for anything.
        let asked = unsafe {
            (functions.rbd_config_image_list)(self.handle, options.as_mut_ptr(), &mut room)
        };
        if asked != -libc::ERANGE {
            return answer(asked).map(|_| None);
        }
        // It said how many there are.
        options.resize(usize::try_from(room).unwrap_or_default(), empty);
        // SAFETY: the image is open; `options` has room for `room` of them.
        answer(unsafe {
            (functions.rbd_config_image_list)(self.handle, options.as_mut_ptr(), &mut room)
        })?;
        options.truncate(usize::try_from(room).unwrap_or_default());
        // SAFETY: librbd filled these in: strings, which are ours until they are freed.
        let found = options
            .iter()
            .find(|option| unsafe { CStr::from_ptr(option.name) } == name);
        let value = found.map(|option| {
            // SAFETY: as above.
            let value = unsafe { CStr::from_ptr(option.value) };
            value.to_string_lossy().into_owned()
        });
        // SAFETY: the list is as librbd filled it in, and is not used any more.
        unsafe { (functions.rbd_config_image_list_cleanup)(options.as_mut_ptr(), room) };
        Ok(value)
    }

    /// Has `watch` told of news, until the image is closed.
    pub(crate) fn watch(&mut self, watch: Arc<Watch>) -> io::Result<()> {
        if self.watch.is_some() {
            return Err(io::Error::from_raw_os_error(libc::EEXIST));
        }
        let mut handle = 0;
        let argument = watch.retain();
        let begin = self.functions().rbd_update_watch;
        // SAFETY: the image is open; `on_news` takes what a watch retains; `handle` is a place.
        let begun = answer(unsafe { begin(self.handle, &mut handle, on_news, argument) });
        match begun {
            Ok(_) => {
                self.watch = Some((handle, argument));
                Ok(())
            }
            Err(error) => {
                // SAFETY: librbd did not take it.
                unsafe { Watch::release(argument) };
                Err(error)
            }
        }
    }

    /// Takes the exclusive lock, and keeps it.
    pub(crate) fn lock(&self) -> io::Result<()> {
        // SAFETY: the image is open.
        answer(unsafe { (self.functions().rbd_lock_acquire)(self.handle, EXCLUSIVE) }).map(drop)
    }

    /// The address of the client that holds the exclusive lock, if one does.
    pub(crate) fn lock_owner(&self) -> io::Result<Option<CString>> {
        let functions = self.functions();
        let mut mode = 0;
        let mut owner: *mut c_char = ptr::null_mut();
        let mut owners = 1;
        // SAFETY: the image is open; there is room for one owner, and an exclusive lock has no more.
        let listed = answer(unsafe {
            (functions.rbd_lock_get_owners)(self.handle, &mut mode, &mut owner, &mut owners)
        });
        match listed {
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => return Ok(None),
            other => other?,
        };
        if owners == 0 || owner.is_null() {
            return Ok(None);
        }
        // SAFETY: librbd stored one string.
        let address = unsafe { CStr::from_ptr(owner) }.to_owned();
        // SAFETY: the list is as librbd filled it in, and is not used any more.
        unsafe { (functions.rbd_lock_get_owners_cleanup)(&mut owner, owners) };
        Ok(Some(address))
    }

    /// Takes the exclusive lock away from the client at this address, which is shut out of the cluster.
    pub(crate) fn break_lock(&self, owner: &CStr) -> io::Result<()> {
        let break_lock = self.functions().rbd_lock_break;
        // SAFETY: the image is open; the owner is a string.
        answer(unsafe { break_lock(self.handle, EXCLUSIVE, owner.as_ptr()) }).map(drop)
    }

    /// How the first bytes of a range are kept. May block long.
    pub(crate) fn block_status(&self, extent: Extent) -> io::Result<BlockStatus> {
        let mut first = FirstExtent {
            extent,
            status: None,
        };
        let argument: *mut FirstExtent = &mut first;
        let iterate = self.functions().rbd_diff_iterate2;
        // From no snapshot, with what is inherited from a parent, by whole objects.
        // SAFETY: the image is open; the callback takes `first`, which lives until the call returns.
        let result = unsafe {
            iterate(
                self.handle,
                ptr::null(),
                extent.offset,
                extent.len,
                1,
                1,
                first_extent,
                argument.cast(),
            )
        };
        match first.status {
            // The walk was ended early.
            Some(status) => Ok(status),
            None => answer(result).map(|_| BlockStatus {
                len: extent.len,
                mapped: false,
            }),
        }
    }

    /// Reads at `offset` into the request's buffer. The result is how many bytes there were.
    pub(crate) fn read(&self, io: &Io, request: Request, offset: u64) -> External<Request> {
        let read = self.functions().rbd_aio_readv;
        request.start(self.library, io, |request, completion| {
            let (segments, count) = (request.segments.as_ptr(), request.segments.len() as c_int);
            // SAFETY: the image is open; the request keeps the list and the memory until the end.
            unsafe { read(self.handle, segments, count, offset, completion) }
        })
    }

    /// Writes the request's buffer at `offset`.
    pub(crate) fn write(&self, io: &Io, request: Request, offset: u64) -> External<Request> {
        let write = self.functions().rbd_aio_writev;
        request.start(self.library, io, |request, completion| {
            let (segments, count) = (request.segments.as_ptr(), request.segments.len() as c_int);
            // SAFETY: the image is open; the request keeps the list and the memory until the end.
            unsafe { write(self.handle, segments, count, offset, completion) }
        })
    }

    /// Makes the writes that have completed durable.
    pub(crate) fn flush(&self, io: &Io, request: Request) -> External<Request> {
        let flush = self.functions().rbd_aio_flush;
        request.start(self.library, io, |_, completion| {
            // SAFETY: the image is open.
            unsafe { flush(self.handle, completion) }
        })
    }

    /// Makes a range read as zeroes.
    pub(crate) fn write_zeroes(
        &self,
        io: &Io,
        request: Request,
        extent: Extent,
        mode: ZeroMode,
    ) -> External<Request> {
        let write_zeroes = self.functions().rbd_aio_write_zeroes;
        let Extent { offset, len } = extent;
        let flags = match mode {
            ZeroMode::Unmap => 0,
            ZeroMode::Provision => THICK,
        };
        request.start(self.library, io, |_, completion| {
            // SAFETY: the image is open.
            unsafe { write_zeroes(self.handle, offset, len as usize, completion, flags, 0) }
        })
    }

    /// Writes the second half of the request's bytes at `offset`, if the first half is what is there.
    /// Otherwise the result is -EILSEQ, and the request has the image's offset of the first difference.
    pub(crate) fn compare_and_write(
        &self,
        io: &Io,
        request: Request,
        offset: u64,
    ) -> External<Request> {
        let compare_and_write = self.functions().rbd_aio_compare_and_write;
        request.start(self.library, io, |request, completion| {
            let half = request.bytes.len() / 2;
            let (expected, new) = request.bytes.split_at(half);
            // SAFETY: the image is open; the request keeps its bytes, and the place for the offset,
            // which nobody else touches before the end.
            let result = unsafe {
                compare_and_write(
                    self.handle,
                    offset,
                    half,
                    expected.as_ptr().cast(),
                    new.as_ptr().cast(),
                    completion,
                    request.difference.as_ptr(),
                    0,
                )
            };
            // Small: an error, or no more than was asked for.
            result as c_int
        })
    }
}

impl Drop for Image {
    /// Waits for what is under way, so it may take a while.
    fn drop(&mut self) {
        let functions = self.functions();
        if let Some((watch, _)) = self.watch {
            // SAFETY: the image is open, and the watch is one of its. Closing would end it too; an
            // error says only that the cluster was not told.
            unsafe { (functions.rbd_update_unwatch)(self.handle, watch) };
        }
        // SAFETY: the image is open, and nobody uses the handle any more. Whatever is returned, it is
        // closed.
        unsafe { (functions.rbd_close)(self.handle) };
        if let Some((_, argument)) = self.watch {
            // SAFETY: the image is closed, so librbd calls no more.
            unsafe { Watch::release(argument) };
        }
    }
}

impl std::fmt::Debug for Image {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Image").finish_non_exhaustive()
    }
}

/// The first bytes of a range, as far as they are known.
struct FirstExtent {
    extent: Extent,
    status: Option<BlockStatus>,
}

/// Notes the first extent that librbd names, and ends the walk.
///
/// # Safety
/// `first` is a `FirstExtent`, which nobody else uses during the call.
unsafe extern "C" fn first_extent(
    offset: u64,
    len: usize,
    exists: c_int,
    first: *mut c_void,
) -> c_int {
    // SAFETY: the caller's promise.
    let first = unsafe { &mut *first.cast::<FirstExtent>() };
    if exists == 0 || len == 0 {
        return 0;
    }
    let Extent { offset: start, .. } = first.extent;
    let end = first.extent.end();
    let (len, mapped) = match offset.checked_sub(start) {
        // A hole before it.
        Some(before @ 1..) => (before, false),
        _ => (
            offset.saturating_add(len as u64).saturating_sub(start),
            true,
        ),
    };
    let len = len.min(end.saturating_sub(start));
    if len == 0 {
        return 0;
    }
    first.status = Some(BlockStatus { len, mapped });
    -libc::ECANCELED
}
