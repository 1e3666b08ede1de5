//! Restoring the initiators that a target knows (`acls/INITIATOR`).

use std::path::Path;

use super::attributes::{Show, check, check_name};
use super::restore::{Outcome, Step};
use super::restore_targets::Work;
use super::{Acl, MappedLun};
use crate::change::Change;
use crate::error::{Error, Result};
use crate::tree::{Guard, Tree};
use crate::undo::Undo;

/// The name of the links that we make from an initiator's LUN to the target's.
const LINK: &str = "storage";

impl Tree {
    pub(super) fn restore_acl(&self, work: &Work<'_>, saved: &Acl, what: String) -> Step {
        if let Err(error) = saved.check() {
            return Step::ended("acl", what, Err(error));
        }
        let folder = work.folder.join("acls").join(&saved.initiator);
        if folder.is_dir() {
            return self.complete_acl(work, &folder, saved, what);
        }
        if work.trial {
            return Step::ended("acl", what, Ok(Outcome::Created));
        }
        let mut undo = Undo::new(self);
        match self.make_acl(work, &folder, saved, &mut undo) {
            Ok(left) if left.is_empty() => {
                undo.keep();
                Step::ended("acl", what, Ok(Outcome::Created))
            }
            Ok(left) => {
                undo.keep();
                Step::compared("acl", what, left)
            }
            Err(error) => Step::ended("acl", what, Err(undo.give_up(error))),
        }
    }

    /// Makes an initiator known; returns what of it could not be made as it was saved, and lets
    /// the initiator see less, never more.
    fn make_acl(
        &self,
        work: &Work<'_>,
        folder: &Path,
        saved: &Acl,
        undo: &mut Undo<'_>,
    ) -> Result<Vec<String>> {
        undo.make_dir(folder, Guard::Bounded)?;
        let mut refused =
            self.settle_attributes(&folder.join("attrib"), &saved.attributes, Show::Values);
        let auth = folder.join("auth");
        refused.extend(self.settle_attributes(&auth, &saved.authentication, Show::Names));
        if !refused.is_empty() {
            return Err(Error::Invalid(format!(
                "it is not made, since it would not be as it was saved: {}",
                refused.join("; ")
            )));
        }
        let mut left = Vec::new();
        let depth = folder.join("cmdsn_depth");
        if let Some(commands) = saved.queue_depth
            && self
                .read_if_any(&depth)
                .is_some_and(|is| is != commands.to_string())
            && let Err(error) = self.apply(Change::Write(depth, commands.to_string()))
        {
            left.push(error.to_string());
        }
        for mapped in &saved.luns {
            if let Err(error) = self.map_lun(work, folder, mapped, undo) {
                left.push(format!("lun_{}: {error}", mapped.lun));
            }
        }
        Ok(left)
    }

    fn map_lun(
        &self,
        work: &Work<'_>,
        acl: &Path,
        saved: &MappedLun,
        undo: &mut Undo<'_>,
    ) -> Result<()> {
        let lun = work.folder.join(format!("lun/lun_{}", saved.target_lun));
        if self.link_in(&lun)?.is_none() {
            return Err(Error::Invalid(format!(
                "the target has no LUN {}",
                saved.target_lun
            )));
        }
        let folder = acl.join(format!("lun_{}", saved.lun));
        let mut step = Undo::new(self);
        step.make_dir_if_absent(&folder, Guard::Bounded)?;
        let link = folder.join(LINK);
        self.apply_guarded(Change::Link(lun, link.clone()), &Guard::Bounded)?;
        step.push(Change::Unlink(link), Guard::Bounded);
        let protect = folder.join("write_protect");
        let wanted = if saved.read_only { "1" } else { "0" };
        if self.read_if_any(&protect).is_some_and(|is| is != wanted) {
            self.apply(Change::Write(protect, wanted.to_owned()))?;
        }
        undo.append(step);
        Ok(())
    }

    /// Gives an initiator that is known already the LUNs that it lacks, if nothing else differs.
    fn complete_acl(&self, work: &Work<'_>, folder: &Path, saved: &Acl, what: String) -> Step {
        let mut found = self.differences(&folder.join("attrib"), &saved.attributes, Show::Values);
        let auth = folder.join("auth");
        found.extend(self.differences(&auth, &saved.authentication, Show::Names));
        let depth = self.read_if_any(&folder.join("cmdsn_depth"));
        if let (Some(is), Some(saved)) = (depth, saved.queue_depth)
            && is != saved.to_string()
        {
            found.push(format!("its queue depth is {is}, not {saved}"));
        }
        let mut missing = Vec::new();
        for mapped in &saved.luns {
            let own = folder.join(format!("lun_{}", mapped.lun));
            let lun = work.folder.join(format!("lun/lun_{}", mapped.target_lun));
            let Ok(Some((_, goal))) = self.link_in(&own) else {
                missing.push(mapped);
                continue;
            };
            let protected = self.read_if_any(&own.join("write_protect"));
            if goal != lun {
                found.push(format!(
                    "its LUN {} does not lead to LUN {} of the target",
                    mapped.lun, mapped.target_lun
                ));
            } else if protected.is_some_and(|is| (is == "1") != mapped.read_only) {
                let is = if mapped.read_only { "can" } else { "cannot" };
                found.push(format!("its LUN {} {is} be written", mapped.lun));
            }
        }
        if !found.is_empty() || missing.is_empty() {
            return Step::compared("acl", what, found);
        }
        if !work.trial {
            let mut undo = Undo::new(self);
            for mapped in missing {
                if let Err(error) = self.map_lun(work, folder, mapped, &mut undo) {
                    found.push(format!("lun_{}: {error}", mapped.lun));
                }
            }
            undo.keep();
        }
        if found.is_empty() {
            Step::ended("acl", what, Ok(Outcome::Created))
        } else {
            Step::compared("acl", what, found)
        }
    }
}

impl Acl {
    fn check(&self) -> Result<()> {
        check_name("initiator", &self.initiator)?;
        check(&self.attributes)?;
        check(&self.authentication)
    }
}
