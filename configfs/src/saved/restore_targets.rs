//! Restoring targets: their groups, LUNs and portals.

use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use super::attributes::{Show, check, check_name};
use super::restore::{Outcome, Step};
use super::{Attributes, Group, Lun, Saved, Target};
use crate::change::Change;
use crate::error::{Error, Result};
use crate::tree::{Guard, Tree};
use crate::undo::Undo;
use crate::{identity, iscsi, loopback, name};

/// What is done for a saved target portal group.
pub(super) struct Work<'a> {
    pub(super) saved: &'a Saved,
    pub(super) target: &'a Target,
    pub(super) group: &'a Group,
    /// The group's folder.
    pub(super) folder: PathBuf,
    pub(super) trial: bool,
}

impl Work<'_> {
    /// What something of the group is called in steps.
    pub(super) fn name(&self, rest: &str) -> String {
        let Target { fabric, name, .. } = self.target;
        let slash = if rest.is_empty() { "" } else { "/" };
        format!("{fabric}/{name}/{}{slash}{rest}", self.group.tag)
    }
}

/// How a group is.
#[derive(PartialEq, Eq)]
enum Standing {
    /// It is as it was saved, now or already: what is missing can be added.
    Sound,
    /// It is not, or not there.
    Unsound,
}

impl Tree {
    /// Restores a target with all its groups.
    pub(super) fn restore_target(
        &self,
        target: &Target,
        saved: &Saved,
        trial: bool,
        steps: &mut Vec<Step>,
    ) {
        let name = format!("{}/{}", target.fabric, target.name);
        let failed = |error| Step::ended("target", &name, Err(error));
        if let Err(error) = check_name("target", &target.name) {
            return steps.push(failed(error));
        }
        let module = match target.fabric.as_str() {
            loopback::FABRIC => loopback::MODULE,
            iscsi::FABRIC => iscsi::MODULE,
            _ => {
                let why = "tcmuctl restores loopback and iSCSI targets only";
                return steps.push(Step::skipped("target", &name, why));
            }
        };
        let fabric = if trial {
            Ok(self.roots.fabric(&target.fabric))
        } else {
            self.fabric(&target.fabric, module)
        };
        let folder = match fabric {
            Ok(fabric) => fabric.join(&target.name),
            Err(error) => return steps.push(failed(error)),
        };
        // A target must not be removed, as empty, while LUNs are being added.
        let lock = if trial {
            Ok(None)
        } else {
            self.lock_target(&target.name).map(Some)
        };
        let _lock = match lock {
            Ok(lock) => lock,
            Err(error) => return steps.push(failed(error)),
        };
        for group in &target.groups {
            let work = Work {
                saved,
                target,
                group,
                folder: folder.join(format!("tpgt_{}", group.tag)),
                trial,
            };
            self.restore_group(&work, &folder, steps);
        }
    }

    fn restore_group(&self, work: &Work<'_>, target: &Path, steps: &mut Vec<Step>) {
        let (step, standing) = self.group_itself(work, target);
        let at = steps.len();
        steps.push(step);
        let sound = standing == Standing::Sound;
        for lun in &work.group.luns {
            let what = work.name(&format!("lun_{}", lun.lun));
            steps.push(self.missing(sound, work, "lun", what, |what| {
                self.restore_lun(work, lun, what)
            }));
        }
        for acl in &work.group.acls {
            let what = work.name(&acl.initiator);
            steps.push(self.missing(sound, work, "acl", what, |what| {
                self.restore_acl(work, acl, what)
            }));
        }
        for portal in &work.group.portals {
            let what = work.name(portal);
            steps.push(self.missing(sound, work, "portal", what, |what| {
                self.restore_portal(work, portal, what)
            }));
        }
        // Last, so that whoever logs in finds everything.
        if sound
            && !work.trial
            && let Err(error) = self.enable_group(work, &mut steps[at])
        {
            steps[at] = Step::ended("target", work.name(""), Err(error));
        }
    }

    /// Restores a part of a group, unless the group is such that nothing can be added.
    fn missing(
        &self,
        sound: bool,
        work: &Work<'_>,
        kind: &'static str,
        what: String,
        restore: impl FnOnce(String) -> Step,
    ) -> Step {
        if sound {
            return restore(what);
        }
        let why = format!(
            "{} is not as it was saved, so nothing is added",
            work.name("")
        );
        Step {
            details: vec![why],
            ..Step::new(kind, what, Outcome::Failed)
        }
    }

    /// The group without what is in it.
    fn group_itself(&self, work: &Work<'_>, target: &Path) -> (Step, Standing) {
        let step = |made| Step::ended("target", work.name(""), made);
        if work.folder.is_dir() {
            let differences = self.group_differences(work);
            let standing = if differences.is_empty() {
                Standing::Sound
            } else {
                Standing::Unsound
            };
            return (
                Step::compared("target", work.name(""), differences),
                standing,
            );
        }
        if let Err(error) = work.group.check() {
            return (step(Err(error)), Standing::Unsound);
        }
        if work.trial {
            return (step(Ok(Outcome::Created)), Standing::Sound);
        }
        let mut undo = Undo::new(self);
        match self.make_group(work, target, &mut undo) {
            Ok(()) => {
                undo.keep();
                (step(Ok(Outcome::Created)), Standing::Sound)
            }
            Err(error) => (step(Err(undo.give_up(error))), Standing::Unsound),
        }
    }

    fn make_group(&self, work: &Work<'_>, target: &Path, undo: &mut Undo<'_>) -> Result<()> {
        let Work { group, folder, .. } = work;
        let new_target = undo.make_dir_if_absent(target, Guard::Bounded)?;
        undo.make_dir(folder, Guard::Bounded)?;
        for (part, saved, show) in parts(group) {
            let left = self.settle_attributes(&folder.join(part), saved, show);
            if !left.is_empty() {
                return Err(Error::Invalid(format!(
                    "it is not made, since it would not be as it was saved: {}",
                    left.join("; ")
                )));
            }
        }
        let nexus = folder.join("nexus");
        if nexus.exists() {
            let initiator = group.nexus.clone();
            let initiator =
                initiator.unwrap_or_else(|| identity::naa(&work.target.name, "loopback initiator"));
            self.apply(Change::Write(nexus, initiator))?;
        }
        if new_target && work.target.managed {
            self.mark_as_ours(&work.target.fabric, &work.target.name)?;
        }
        Ok(())
    }

    fn group_differences(&self, work: &Work<'_>) -> Vec<String> {
        let Work { group, folder, .. } = work;
        let mut found = Vec::new();
        for (part, saved, show) in parts(group) {
            found.extend(self.differences(&folder.join(part), saved, show));
        }
        let nexus = self.read_if_any(&folder.join("nexus"));
        if let (Some(is), Some(saved)) = (nexus, &group.nexus)
            && is != *saved
        {
            found.push(format!("its nexus is {is}, not {saved}"));
        }
        if !group.enabled && self.read_if_any(&folder.join("enable")).as_deref() == Some("1") {
            found.push("it is enabled, and was not".to_owned());
        }
        found
    }

    fn enable_group(&self, work: &Work<'_>, step: &mut Step) -> Result<()> {
        let enable = work.folder.join("enable");
        // Not every fabric has the file.
        if work.group.enabled && self.read_if_any(&enable).as_deref() == Some("0") {
            self.apply(Change::Write(enable, "1".to_owned()))?;
            step.outcome = Outcome::Created;
        }
        Ok(())
    }

    fn restore_lun(&self, work: &Work<'_>, saved: &Lun, what: String) -> Step {
        let folder = work.folder.join(format!("lun/lun_{}", saved.lun));
        let backstore = self.backstore_of(&saved.backstore, saved.hba);
        let linked = match self.link_in(&folder) {
            Ok(linked) => linked,
            Err(error) => return Step::ended("lun", what, Err(error)),
        };
        if let Some((_, goal)) = linked {
            let mut differences = Vec::new();
            if !backstore.is_ok_and(|backstore| backstore.path == goal) {
                differences.push(format!(
                    "it leads to {}, not to {}",
                    super::capture::file_name(&goal),
                    saved.backstore
                ));
            }
            differences.extend(self.lun_port_group_difference(&folder, saved));
            return Step::compared("lun", what, differences);
        }
        if work.trial {
            let will_be = |b: &super::Backstore| b.name == saved.backstore;
            let there = backstore.is_ok() || work.saved.backstores.iter().any(will_be);
            let made = there
                .then_some(Outcome::Created)
                .ok_or_else(|| Error::NotFound(saved.backstore.clone()));
            return Step::ended("lun", what, made);
        }
        let mut undo = Undo::new(self);
        let made = backstore.and_then(|backstore| {
            self.make_saved_lun(work, saved, &folder, &backstore.path, &mut undo)
        });
        let made = match made {
            Ok(()) => {
                undo.keep();
                Ok(Outcome::Created)
            }
            Err(error) => Err(undo.give_up(error)),
        };
        Step::ended("lun", what, made)
    }

    fn make_saved_lun(
        &self,
        work: &Work<'_>,
        saved: &Lun,
        folder: &Path,
        backstore: &Path,
        undo: &mut Undo<'_>,
    ) -> Result<()> {
        if folder.is_dir() {
            // Left without its link by somebody who was interrupted.
            self.apply_guarded(Change::RemoveDir(folder.to_owned()), &Guard::Bounded)?;
        }
        self.link_lun(undo, &work.folder, saved.lun, backstore)?;
        if let Some(group) = &saved.port_group
            && self.port_group_of(folder).is_some_and(|is| is != *group)
        {
            check_name("target port group", group)?;
            self.apply(Change::Write(folder.join("alua_tg_pt_gp"), group.clone()))?;
        }
        if work.target.fabric == loopback::FABRIC {
            let address = self.scsi_address(&work.folder, saved.lun).ok_or_else(|| {
                Error::kernel(
                    format!("read the SCSI address of {}", work.folder.display()),
                    io::Error::from(io::ErrorKind::InvalidData),
                )
            })?;
            self.await_disk(&address)?;
        }
        Ok(())
    }

    fn lun_port_group_difference(&self, folder: &Path, saved: &Lun) -> Option<String> {
        let (is, saved) = (self.port_group_of(folder)?, saved.port_group.as_ref()?);
        (is != *saved).then(|| format!("its target port group is {is}, not {saved}"))
    }

    fn restore_portal(&self, work: &Work<'_>, portal: &str, what: String) -> Step {
        let made = self.make_portal(work, portal);
        Step::ended("portal", what, made)
    }

    fn make_portal(&self, work: &Work<'_>, portal: &str) -> Result<Outcome> {
        let wanted = name::parse_portal(portal)?;
        let portals = work.folder.join("np");
        // An address can be written in several ways.
        let is_it = |there: &String| name::parse_portal(there).is_ok_and(|there| there == wanted);
        if self.names(&portals)?.iter().any(is_it) {
            return Ok(Outcome::Unchanged);
        }
        if !work.trial {
            let as_written = portal.parse::<SocketAddr>().is_ok();
            let folder = if as_written {
                portal.to_owned()
            } else {
                wanted.to_string()
            };
            self.apply_guarded(Change::MakeDir(portals.join(folder)), &Guard::Bounded)?;
        }
        Ok(Outcome::Created)
    }
}

/// The folders of a group with files of one value each.
fn parts(group: &Group) -> [(&'static str, &Attributes, Show); 3] {
    [
        ("attrib", &group.attributes, Show::Values),
        ("param", &group.parameters, Show::Values),
        ("auth", &group.authentication, Show::Names),
    ]
}

impl Group {
    fn check(&self) -> Result<()> {
        for (_, attributes, _) in parts(self) {
            check(attributes)?;
        }
        if let Some(nexus) = &self.nexus {
            check_name("nexus", nexus)?;
        }
        Ok(())
    }
}
