//! Files of configfs that hold one value each: reading, comparing and setting many of them.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use super::Attributes;
use crate::change::Change;
use crate::error::{Error, Result};
use crate::tree::Tree;

/// What iSCSI shows where no name or secret is set.
const UNSET: &str = "NULL";

/// Whether a difference may be shown, or only named.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Show {
    Values,
    /// They are secret.
    Names,
}

impl Tree {
    /// The files of a folder that can be read and written and that have a text, but for those in
    /// `except`.
    pub(super) fn settable(&self, folder: &Path, except: &[&str]) -> Result<Attributes> {
        let mut attributes = Attributes::new();
        for name in self.names(folder)? {
            let path = folder.join(&name);
            let Ok(meta) = fs::metadata(&path) else {
                continue;
            };
            let both = meta.permissions().mode() & 0o600 == 0o600;
            if !meta.is_file() || !both || except.contains(&name.as_str()) {
                continue;
            }
            if let Some(text) = self.read_if_any(&path)
                && !text.is_empty()
                && text != UNSET
            {
                attributes.insert(name, text);
            }
        }
        Ok(attributes)
    }

    /// Where a folder's files differ from what was saved: one phrase each.
    pub(super) fn differences(&self, folder: &Path, saved: &Attributes, show: Show) -> Vec<String> {
        let name_of = |name: &str| {
            let folder = folder.file_name().unwrap_or_default().to_string_lossy();
            format!("{folder}/{name}")
        };
        let different = saved.iter().filter_map(|(name, value)| {
            let is = self.read_if_any(&folder.join(name));
            match (is, show) {
                (Some(is), _) if is == *value => None,
                (Some(_), Show::Names) => Some(format!("{} is another", name_of(name))),
                (Some(is), Show::Values) => {
                    Some(format!("{} is {is:?}, not {value:?}", name_of(name)))
                }
                (None, _) => Some(format!("this kernel has no {}", name_of(name))),
            }
        });
        different.collect()
    }

    /// Gives a folder's files what was saved where they differ, and says what could not be:
    /// one phrase each.
    pub(super) fn settle_attributes(
        &self,
        folder: &Path,
        saved: &Attributes,
        show: Show,
    ) -> Vec<String> {
        let mut refused = BTreeMap::new();
        for (name, value) in saved {
            let path = folder.join(name);
            if self.read_if_any(&path).is_none_or(|is| is == *value) {
                continue;
            }
            if let Err(Error::Kernel { source, .. }) =
                self.apply(Change::Write(path, value.clone()))
            {
                refused.insert(name.clone(), source);
            }
        }
        // Some files change others, so all are looked at again.
        let mut left = self.differences(folder, saved, show);
        for phrase in &mut left {
            let why = refused
                .iter()
                .find(|(name, _)| phrase.contains(&format!("/{name} ")));
            if let Some((_, error)) = why {
                *phrase += &format!(": {error}");
            }
        }
        left
    }
}

/// Checks what is going to be the name or the text of files.
pub(super) fn check(attributes: &Attributes) -> Result<()> {
    for (name, value) in attributes {
        check_name("attribute", name)?;
        // The kernel takes one page at the most.
        if value.len() > 4000 || value.chars().any(char::is_control) {
            return Err(Error::Invalid(format!(
                "the value of the attribute {name} holds a control character, or is too long"
            )));
        }
    }
    Ok(())
}

/// Checks what is going to be the name of a file or folder.
pub(super) fn check_name(what: &str, name: &str) -> Result<()> {
    let bad = name.is_empty()
        || name.len() > 223
        || matches!(name, "." | "..")
        || name.contains('/')
        || name.chars().any(|c| c.is_control() || c.is_whitespace());
    if bad {
        return Err(Error::Invalid(format!(
            "bad name of {what} {name:?}: it is empty, too long, or holds '/' or white space"
        )));
    }
    Ok(())
}
