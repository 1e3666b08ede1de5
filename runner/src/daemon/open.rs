//! From a device in sysfs to a LUN that a reactor can serve.

use std::sync::Arc;

use tcmu::configfs::ResetVerdict;
use tcmu::discovery::Sysfs;
use tcmu::ring::Ring;
use tcmu::uio::Uio;
use tcmu_handler::Error;

use crate::meter::Meter;
use crate::reactor::{LunId, MakeLun};
use crate::registry::{OpenDevice, Registry};

/// Whether the commands in a ring have to be given back to the kernel before it can be served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reset {
    Always,
    /// Unless it is empty: some of what stands in it may have been done by a predecessor that died.
    IfInUse,
    /// What stands in it was never fetched.
    Never,
}

/// Opens a device and its image. Blocks as long as the handler does.
pub(super) fn open_device(
    registry: &Registry,
    sysfs: &Sysfs,
    id: LunId,
    reset: Reset,
    meter: Arc<Meter>,
) -> Result<MakeLun, Error> {
    let device = sysfs
        .device(id)
        .map_err(|error| Error::os("looking at the device", error))?;
    let uio = Uio::open(&device).map_err(|error| Error::os("opening the device", error))?;
    let mapping = uio
        .map()
        .map_err(|error| Error::os("mapping the device", error))?;
    let mapping = Arc::new(mapping);
    let backstore = sysfs.backstore(uio.name());
    let in_use = || Ring::new(Arc::clone(&mapping)).map_or(true, |ring| ring.has_new());
    if reset == Reset::Always || (reset == Reset::IfInUse && in_use()) {
        tracing::warn!(
            lun = uio.name().name,
            "commands were in flight; initiators repeat them"
        );
        let reset = backstore
            .set_blocked(true)
            .and_then(|()| backstore.reset_ring(ResetVerdict::Busy));
        let unblocked = backstore.set_blocked(false);
        reset
            .and(unblocked)
            .map_err(|error| Error::os("resetting the command ring", error))?;
    }
    registry.open(OpenDevice {
        uio,
        mapping,
        backstore,
        meter,
    })
}
