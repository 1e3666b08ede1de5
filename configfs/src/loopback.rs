//! The loopback fabric: a LUN becomes a disk of this machine (`drivers/target/loopback`).

use std::io;
use std::path::Path;

use crate::change::Change;
use crate::error::{Error, Result};
use crate::identity;
use crate::tree::{Guard, Tree};
use crate::undo::Undo;

/// The fabric's folder.
pub(crate) const FABRIC: &str = "loopback";
/// The kernel module behind it.
pub(crate) const MODULE: &str = "tcm_loop";

impl Tree {
    /// Exposes a backstore as a disk: one target, derived from the serial number, with one LUN.
    /// Returns the target's name and the LUN's SCSI address.
    pub(crate) fn attach_loopback(
        &self,
        undo: &mut Undo<'_>,
        backstore: &Path,
        serial: &str,
    ) -> Result<(String, String)> {
        let name = identity::naa(serial, "loopback target");
        let target = self.fabric(FABRIC, MODULE)?.join(&name);
        let tpg = target.join("tpgt_1");
        if !self.names(&tpg.join("lun"))?.is_empty() {
            return Err(Error::Invalid(format!(
                "the loopback target {name} is taken by another LUN with the serial {serial}: give \
                 this one another --serial"
            )));
        }
        // What an interrupted creation left behind is used again.
        undo.make_dir_if_absent(&target, Guard::Bounded)?;
        undo.make_dir_if_absent(&tpg, Guard::Bounded)?;
        let nexus = Change::Write(
            tpg.join("nexus"),
            identity::naa(serial, "loopback initiator"),
        );
        match self.attempt(&nexus, &Guard::Quick)? {
            // Removing the group drops the nexus.
            Ok(()) => {}
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
            Err(e) => return Err(Error::kernel(nexus.to_string(), e)),
        }
        self.link_lun(undo, &tpg, 0, backstore)?;
        let address = self.scsi_address(&tpg, 0).ok_or_else(|| {
            Error::kernel(
                format!("read the SCSI address of {}", tpg.display()),
                io::Error::from(io::ErrorKind::InvalidData),
            )
        })?;
        Ok((name, address))
    }

    /// Removes a loopback target whose LUN is gone.
    pub(crate) fn remove_loopback_target(&self, target: &Path, tpg: &Path) -> Result<()> {
        self.apply_guarded(Change::RemoveDir(tpg.to_owned()), &Guard::Bounded)?;
        self.apply_guarded(Change::RemoveDir(target.to_owned()), &Guard::Bounded)
    }

    /// A LUN's SCSI address: the fabric shows `host:channel:target`.
    pub(crate) fn scsi_address(&self, tpg: &Path, lun: u64) -> Option<String> {
        let address = self.read_if_any(&tpg.join("address"))?;
        let numeric = |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit());
        (address.split(':').count() == 3 && address.split(':').all(numeric))
            .then(|| format!("{address}:{lun}"))
    }
}
