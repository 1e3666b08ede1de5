//! Who a LUN says that it is: the names that its owner set in configfs.

use std::cell::Cell;
use std::io;

use tcmu::configfs::BackstoreDir;
use tcmu::scsi::opcode::INQUIRY;
use tcmu_handler::{Backstore, Io};

use crate::device_server::{Identity, LogicalUnit};

/// Where a LUN's names are kept.
#[derive(Clone, Debug)]
pub(crate) struct IdentitySource {
    name: String,
    backstore: BackstoreDir,
}

impl IdentitySource {
    pub(crate) fn new(name: String, backstore: BackstoreDir) -> Self {
        Self { name, backstore }
    }

    /// What the names are now. A name that cannot be read has its default: a LUN without its serial
    /// number can still be used.
    pub(crate) fn read(&self) -> Identity {
        Identity {
            serial: self
                .or_none("serial number", self.backstore.unit_serial())
                .unwrap_or_default(),
            name: self.name.clone(),
            vendor: self.or_none("vendor", self.backstore.vendor()),
            product: self.or_none("product", self.backstore.product()),
            revision: self.or_none("revision", self.backstore.revision()),
        }
    }

    fn or_none(&self, what: &str, value: io::Result<Option<String>>) -> Option<String> {
        value.unwrap_or_else(|error| {
            tracing::debug!(lun = self.name, %error, "cannot read the {what}");
            None
        })
    }
}

/// Names that are not complete yet: rtslib sets the serial number only after the LUN was enabled. It
/// is looked for again whenever an initiator asks, until there is one.
#[derive(Debug)]
pub(crate) struct LateNames {
    source: IdentitySource,
    complete: Cell<bool>,
}

impl LateNames {
    /// What `source` still has to tell, if `identity` is not all.
    pub(crate) fn after(identity: &Identity, source: IdentitySource) -> Option<Self> {
        identity.serial.is_empty().then(|| Self {
            source,
            complete: Cell::new(false),
        })
    }

    /// Whether the command in `cdb` asks for names that are not known yet.
    pub(crate) fn are_asked_by(&self, cdb: &[u8]) -> bool {
        cdb.first() == Some(&INQUIRY) && !self.complete.get()
    }

    /// Reads the names again and gives them to `unit`.
    pub(crate) async fn complete<B: Backstore>(&self, io: &Io, unit: &LogicalUnit<B>) {
        let source = self.source.clone();
        if let Ok(identity) = io.blocking(move || source.read()).await {
            self.complete.set(!identity.serial.is_empty());
            unit.set_identity(identity);
        }
    }
}
