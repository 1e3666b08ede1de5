//! Where the configuration stands.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::parse::{Parsed, parse};

/// Read where no other file is named, if it is there.
const DEFAULT_PATH: &str = "/etc/tcmu/tcmu.conf";

/// A configuration file.
#[derive(Debug)]
pub(super) struct ConfigFile {
    path: PathBuf,
    /// That there is none is an error.
    required: bool,
}

impl ConfigFile {
    /// The file that was named, or else the one at the usual place.
    pub(super) fn named_or_usual(named: Option<PathBuf>) -> Self {
        let required = named.is_some();
        let path = named.unwrap_or_else(|| DEFAULT_PATH.into());
        Self { path, required }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// The file's text; `None` where there need not be one and there is none.
    pub(super) fn text(&self) -> anyhow::Result<Option<String>> {
        match fs::read_to_string(&self.path) {
            Ok(text) => Ok(Some(text)),
            Err(error) if error.kind() == io::ErrorKind::NotFound && !self.required => Ok(None),
            Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                anyhow::bail!("{}: the file is not UTF-8", self.path.display())
            }
            Err(error) => anyhow::bail!(
                "reading the configuration file {}: {error}",
                self.path.display()
            ),
        }
    }

    /// Reads settings from the file's text. Errors and remarks begin with the file's name.
    pub(super) fn parse(&self, text: &str) -> anyhow::Result<Parsed> {
        let name = self.path.display();
        let mut parsed = parse(text).map_err(|why| anyhow::anyhow!("{name}:{why}"))?;
        for remark in &mut parsed.remarks {
            remark.insert_str(0, &format!("{name}:"));
        }
        Ok(parsed)
    }
}
