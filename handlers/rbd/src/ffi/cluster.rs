//! Clusters and their pools: librados.

use std::ffi::{CStr, c_char};
use std::io;
use std::ptr;
use std::sync::Arc;

use super::library::{Functions, IoContext, Library, Rados};
use super::{answer, text};

/// A client of a cluster.
pub(crate) struct Cluster {
    pub(super) functions: &'static Functions,
    handle: Rados,
}

// SAFETY: librados may be used from any thread, by several at once.
unsafe impl Send for Cluster {}
// SAFETY: as above.
unsafe impl Sync for Cluster {}

impl Cluster {
    /// A client that is not connected yet, as this user, or client.admin.
    pub(crate) fn new(library: Library, user: Option<&CStr>) -> io::Result<Self> {
        let functions = library.functions;
        let mut handle = ptr::null_mut();
        let user = user.map_or(ptr::null(), CStr::as_ptr);
        // SAFETY: `handle` is a place for the handle; the name is a string or NULL.
        answer(unsafe { (functions.rados_create)(&mut handle, user) })?;
        Ok(Self { functions, handle })
    }

    /// Reads the configuration from this file, or from where Ceph looks for it.
    pub(crate) fn read_conf(&self, path: Option<&CStr>) -> io::Result<()> {
        let path = path.map_or(ptr::null(), CStr::as_ptr);
        // SAFETY: the handle is that of a client; the path is a string or NULL.
        answer(unsafe { (self.functions.rados_conf_read_file)(self.handle, path) }).map(drop)
    }

    /// Sets an option, before the client connects.
    pub(crate) fn set(&self, option: &CStr, value: &CStr) -> io::Result<()> {
        let (option, value) = (option.as_ptr(), value.as_ptr());
        // SAFETY: the handle is that of a client; both are strings.
        answer(unsafe { (self.functions.rados_conf_set)(self.handle, option, value) }).map(drop)
    }

    /// Connects to the monitors, as long as `client_mount_timeout` says.
    pub(crate) fn connect(&self) -> io::Result<()> {
        // SAFETY: the handle is that of a client.
        answer(unsafe { (self.functions.rados_connect)(self.handle) }).map(drop)
    }

    /// The addresses by which the cluster knows this client.
    pub(crate) fn addresses(&self) -> io::Result<String> {
        let mut addresses: *mut c_char = ptr::null_mut();
        // SAFETY: the handle is that of a client; `addresses` is a place for a string.
        answer(unsafe { (self.functions.rados_getaddrs)(self.handle, &mut addresses) })?;
        if addresses.is_null() {
            return Ok(String::new());
        }
        // SAFETY: the call succeeded, so it is a string, and ours until it is freed.
        let text = unsafe { CStr::from_ptr(addresses) }
            .to_string_lossy()
            .into_owned();
        // SAFETY: librados allocated it, and it is not used any more.
        unsafe { (self.functions.rados_buffer_free)(addresses) };
        Ok(text)
    }

    /// What tells this cluster from all others.
    fn id(&self) -> io::Result<String> {
        let mut bytes = [0u8; 64];
        let (at, len) = (bytes.as_mut_ptr().cast(), bytes.len());
        // SAFETY: the handle is that of a client; there are `len` bytes at `at`.
        answer(unsafe { (self.functions.rados_cluster_fsid)(self.handle, at, len) })?;
        Ok(text(&bytes))
    }

    /// One of the cluster's pools.
    pub(crate) fn pool(self: &Arc<Self>, name: &CStr) -> io::Result<Pool> {
        let mut handle = ptr::null_mut();
        let name = name.as_ptr();
        // SAFETY: the handle is that of a client; the name is a string; `handle` is a place.
        answer(unsafe { (self.functions.rados_ioctx_create)(self.handle, name, &mut handle) })?;
        Ok(Pool {
            handle,
            cluster: Arc::clone(self),
        })
    }
}

impl Drop for Cluster {
    /// May take a while.
    fn drop(&mut self) {
        // SAFETY: what was opened through this handle holds on to `self`, so nothing is open any more.
        unsafe { (self.functions.rados_shutdown)(self.handle) };
    }
}

/// A pool, or a namespace of one.
pub(crate) struct Pool {
    pub(super) handle: IoContext,
    pub(super) cluster: Arc<Cluster>,
}

// SAFETY: as with `Cluster`. What sets an attribute of the handle takes it exclusively.
unsafe impl Send for Pool {}
// SAFETY: as above.
unsafe impl Sync for Pool {}

impl Pool {
    /// What tells this pool from all others, in letters, digits, dots and hyphens.
    pub(super) fn id(&self) -> io::Result<String> {
        // SAFETY: the handle is that of a pool.
        let number = unsafe { (self.cluster.functions.rados_ioctx_get_id)(self.handle) };
        Ok(format!("{}.{number}", self.cluster.id()?))
    }

    /// Whether the pool has this namespace.
    pub(crate) fn has_namespace(&self, name: &CStr) -> io::Result<bool> {
        let mut exists = false;
        let exist = self.cluster.functions.rbd_namespace_exists;
        // SAFETY: the handle is that of a pool; the name is a string; `exists` is a place.
        answer(unsafe { exist(self.handle, name.as_ptr(), &mut exists) })?;
        Ok(exists)
    }

    /// Means this namespace from now on.
    pub(crate) fn enter_namespace(&mut self, name: &CStr) {
        let enter = self.cluster.functions.rados_ioctx_set_namespace;
        // SAFETY: the handle is that of a pool; the name is a string.
        unsafe { enter(self.handle, name.as_ptr()) };
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        // SAFETY: images hold on to their pool, so nothing uses the handle any more.
        unsafe { (self.cluster.functions.rados_ioctx_destroy)(self.handle) };
    }
}
