//! Target port groups (ALUA) of backstores: `alua/NAME` (target_core_configfs.c).

use std::path::Path;

use super::PortGroup;
use super::attributes::{Show, check, check_name};
use crate::change::Change;
use crate::delete::DEFAULT_PORT_GROUP;
use crate::error::{Error, Result};
use crate::tree::{Guard, Tree};
use crate::undo::Undo;

const STATE: &str = "alua_access_state";
const TYPE: &str = "alua_access_type";

/// What is not for us to set: how the state came about, and the identifier, which has its own field.
const NOT_SAVED: [&str; 2] = ["alua_access_status", "tg_pt_gp_id"];

/// The kernel shows types in words and takes numbers (`core_alua_show_access_type` and
/// `core_alua_store_access_type` in target_core_alua.c).
pub(super) const TYPES: [&str; 4] = ["None", "Implicit", "Explicit", "Implicit and Explicit"];

impl Tree {
    /// A backstore's target port groups.
    pub(super) fn capture_port_groups(&self, backstore: &Path) -> Result<Vec<PortGroup>> {
        let mut groups = Vec::new();
        for folder in self.folders(&backstore.join("alua"))? {
            let name = folder.file_name().unwrap_or_default().to_string_lossy();
            groups.push(PortGroup {
                name: name.into_owned(),
                id: self
                    .read_if_any(&folder.join("tg_pt_gp_id"))
                    .and_then(|text| text.parse().ok()),
                attributes: self.settable(&folder, &NOT_SAVED)?,
            });
        }
        Ok(groups)
    }

    /// Where a target port group differs from what was saved.
    pub(super) fn port_group_differences(
        &self,
        backstore: &Path,
        saved: &PortGroup,
    ) -> Vec<String> {
        let folder = backstore.join("alua").join(&saved.name);
        if !folder.is_dir() {
            return vec![format!("there is no target port group {}", saved.name)];
        }
        let mut all = saved.attributes.clone();
        all.extend(
            saved
                .id
                .map(|id| ("tg_pt_gp_id".to_owned(), id.to_string())),
        );
        self.differences(&folder, &all, Show::Values)
    }

    /// Makes a target port group of a backstore as it was saved, and says what could not be.
    pub(super) fn settle_port_group(
        &self,
        undo: &mut Undo<'_>,
        backstore: &Path,
        saved: &PortGroup,
    ) -> Result<Vec<String>> {
        check_name("target port group", &saved.name)?;
        check(&saved.attributes)?;
        let folder = backstore.join("alua").join(&saved.name);
        let id = folder.join("tg_pt_gp_id");
        let made = undo.make_dir_if_absent(&folder, Guard::Bounded)?;
        if let Some(number) = saved.id
            && made
            && saved.name != DEFAULT_PORT_GROUP
        {
            self.apply(Change::Write(id, number.to_string()))?;
        }
        // A state has to be supported first, and is set implicitly, which the type may forbid then.
        let mut first = saved.attributes.clone();
        let state = first.remove_entry(STATE);
        let access_type = first.remove_entry(TYPE);
        self.settle_attributes(&folder, &first, Show::Values);
        self.settle_attributes(&folder, &state.into_iter().collect(), Show::Values);
        if let Some((name, value)) = access_type
            && self.read_if_any(&folder.join(&name)).as_ref() != Some(&value)
        {
            let number = TYPES.iter().position(|word| *word == value);
            let number = number.ok_or_else(|| {
                Error::Invalid(format!("bad {name} {value:?}: it is one of {TYPES:?}"))
            })?;
            self.apply(Change::Write(folder.join(name), number.to_string()))?;
        }
        Ok(self.port_group_differences(backstore, saved))
    }

    /// The target port group that a LUN belongs to, where the kernel says so.
    pub(super) fn port_group_of(&self, lun: &Path) -> Option<String> {
        let text = self.read_if_any(&lun.join("alua_tg_pt_gp"))?;
        let alias = text.lines().next()?.strip_prefix("TG Port Alias: ")?;
        Some(alias.trim().to_owned())
    }
}

/// The attributes of a group as targetcli saves them.
pub(super) fn from_targetcli(name: &str, value: &str) -> Option<(String, String)> {
    let is_ours = name.starts_with("alua_support_")
        || [
            STATE,
            TYPE,
            "alua_write_metadata",
            "preferred",
            "nonop_delay_msecs",
            "trans_delay_msecs",
            "implicit_trans_secs",
        ]
        .contains(&name);
    let value = match value.parse::<usize>() {
        Ok(number) if name == TYPE => (*TYPES.get(number)?).to_owned(),
        _ => value.to_owned(),
    };
    is_ours.then(|| (name.to_owned(), value))
}
