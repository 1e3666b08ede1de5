//! Describing what stands in the kernel's tree.

use std::path::Path;

use super::{Acl, Backstore, Group, Lun, MappedLun, Outcome, Step, Taken, Target};
use crate::backstore::{Place, State};
use crate::error::Result;
use crate::tree::Tree;
use crate::{iscsi, loopback};

/// Files of `attrib` that are not saved as attributes: those that have fields of their own, those
/// that follow from them, and what the daemon sets.
const NOT_SAVED: [&str; 9] = [
    "dev_config",
    "dev_size",
    "hw_block_size",
    "hw_max_sectors",
    "hw_queue_depth",
    "max_data_area_mb",
    "data_pages_per_blk",
    "cmd_ring_size_mb",
    "tmr_notification",
];

/// Whether the kernel waits for the daemon's netlink answers: -1 is somebody's wish, anything else
/// is the kernel's own finding when the device was enabled.
const REPLIES: &str = "nl_reply_supported";

/// What is not saved of a backstore's `wwn`: it has a field of its own.
const SERIAL: [&str; 1] = ["vpd_unit_serial"];

impl Tree {
    /// All user backstores, and the loopback and iSCSI targets that expose them. What cannot be
    /// described is named.
    ///
    /// # Errors
    /// [`Error::Kernel`](crate::Error::Kernel) if the tree cannot be read.
    pub fn capture(&self) -> Result<Taken> {
        let mut taken = Taken::default();
        for place in self.places()? {
            match self.capture_backstore(&place)? {
                Some(backstore) => taken.saved.backstores.push(backstore),
                None => taken.left_out.push(Step::skipped(
                    "backstore",
                    &place.name,
                    "it is not enabled",
                )),
            }
        }
        let root = self.roots.configfs.join("target");
        for fabric in self.names(&root)? {
            if matches!(fabric.as_str(), "core" | "version" | "dbroot") {
                continue;
            }
            for folder in self.folders(&root.join(&fabric))? {
                self.capture_target(&fabric, &folder, &mut taken)?;
            }
        }
        let discovery = root.join("iscsi/discovery_auth/enforce_discovery_auth");
        if self.read_if_any(&discovery).as_deref() == Some("1") {
            let why = "tcmuctl does not save the CHAP names of discovery";
            taken
                .left_out
                .push(Step::skipped("target", "iscsi/discovery_auth", why));
        }
        Ok(taken)
    }

    fn capture_backstore(&self, place: &Place) -> Result<Option<Backstore>> {
        let described = self.summary(place)?;
        if described.state == State::Disabled {
            return Ok(None);
        }
        let attrib = place.path.join("attrib");
        let number = |name: &str| {
            self.read_if_any(&attrib.join(name))
                .and_then(|text| text.parse().ok())
        };
        let mut attributes = self.settable(&attrib, &NOT_SAVED)?;
        if attributes.get(REPLIES).is_some_and(|value| value != "-1") {
            attributes.remove(REPLIES);
        }
        Ok(Some(Backstore {
            name: described.name,
            hba: Some(described.hba),
            handler: described.handler,
            config: described.config,
            size: described.size,
            block_size: Some(described.block_size),
            max_sectors: Some(described.max_sectors),
            data_area_mb: number("max_data_area_mb"),
            pages_per_block: number("data_pages_per_blk"),
            ring_mb: number("cmd_ring_size_mb"),
            serial: Some(described.serial).filter(|serial| !serial.is_empty()),
            attributes,
            identification: self.settable(&place.path.join("wwn"), &SERIAL)?,
            port_groups: self.capture_port_groups(&place.path)?,
        }))
    }

    fn capture_target(&self, fabric: &str, folder: &Path, taken: &mut Taken) -> Result<()> {
        let name = file_name(folder);
        let whole = format!("{fabric}/{name}");
        let known = matches!(fabric, loopback::FABRIC | iscsi::FABRIC);
        let mut target = Target {
            fabric: fabric.to_owned(),
            managed: self.mark(fabric, &name).exists(),
            name,
            groups: Vec::new(),
        };
        let (mut ours, mut others) = (0, Vec::new());
        for group in self.folders(folder)? {
            let Some(tag) = numbered(&group, "tpgt_") else {
                continue;
            };
            let (described, foreign) = self.capture_group(tag, &group)?;
            ours += described.luns.len();
            others.extend(foreign);
            target.groups.push(described);
        }
        if target.groups.is_empty() {
            return Ok(());
        }
        if ours == 0 && !others.is_empty() {
            // Somebody else's altogether.
            return Ok(());
        }
        if !known {
            if ours > 0 {
                let why = "tcmuctl saves loopback and iSCSI targets only";
                taken.left_out.push(Step::skipped("target", &whole, why));
            }
            return Ok(());
        }
        for lun in others {
            let why = "it is not of a user backstore";
            taken
                .left_out
                .push(Step::skipped("lun", &format!("{whole}/{lun}"), why));
        }
        taken.saved.targets.push(target);
        Ok(())
    }

    /// A target portal group, and the names of the LUNs that are not of user backstores.
    fn capture_group(&self, tag: u16, folder: &Path) -> Result<(Group, Vec<String>)> {
        let mut others = Vec::new();
        let mut luns = Vec::new();
        for path in self.folders(&folder.join("lun"))? {
            let (Some(lun), Some((_, goal))) = (numbered(&path, "lun_"), self.link_in(&path)?)
            else {
                continue;
            };
            let hba = goal.parent().and_then(|hba| numbered(hba, "user_"));
            if hba.is_none() {
                others.push(format!("{tag}/lun_{lun}"));
                continue;
            }
            luns.push(Lun {
                lun,
                backstore: file_name(&goal),
                hba,
                port_group: self.port_group_of(&path),
            });
        }
        luns.sort_by_key(|lun| lun.lun);
        let mut acls = Vec::new();
        for path in self.folders(&folder.join("acls"))? {
            acls.push(self.capture_acl(&path, &luns)?);
        }
        let nexus = self.read_if_any(&folder.join("nexus"));
        let group = Group {
            tag,
            enabled: self.read_if_any(&folder.join("enable")).as_deref() != Some("0"),
            nexus: nexus.filter(|nexus| !nexus.is_empty()),
            attributes: self.settable(&folder.join("attrib"), &[])?,
            parameters: self.settable(&folder.join("param"), &[])?,
            authentication: self.settable(&folder.join("auth"), &[])?,
            portals: self.names(&folder.join("np"))?,
            luns,
            acls,
        };
        Ok((group, others))
    }

    fn capture_acl(&self, folder: &Path, luns: &[Lun]) -> Result<Acl> {
        let mut mapped = Vec::new();
        for path in self.folders(folder)? {
            let Some(lun) = numbered(&path, "lun_") else {
                continue;
            };
            let goal = self.link_in(&path)?;
            let Some(target_lun) = goal.and_then(|(_, goal)| numbered(&goal, "lun_")) else {
                continue;
            };
            // Those of other backstores are not restored.
            if luns.iter().any(|lun| lun.lun == target_lun) {
                mapped.push(MappedLun {
                    lun,
                    target_lun,
                    read_only: self
                        .read_if_any(&path.join("write_protect"))
                        .is_some_and(|text| text == "1"),
                });
            }
        }
        mapped.sort_by_key(|mapped| mapped.lun);
        Ok(Acl {
            initiator: file_name(folder),
            queue_depth: self
                .read_if_any(&folder.join("cmdsn_depth"))
                .and_then(|text| text.parse().ok()),
            attributes: self.settable(&folder.join("attrib"), &[])?,
            authentication: self.settable(&folder.join("auth"), &[])?,
            luns: mapped,
        })
    }
}

impl Step {
    /// Something that is passed over, and why.
    pub(super) fn skipped(kind: &'static str, name: &str, why: impl Into<String>) -> Self {
        Step {
            kind,
            name: name.to_owned(),
            outcome: Outcome::Skipped,
            details: vec![why.into()],
        }
    }
}

/// A folder's own name.
pub(super) fn file_name(path: &Path) -> String {
    let name = path.file_name().unwrap_or_default();
    name.to_string_lossy().into_owned()
}

/// The number in `prefixN`.
pub(super) fn numbered<T: std::str::FromStr>(path: &Path, prefix: &str) -> Option<T> {
    path.file_name()?
        .to_str()?
        .strip_prefix(prefix)?
        .parse()
        .ok()
}
