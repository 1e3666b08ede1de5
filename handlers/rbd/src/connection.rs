//! An image that is open: a client of the cluster, with the image in its hands.

use std::ffi::{CStr, CString};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;
use std::thread;

use tcmu_handler::{Error, ErrorKind, Result};

use crate::claim::Claim;
use crate::errors::{self, Opening};
use crate::ffi::{Cluster, Image, Library, Watch};
use crate::options::{LockPolicy, Options};

/// What an image is opened for.
#[derive(Debug)]
pub(crate) enum Access<'a> {
    /// To see whether that works; nothing is changed.
    Look,
    /// To serve it; the watch hears of news. Claims are kept in the folder.
    Serve(Arc<Watch>, &'a Path),
    /// The same, after the client of this connection was shut out: only if nobody else has taken the
    /// image over.
    ServeAgain(Arc<Watch>, &'a Connection),
}

/// A connection of its own for one image.
pub(crate) struct Connection {
    image: Option<Image>,
    /// How the cluster knows this client.
    addresses: String,
    claim: Option<Arc<Claim>>,
}

impl Connection {
    /// Connects and opens the image. Blocks, but not longer than the options allow.
    pub(crate) fn open(options: &Options, access: Access<'_>) -> Result<Self> {
        let failed = |what| move |error| errors::opening(what, options, error);
        let library = Library::load()?;
        let cluster = Arc::new(connect(library, options)?);
        let mut pool = cluster.pool(&options.pool).map_err(failed(Opening::Pool))?;
        if !options.namespace.is_empty() {
            let exists = pool.has_namespace(&options.namespace);
            match exists.map_err(failed(Opening::Namespace))? {
                true => pool.enter_namespace(&options.namespace),
                false => {
                    let error = io::Error::from_raw_os_error(libc::ENOENT);
                    return Err(errors::opening(Opening::Namespace, options, error));
                }
            }
        }
        let read_only = options.read_only || matches!(access, Access::Look);
        let (name, snapshot) = (&options.image, options.snapshot.as_deref());
        let mut image = Image::open(library, pool, name, snapshot, read_only)
            .map_err(failed(Opening::Image))?;
        let addresses = cluster.addresses().map_err(failed(Opening::Cluster))?;
        let claim = match access {
            Access::Look => None,
            Access::Serve(watch, claims) => {
                let claim = match options.read_only {
                    true => None,
                    false => succeed(&image, options, claims),
                };
                prepare(&mut image, options, watch)?;
                claim
            }
            Access::ServeAgain(watch, before) => {
                may_serve_again(&image, options, &before.addresses)?;
                prepare(&mut image, options, watch)?;
                before.claim.clone()
            }
        };
        if let Some(Err(error)) = claim.as_ref().map(|claim| claim.note(&addresses)) {
            tracing::warn!(image = options.name(), %error, "the client's address cannot be noted");
        }
        Ok(Self {
            image: Some(image),
            addresses,
            claim,
        })
    }

    /// The image.
    pub(crate) fn image(&self) -> &Image {
        match &self.image {
            Some(image) => image,
            None => unreachable!("the image is there until the connection is dropped"),
        }
    }

    /// Closes the image and the connection. Waits for what is under way.
    pub(crate) fn close(mut self) {
        drop(self.image.take());
    }
}

impl std::fmt::Debug for Connection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Connection")
            .field("addresses", &self.addresses)
            .finish_non_exhaustive()
    }
}

impl Drop for Connection {
    /// Whoever drops it cannot wait: a reactor has more to do.
    fn drop(&mut self) {
        if let Some(image) = self.image.take() {
            let close = thread::Builder::new().name("rbd-close".to_owned());
            let claim = self.claim.take();
            // Where there is no thread to be had, it closes here, and takes its time.
            let _ = close.spawn(move || {
                drop(image);
                drop(claim);
            });
        }
    }
}

/// A client that has found its monitors.
fn connect(library: Library, options: &Options) -> Result<Cluster> {
    let failed = |what| move |error| errors::opening(what, options, error);
    let cluster =
        Cluster::new(library, options.user.as_deref()).map_err(failed(Opening::Cluster))?;
    let conf = options
        .conf
        .as_ref()
        .map(|path| CString::new(path.as_os_str().as_bytes()));
    let conf = conf.transpose().map_err(|error| {
        Error::new(ErrorKind::InvalidConfig, "the path in conf= has a NUL").with_source(error)
    })?;
    cluster
        .read_conf(conf.as_deref())
        .map_err(failed(Opening::Configuration))?;
    let seconds = |limit: std::time::Duration| {
        let text = limit.as_secs().to_string();
        CString::new(text).unwrap_or_default()
    };
    let (connect, operation) = (
        seconds(options.connect_limit()),
        seconds(options.operation_limit),
    );
    let settings: [(&CStr, &CStr); 5] = [
        (c"client_mount_timeout", &connect),
        (c"rados_mon_op_timeout", &operation),
        (c"rados_osd_op_timeout", &operation),
        // As the C tcmu-runner does it: initiators rely on what they were told is written.
        (c"rbd_cache", c"false"),
        // Messages may be sent late, when the memory is another command's.
        (c"rbd_disable_zero_copy_writes", c"true"),
    ];
    for (option, value) in settings {
        cluster.set(option, value).map_err(|error| {
            let option = option.to_string_lossy();
            Error::os(
                format!("Ceph's client library does not take {option}"),
                error,
            )
            .with_kind(ErrorKind::Unsupported)
        })?;
    }
    cluster.connect().map_err(failed(Opening::Cluster))?;
    Ok(cluster)
}

/// Makes an image ready for a LUN.
fn prepare(image: &mut Image, options: &Options, watch: Arc<Watch>) -> Result<()> {
    let failed = |what| move |error| errors::opening(what, options, error);
    if options.read_only {
        // Nobody tells those who may only read.
        return Ok(());
    }
    image.watch(watch).map_err(failed(Opening::Image))?;
    if options.lock == LockPolicy::OnOpen {
        image.lock().map_err(failed(Opening::Lock))?;
    }
    Ok(())
}

/// Claims an image, and takes the exclusive lock away from a client of a daemon that is dead.
///
/// What fails here only makes a successor wait until the cluster notices by itself.
fn succeed(image: &Image, options: &Options, claims: &Path) -> Option<Arc<Claim>> {
    let lun = options.name();
    let claim = image.id().and_then(|id| Claim::new(claims, &id));
    let (claim, before) = match claim {
        Ok(claim) => claim?,
        Err(error) => {
            tracing::warn!(image = lun, %error, claims = %claims.display(), "the image cannot be claimed: after a crash, writes wait until the cluster gives the dead client up");
            return None;
        }
    };
    let broken = image.lock_owner().and_then(|owner| match owner {
        Some(owner) if is_among(&owner, &before) => image.break_lock(&owner).map(|()| true),
        _ => Ok(false),
    });
    match broken {
        Ok(true) => tracing::info!(
            image = lun,
            before,
            "took the lock from a daemon that is dead"
        ),
        Ok(false) => {}
        Err(error) => {
            tracing::warn!(image = lun, before, %error, "a dead daemon's lock stays until the cluster gives its client up")
        }
    }
    Some(Arc::new(claim))
}

/// Whether an image may be served after this client was shut out under its addresses `before`.
fn may_serve_again(image: &Image, options: &Options, before: &str) -> Result<()> {
    let failed = |error| errors::opening(Opening::Image, options, error);
    if options.read_only {
        return Ok(());
    }
    let name = options.name();
    if !image.can_be_locked().map_err(failed)? {
        return Err(Error::new(
            ErrorKind::Gone,
            format!(
                "this client was put on the cluster's blocklist, and {name} has no exclusive lock that \
                 would show whether another one writes to it: delete the LUN and create it again when \
                 you know"
            ),
        ));
    }
    match image.lock_owner().map_err(failed)? {
        None => Ok(()),
        // It is our own, from before.
        Some(owner) if is_among(&owner, before) => image.break_lock(&owner).map_err(failed),
        Some(owner) => Err(Error::new(
            ErrorKind::InUse,
            format!(
                "the client {} has taken {name} over, and holds its exclusive lock",
                owner.to_string_lossy()
            ),
        )),
    }
}

/// Whether an address is one of those of a client. Both have the nonce that tells clients of one machine
/// apart behind a slash; what stands before it depends on the protocol's version.
fn is_among(address: &CStr, addresses: &str) -> bool {
    let nonce = |text: &str| {
        let (_, nonce) = text.rsplit_once('/')?;
        nonce.trim_end_matches(']').parse::<u64>().ok()
    };
    let own = nonce(&address.to_string_lossy());
    own.is_some() && addresses.split(',').any(|other| nonce(other) == own)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_is_known_by_its_nonce() {
        let own = "[v2:10.0.0.1:0/31,v1:10.0.0.1:0/31]";
        assert!(is_among(c"10.0.0.1:0/31", own));
        assert!(is_among(c"v1:10.0.0.1:0/31", "10.0.0.1:0/31"));
        for other in [
            c"10.0.0.1:0/3",
            c"10.0.0.1:0/131",
            c"",
            c"31",
            c"10.0.0.1:0/",
        ] {
            assert!(!is_among(other, own), "{other:?}");
        }
        assert!(!is_among(c"10.0.0.1:0/", "10.0.0.1:0/"));
    }
}
