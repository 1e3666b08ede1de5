//! Making the kernel's tree look as it was saved.

use serde::Serialize;

use super::attributes::{Show, check};
use super::{Backstore, Saved};
use crate::backstore::Place;
use crate::change::Change;
use crate::daemon;
use crate::error::{Error, Result};
use crate::spec::BackstoreSpec;
use crate::tree::Tree;
use crate::undo::Undo;

/// What became of one thing that was saved.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// It was made, or would be in a trial run.
    Created,
    /// It is there as it was saved.
    Unchanged,
    /// It is there, otherwise than it was saved; it was left alone.
    Differs,
    /// It could not be made. What else there was went on.
    Failed,
    /// It is of a kind that this crate does not handle.
    Skipped,
}

impl Outcome {
    /// The outcome's name, as in JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Outcome::Created => "created",
            Outcome::Unchanged => "unchanged",
            Outcome::Differs => "differs",
            Outcome::Failed => "failed",
            Outcome::Skipped => "skipped",
        }
    }

    /// Whether it is now otherwise than it was saved.
    pub fn is_bad(self) -> bool {
        matches!(self, Outcome::Differs | Outcome::Failed)
    }
}

/// One thing that was saved, and what became of it.
///
/// Its serialized form is `tcmuctl`'s JSON.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Step {
    /// `backstore`, `target`, `lun`, `acl` or `portal`.
    pub kind: &'static str,
    /// Its name; below targets with `fabric/target/tag/` before it.
    pub name: String,
    /// What became of it.
    pub outcome: Outcome,
    /// Why, or what differs: one sentence each.
    pub details: Vec<String>,
}

impl Step {
    pub(super) fn new(kind: &'static str, name: impl Into<String>, outcome: Outcome) -> Self {
        Step {
            kind,
            name: name.into(),
            outcome,
            details: Vec::new(),
        }
    }

    /// A step that ended with an error, or as `made` says.
    pub(super) fn ended(
        kind: &'static str,
        name: impl Into<String>,
        made: Result<Outcome>,
    ) -> Self {
        let name = name.into();
        match made {
            Ok(outcome) => Step::new(kind, name, outcome),
            Err(error) => Step {
                details: vec![error.to_string()],
                ..Step::new(kind, name, Outcome::Failed)
            },
        }
    }

    /// A step about what is there already.
    pub(super) fn compared(kind: &'static str, name: String, differences: Vec<String>) -> Self {
        let outcome = if differences.is_empty() {
            Outcome::Unchanged
        } else {
            Outcome::Differs
        };
        Step {
            details: differences,
            ..Step::new(kind, name, outcome)
        }
    }
}

impl Tree {
    /// Makes what was saved and is not there. What is there is left alone, whether it is as saved
    /// or differs; what fails is taken back, and the rest goes on. `trial` only says what would be
    /// done.
    ///
    /// A target portal group that differs gets no LUNs, and one whose settings the kernel refuses
    /// is not made at all: its LUNs might be open to those whom the settings keep out.
    ///
    /// # Errors
    /// Before anything is done: [`Error::NoDaemon`] if there are backstores to make,
    /// [`Error::NotRoot`], [`Error::NoModule`]. Everything else is in the steps.
    pub fn restore(&self, saved: &Saved, trial: bool) -> Result<Vec<Step>> {
        if !trial {
            self.prepare()?;
        }
        let places = self.places()?;
        let is_missing = |backstore: &Backstore| !places.iter().any(|p| p.name == backstore.name);
        if self.daemon_check
            && saved.backstores.iter().any(is_missing)
            && daemon::find(&self.roots).is_none()
        {
            return Err(Error::NoDaemon);
        }
        let mut steps = Vec::new();
        for backstore in &saved.backstores {
            if self.check_interrupt().is_err() {
                return Ok(interrupted(steps));
            }
            steps.push(self.restore_backstore(backstore, trial));
        }
        for target in &saved.targets {
            if self.check_interrupt().is_err() {
                return Ok(interrupted(steps));
            }
            self.restore_target(target, saved, trial, &mut steps);
        }
        Ok(steps)
    }

    fn restore_backstore(&self, saved: &Backstore, trial: bool) -> Step {
        let step = |made| Step::ended("backstore", &saved.name, made);
        let places = match self.places() {
            Ok(places) => places,
            Err(error) => return step(Err(error)),
        };
        let mut same: Vec<&Place> = places.iter().filter(|p| p.name == saved.name).collect();
        if same.len() > 1 {
            same.retain(|place| Some(place.hba) == saved.hba);
        }
        if let Some(place) = same.first() {
            return match self.backstore_differences(place, saved) {
                Ok(differences) => Step::compared("backstore", saved.name.clone(), differences),
                Err(error) => step(Err(error)),
            };
        }
        if let Err(error) = saved.check() {
            return step(Err(error));
        }
        if trial {
            return step(Ok(Outcome::Created));
        }
        let mut undo = Undo::new(self);
        match self.make_saved_backstore(saved, &mut undo) {
            Ok(differences) if differences.is_empty() => {
                undo.keep();
                step(Ok(Outcome::Created))
            }
            // It serves, if not quite as it did.
            Ok(differences) => {
                undo.keep();
                Step::compared("backstore", saved.name.clone(), differences)
            }
            Err(error) => step(Err(undo.give_up(error))),
        }
    }

    /// Makes a backstore, and says what of it could not be made as it was saved.
    fn make_saved_backstore(&self, saved: &Backstore, undo: &mut Undo<'_>) -> Result<Vec<String>> {
        let spec = saved.spec();
        let settled = self.settle(&spec)?;
        self.check_daemon(&spec.handler)?;
        let _lock = self.lock_backstore(&spec.name)?;
        let place = self.make_backstore(&settled, undo)?;
        self.configure(&settled, &place.path)?;
        if let Some(pages) = saved.pages_per_block {
            self.apply(Change::Write(
                place.path.join("control"),
                format!("data_pages_per_blk={pages}"),
            ))?;
        }
        let mut left =
            self.settle_attributes(&place.path.join("attrib"), &saved.attributes, Show::Values);
        let wwn = place.path.join("wwn");
        left.extend(self.settle_attributes(&wwn, &saved.identification, Show::Values));
        self.enable(&settled, &place.path)?;
        for group in &saved.port_groups {
            left.extend(self.settle_port_group(undo, &place.path, group)?);
        }
        Ok(left)
    }

    /// Where a backstore differs from what was saved.
    fn backstore_differences(&self, place: &Place, saved: &Backstore) -> Result<Vec<String>> {
        let is = self.summary(place)?;
        let mut found = Vec::new();
        let mut compare = |what: &str, is: String, saved: Option<String>| {
            if let Some(saved) = saved
                && is != saved
            {
                found.push(format!("its {what} is {is}, not {saved}"));
            }
        };
        let text = |number: Option<u32>| number.map(|number| number.to_string());
        let attribute = |name: &str| {
            self.read_if_any(&place.path.join("attrib").join(name))
                .unwrap_or_default()
        };
        compare(
            "state",
            is.state.as_str().replace("deactivated", "activated"),
            Some("activated".to_owned()),
        );
        compare(
            "HBA",
            format!("user_{}", is.hba),
            saved.hba.map(|hba| format!("user_{hba}")),
        );
        compare("handler", is.handler, Some(saved.handler.clone()));
        compare("config", is.config, Some(saved.config.clone()));
        compare("size", is.size.to_string(), Some(saved.size.to_string()));
        compare(
            "block size",
            is.block_size.to_string(),
            text(saved.block_size),
        );
        compare(
            "largest transfer",
            is.max_sectors.to_string(),
            text(saved.max_sectors),
        );
        compare(
            "data area",
            attribute("max_data_area_mb"),
            text(saved.data_area_mb),
        );
        compare(
            "data block",
            attribute("data_pages_per_blk"),
            text(saved.pages_per_block),
        );
        compare(
            "command ring",
            attribute("cmd_ring_size_mb"),
            text(saved.ring_mb),
        );
        compare("serial", is.serial, saved.serial.clone());
        let folder = |name: &str| place.path.join(name);
        found.extend(self.differences(&folder("attrib"), &saved.attributes, Show::Values));
        found.extend(self.differences(&folder("wwn"), &saved.identification, Show::Values));
        for group in &saved.port_groups {
            found.extend(self.port_group_differences(&place.path, group));
        }
        Ok(found)
    }

    /// The folder of a saved LUN's backstore, if it is there.
    pub(super) fn backstore_of(&self, name: &str, hba: Option<u32>) -> Result<Place> {
        // Restored by name, it may stand in another HBA.
        match hba.map(|hba| self.find(name, Some(hba))) {
            Some(Ok(place)) => Ok(place),
            _ => self.find(name, None),
        }
    }
}

impl Backstore {
    fn check(&self) -> Result<()> {
        check(&self.attributes)?;
        check(&self.identification)?;
        self.spec().check().map(drop)
    }

    /// What `tcmuctl create` would be told.
    fn spec(&self) -> BackstoreSpec {
        let mut spec = BackstoreSpec::new(&self.name, &self.handler, &self.config).size(self.size);
        if let Some(hba) = self.hba {
            spec = spec.hba(hba);
        }
        if let Some(block_size) = self.block_size {
            spec = spec.block_size(block_size);
        }
        if let Some(blocks) = self.max_sectors {
            spec = spec.max_sectors(blocks);
        }
        if let Some(mebibytes) = self.data_area_mb {
            spec = spec.data_area_mb(mebibytes);
        }
        if let Some(mebibytes) = self.ring_mb {
            spec = spec.ring_mb(mebibytes);
        }
        if let Some(serial) = &self.serial {
            spec = spec.serial(serial);
        }
        spec
    }
}

/// The steps that were made before a signal came, and that it came.
fn interrupted(mut steps: Vec<Step>) -> Vec<Step> {
    steps.push(Step::ended("restore", "", Err(Error::Interrupted)));
    steps
}
