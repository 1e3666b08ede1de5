//! Loads librbd and librados, and finds their functions.
//!
//! The prototypes follow Ceph's include/rados/librados.h and include/rbd/librbd.h. All of them are in
//! librbd 1.16, of Ceph 16; later versions keep them.

use std::error::Error as _;
use std::ffi::{c_char, c_int, c_void};
use std::io;
use std::sync::OnceLock;

use tcmu_handler::{Error, ErrorKind};

/// `rados_t`
pub(super) type Rados = *mut c_void;
/// `rados_ioctx_t`
pub(super) type IoContext = *mut c_void;
/// `rbd_image_t`
pub(super) type RbdImage = *mut c_void;
/// `rbd_completion_t`
pub(super) type RbdCompletion = *mut c_void;
/// `rbd_callback_t`
pub(super) type Callback = unsafe extern "C" fn(RbdCompletion, *mut c_void);
/// `rbd_update_callback_t`
pub(super) type UpdateCallback = unsafe extern "C" fn(*mut c_void);
/// What `rbd_diff_iterate2` calls for each extent: offset, length, whether it exists.
pub(super) type DiffCallback = unsafe extern "C" fn(u64, usize, c_int, *mut c_void) -> c_int;
/// `librbd_progress_fn_t`
pub(super) type Progress = unsafe extern "C" fn(u64, u64, *mut c_void) -> c_int;

/// `rbd_config_option_t`
#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct ConfigOption {
    pub(super) name: *mut c_char,
    pub(super) value: *mut c_char,
    /// `rbd_config_source_t`, an enum.
    pub(super) source: c_int,
}

macro_rules! functions {
    ($($library:ident { $(fn $name:ident($($argument:ty),* $(,)?) $(-> $result:ty)?;)* })*) => {
        /// The functions of both libraries.
        pub(super) struct Functions {
            $($(pub(super) $name: unsafe extern "C" fn($($argument),*) $(-> $result)?,)*)*
        }

        impl Functions {
            /// # Safety
            /// The libraries are Ceph's, and stay loaded as long as the functions are called.
            unsafe fn find(
                $($library: &libloading::Library),*
            ) -> Result<Self, libloading::Error> {
                Ok(Self {
                    $($(
                        // SAFETY: the library's header declares the function so.
                        $name: unsafe {
                            *$library.get(concat!(stringify!($name), "\0").as_bytes())?
                        },
                    )*)*
                })
            }
        }
    };
}

functions! {
    librados {
        fn rados_create(*mut Rados, *const c_char) -> c_int;
        fn rados_conf_read_file(Rados, *const c_char) -> c_int;
        fn rados_conf_set(Rados, *const c_char, *const c_char) -> c_int;
        fn rados_connect(Rados) -> c_int;
        fn rados_shutdown(Rados);
        fn rados_getaddrs(Rados, *mut *mut c_char) -> c_int;
        fn rados_buffer_free(*mut c_char);
        fn rados_cluster_fsid(Rados, *mut c_char, usize) -> c_int;
        fn rados_ioctx_create(Rados, *const c_char, *mut IoContext) -> c_int;
        fn rados_ioctx_get_id(IoContext) -> i64;
        fn rados_ioctx_set_namespace(IoContext, *const c_char);
        fn rados_ioctx_destroy(IoContext);
    }
    librbd {
        fn rbd_namespace_exists(IoContext, *const c_char, *mut bool) -> c_int;
        fn rbd_open(IoContext, *const c_char, *mut RbdImage, *const c_char) -> c_int;
        fn rbd_open_read_only(IoContext, *const c_char, *mut RbdImage, *const c_char) -> c_int;
        fn rbd_close(RbdImage) -> c_int;
        fn rbd_get_id(RbdImage, *mut c_char, usize) -> c_int;
        fn rbd_get_size(RbdImage, *mut u64) -> c_int;
        fn rbd_get_features(RbdImage, *mut u64) -> c_int;
        fn rbd_get_stripe_unit(RbdImage, *mut u64) -> c_int;
        fn rbd_get_stripe_count(RbdImage, *mut u64) -> c_int;
        fn rbd_resize2(RbdImage, u64, bool, Progress, *mut c_void) -> c_int;
        fn rbd_config_image_list(RbdImage, *mut ConfigOption, *mut c_int) -> c_int;
        fn rbd_config_image_list_cleanup(*mut ConfigOption, c_int);
        fn rbd_update_watch(RbdImage, *mut u64, UpdateCallback, *mut c_void) -> c_int;
        fn rbd_update_unwatch(RbdImage, u64) -> c_int;
        fn rbd_lock_acquire(RbdImage, c_int) -> c_int;
        fn rbd_lock_break(RbdImage, c_int, *const c_char) -> c_int;
        fn rbd_lock_get_owners(RbdImage, *mut c_int, *mut *mut c_char, *mut usize) -> c_int;
        fn rbd_lock_get_owners_cleanup(*mut *mut c_char, usize);
        fn rbd_diff_iterate2(
            RbdImage, *const c_char, u64, u64, u8, u8, DiffCallback, *mut c_void,
        ) -> c_int;
        fn rbd_aio_create_completion(*mut c_void, Callback, *mut RbdCompletion) -> c_int;
        fn rbd_aio_get_return_value(RbdCompletion) -> isize;
        fn rbd_aio_release(RbdCompletion);
        fn rbd_aio_readv(RbdImage, *const libc::iovec, c_int, u64, RbdCompletion) -> c_int;
        fn rbd_aio_writev(RbdImage, *const libc::iovec, c_int, u64, RbdCompletion) -> c_int;
        fn rbd_aio_flush(RbdImage, RbdCompletion) -> c_int;
        fn rbd_aio_write_zeroes(RbdImage, u64, usize, RbdCompletion, c_int, c_int) -> c_int;
        fn rbd_aio_compare_and_write(
            RbdImage, u64, usize, *const c_char, *const c_char, RbdCompletion, *mut u64, c_int,
        ) -> isize;
    }
}

/// Ceph's libraries, loaded.
#[derive(Clone, Copy)]
pub(crate) struct Library {
    pub(super) functions: &'static Functions,
}

/// What was loaded. A failure is not kept: the libraries may be installed while the daemon runs.
static LOADED: OnceLock<Library> = OnceLock::new();

impl Library {
    /// The libraries; they are loaded the first time.
    pub(crate) fn load() -> Result<Self, Error> {
        if let Some(library) = Self::loaded() {
            return Ok(library);
        }
        let library = Self::load_now().map_err(|error| {
            Error::new(
                ErrorKind::Unsupported,
                "Ceph's client library cannot be used; install librbd1 of Ceph 16 or later (apt-get \
                 install librbd1)",
            )
            .with_source(io::Error::other(reason(&error)))
        })?;
        Ok(*LOADED.get_or_init(|| library))
    }

    /// The libraries, if they are loaded.
    pub(super) fn loaded() -> Option<Self> {
        LOADED.get().copied()
    }

    fn load_now() -> Result<Self, libloading::Error> {
        // SAFETY: what runs when they are loaded is Ceph's own code, as installed on this machine.
        let librados = unsafe { libloading::Library::new("librados.so.2") }?;
        // SAFETY: as above.
        let librbd = unsafe { libloading::Library::new("librbd.so.1") }?;
        // SAFETY: they are Ceph's by their names, and are never unloaded: see below.
        let functions = unsafe { Functions::find(&librados, &librbd) }?;
        // Their threads run on, and the functions are called from now on.
        std::mem::forget((librados, librbd));
        Ok(Self {
            functions: Box::leak(Box::new(functions)),
        })
    }
}

/// What the dynamic linker says, which names the library or the function.
fn reason(error: &libloading::Error) -> String {
    error.source().unwrap_or(error).to_string()
}

impl std::fmt::Debug for Library {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Library").finish_non_exhaustive()
    }
}
