//! The target core of a LUN, through its folder in configfs.

use std::io;
use std::sync::LazyLock;

use tcmu::configfs::{BackstoreDir, TargetPortGroup};

use crate::device_server::{Surroundings, TargetCore, Told};
use crate::reactor::BlockingPool;

/// The one thread that changes attributes of which the kernel asks the daemon first. It is not one of
/// the reactors' own: the kernel's question may have to wait for those.
static CHANGES: LazyLock<BlockingPool> = LazyLock::new(|| BlockingPool::new(1));

/// The target core of one LUN.
#[derive(Clone, Debug)]
pub(crate) struct Configfs {
    backstore: BackstoreDir,
}

impl Configfs {
    pub(crate) fn new(backstore: BackstoreDir) -> Self {
        Self { backstore }
    }
}

impl TargetCore for Configfs {
    fn surroundings(&self) -> io::Result<Surroundings> {
        Ok(Surroundings {
            groups: self.backstore.target_port_groups()?,
            reservations: self.backstore.serves_reservations()?,
        })
    }

    fn set_access_state(&self, group: &TargetPortGroup, state: u8) -> io::Result<()> {
        self.backstore.set_access_state(&group.name, state)
    }

    fn set_write_cache(&self, enabled: bool, told: Told) {
        let backstore = self.backstore.clone();
        CHANGES.run(Box::new(move || told(backstore.set_write_cache(enabled))));
    }

    fn note_size(&self, bytes: u64) -> io::Result<()> {
        self.backstore.set_size(bytes)
    }
}
