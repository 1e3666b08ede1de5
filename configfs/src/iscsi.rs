//! The iSCSI fabric (`drivers/target/iscsi/iscsi_target_configfs.c`).

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;

use crate::change::Change;
use crate::error::{Error, Result};
use crate::name::ISCSI_PORT;
use crate::spec::IscsiSpec;
use crate::tree::{Guard, Tree};
use crate::undo::Undo;

/// The fabric's folder.
pub(crate) const FABRIC: &str = "iscsi";
/// The kernel module behind it.
pub(crate) const MODULE: &str = "iscsi_target_mod";

/// What a new target gets: LIO's demo mode, in which any initiator may log in without a password
/// and read and write. `cache_dynamic_acls` keeps an initiator's state between its sessions, which
/// persistent reservations and unit attentions need.
const DEMO_MODE: [(&str, &str); 4] = [
    ("authentication", "0"),
    ("generate_node_acls", "1"),
    ("demo_mode_write_protect", "0"),
    ("cache_dynamic_acls", "1"),
];

/// LUNs of one target: LIO's addressing goes further, but initiators scan this far.
const MAX_LUN: u16 = 255;

impl Tree {
    /// Adds a backstore to an iSCSI target, which is made if there is none. Returns whether it
    /// was.
    pub(crate) fn attach_iscsi(
        &self,
        undo: &mut Undo<'_>,
        backstore: &Path,
        spec: &IscsiSpec,
    ) -> Result<bool> {
        let target = self.fabric(FABRIC, MODULE)?.join(&spec.iqn);
        let tpg = target.join("tpgt_1");
        let new_target = undo.make_dir_if_absent(&target, Guard::Bounded)?;
        if undo.make_dir_if_absent(&tpg, Guard::Bounded)? {
            for (attribute, value) in DEMO_MODE {
                self.apply(Change::Write(
                    tpg.join("attrib").join(attribute),
                    value.to_owned(),
                ))?;
            }
        } else if self
            .read_if_any(&tpg.join("attrib/generate_node_acls"))
            .as_deref()
            == Some("0")
        {
            self.tell(&format!(
                "the target {} lets in listed initiators only: map the new LUN in its ACLs",
                spec.iqn
            ));
        }
        self.add_portal(undo, &tpg, spec)?;
        let lun = self.free_lun(&tpg, spec)?;
        self.link_lun(undo, &tpg, lun.into(), backstore)?;
        if self.read(&tpg.join("enable"))? != "1" {
            self.apply(Change::Write(tpg.join("enable"), "1".to_owned()))?;
            undo.push(
                Change::Write(tpg.join("enable"), "0".to_owned()),
                Guard::Bounded,
            );
        }
        Ok(new_target)
    }

    fn add_portal(&self, undo: &mut Undo<'_>, tpg: &Path, spec: &IscsiSpec) -> Result<()> {
        let portals = tpg.join("np");
        let portal = match spec.portal {
            Some(portal) => portal,
            None if !self.names(&portals)?.is_empty() => return Ok(()),
            None => SocketAddr::from((Ipv4Addr::LOCALHOST, ISCSI_PORT)),
        };
        undo.make_dir_if_absent(&portals.join(portal.to_string()), Guard::Bounded)?;
        Ok(())
    }

    fn free_lun(&self, tpg: &Path, spec: &IscsiSpec) -> Result<u16> {
        let taken = self.names(&tpg.join("lun"))?;
        let is_free = |lun: &u16| !taken.contains(&format!("lun_{lun}"));
        match spec.lun {
            Some(lun) if lun > MAX_LUN => Err(Error::Invalid(format!(
                "bad LUN {lun}: 0 to {MAX_LUN} are possible"
            ))),
            Some(lun) if is_free(&lun) => Ok(lun),
            Some(lun) => Err(Error::Invalid(format!(
                "LUN {lun} of the target {} is taken: choose another --lun, or none for the lowest \
                 free one",
                spec.iqn
            ))),
            None => (0..=MAX_LUN).find(is_free).ok_or_else(|| {
                Error::Invalid(format!(
                    "the target {} has {MAX_LUN} LUNs already",
                    spec.iqn
                ))
            }),
        }
    }

    /// Removes an iSCSI target whose last LUN is gone; initiators are logged out.
    pub(crate) fn remove_iscsi_target(&self, target: &Path, tpg: &Path) -> Result<()> {
        let enable = tpg.join("enable");
        if self.read(&enable)? == "1" {
            self.apply_guarded(Change::Write(enable, "0".to_owned()), &Guard::Bounded)?;
        }
        for part in ["np", "acls"] {
            for folder in self.folders(&tpg.join(part))? {
                self.apply_guarded(Change::RemoveDir(folder), &Guard::Bounded)?;
            }
        }
        self.apply_guarded(Change::RemoveDir(tpg.to_owned()), &Guard::Bounded)?;
        self.apply_guarded(Change::RemoveDir(target.to_owned()), &Guard::Bounded)
    }

    /// The initiators that are logged in to a target portal group: those with an ACL, and those
    /// that demo mode let in.
    pub(crate) fn initiators(&self, tpg: &Path) -> Result<Vec<String>> {
        let dynamic = self
            .read_if_any(&tpg.join("dynamic_sessions"))
            .unwrap_or_default();
        // The kernel ends each name with a newline and a NUL.
        let mut names: Vec<String> = dynamic
            .split(['\n', '\0'])
            .filter(|name| !name.is_empty())
            .map(str::to_owned)
            .collect();
        for acl in self.folders(&tpg.join("acls"))? {
            let info = self.read_if_any(&acl.join("info")).unwrap_or_default();
            if info.starts_with("InitiatorName:") {
                names.extend(acl.file_name().and_then(|n| n.to_str()).map(str::to_owned));
            }
        }
        names.sort();
        names.dedup();
        Ok(names)
    }
}
