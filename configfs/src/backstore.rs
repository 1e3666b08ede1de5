//! User backstores as they are in the tree: finding and describing them.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::error::{Error, Result};
use crate::export::Export;
use crate::size::DEFAULT_BLOCK_SIZE;
use crate::tree::Tree;

/// Whether a backstore can serve, and does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// Not enabled: its creation is going on, or failed.
    Disabled,
    /// Enabled, but no fabric exposes it.
    Deactivated,
    /// Enabled and exposed.
    Activated,
}

impl State {
    /// The state's name, as in JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            State::Disabled => "disabled",
            State::Deactivated => "deactivated",
            State::Activated => "activated",
        }
    }
}

/// A user backstore in the tree.
///
/// Its serialized form is `tcmuctl`'s JSON; fields may be added to it, but none change their
/// meaning.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Backstore {
    /// Its name.
    pub name: String,
    /// The number N of its HBA `user_N`.
    pub hba: u32,
    /// The handler's subtype: `dev_config` up to its first slash.
    pub handler: String,
    /// What the handler serves: `dev_config` after its first slash.
    pub config: String,
    /// Size in bytes.
    pub size: u64,
    /// Logical block size in bytes.
    pub block_size: u32,
    /// Largest transfer of one command in logical blocks.
    pub max_sectors: u32,
    /// Whether it can serve, and does.
    pub state: State,
    /// The unit serial number, empty if there is none.
    pub serial: String,
    /// The uio device that the daemon serves it through, such as `/dev/uio0`; absent unless
    /// enabled.
    pub uio: Option<PathBuf>,
    /// Where it is exposed.
    pub exports: Vec<Export>,
}

impl Backstore {
    /// The block devices of this machine that it is exposed as.
    pub fn block_devices(&self) -> impl Iterator<Item = &Path> {
        self.exports
            .iter()
            .filter_map(|export| export.block_device.as_deref())
    }

    /// The iSCSI portals that it is exposed at, as `address:port`.
    pub fn portals(&self) -> impl Iterator<Item = &str> {
        self.exports
            .iter()
            .flat_map(|export| export.portals.iter().map(String::as_str))
    }
}

/// A backstore with all that the kernel tells of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Details {
    /// What [`Tree::list`] shows as well.
    #[serde(flatten)]
    pub backstore: Backstore,
    /// Its folder in the tree.
    pub path: PathBuf,
    /// The kernel's attributes by name (the folder `attrib`).
    pub attributes: BTreeMap<String, String>,
    /// The kernel's statistics as `group/name` (the folder `statistics`).
    pub statistics: BTreeMap<String, String>,
}

/// Where a backstore is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) name: String,
    pub(crate) hba: u32,
    pub(crate) path: PathBuf,
}

impl Tree {
    /// All user backstores, by HBA and name; none if LIO is not loaded.
    ///
    /// # Errors
    /// [`Error::Kernel`] if the tree cannot be read.
    pub fn list(&self) -> Result<Vec<Backstore>> {
        let exports = self.all_exports()?;
        let mut found = Vec::new();
        for place in self.places()? {
            // One that goes while we look is no error.
            if let Some(backstore) = self.describe(&place, &exports)? {
                found.push(backstore);
            }
        }
        Ok(found)
    }

    /// One backstore with everything that the kernel tells of it.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::Ambiguous`] if several HBAs have one of this name and `hba`
    /// does not say which, and [`Error::Kernel`] if the tree cannot be read.
    pub fn show(&self, name: &str, hba: Option<u32>) -> Result<Details> {
        let place = self.find(name, hba)?;
        let backstore = self.summary(&place)?;
        let attributes = self.attributes(&place.path.join("attrib"), "")?;
        let mut statistics = BTreeMap::new();
        for group in self.folders(&place.path.join("statistics"))? {
            let prefix = group
                .file_name()
                .unwrap_or_default()
                .to_string_lossy()
                .into_owned()
                + "/";
            statistics.extend(self.attributes(&group, &prefix)?);
        }
        Ok(Details {
            backstore,
            path: place.path,
            attributes,
            statistics,
        })
    }

    /// A backstore as [`Tree::list`] would show it.
    pub(crate) fn summary(&self, place: &Place) -> Result<Backstore> {
        self.describe(place, &self.exports_of(&place.path)?)?
            .ok_or_else(|| Error::NotFound(place.name.clone()))
    }

    /// The one backstore of this name.
    pub(crate) fn find(&self, name: &str, hba: Option<u32>) -> Result<Place> {
        let mut places = self.places()?;
        places.retain(|place| place.name == name && hba.is_none_or(|hba| hba == place.hba));
        match places.len() {
            0 => Err(Error::NotFound(name.to_owned())),
            1 => Ok(places.remove(0)),
            _ => Err(Error::Ambiguous {
                name: name.to_owned(),
                hbas: places.iter().map(|place| place.hba).collect(),
            }),
        }
    }

    /// All user backstores' places, by HBA and name.
    pub(crate) fn places(&self) -> Result<Vec<Place>> {
        let core = self.roots.core();
        let mut places = Vec::new();
        for hba_name in self.names(&core)? {
            let Some(hba) = hba_name.strip_prefix("user_").and_then(|n| n.parse().ok()) else {
                continue;
            };
            for path in self.folders(&core.join(&hba_name))? {
                let name = path
                    .file_name()
                    .unwrap_or_default()
                    .to_string_lossy()
                    .into_owned();
                places.push(Place { name, hba, path });
            }
        }
        places.sort_by(|a, b| (a.hba, &a.name).cmp(&(b.hba, &b.name)));
        Ok(places)
    }

    fn describe(&self, place: &Place, exports: &[(PathBuf, Export)]) -> Result<Option<Backstore>> {
        let attribute = |name: &str| self.read_if_any(&place.path.join("attrib").join(name));
        let number = |name: &str| attribute(name).and_then(|text| text.parse::<u64>().ok());
        let dev_config = match self.read(&place.path.join("attrib/dev_config")) {
            Ok(text) => text,
            Err(_) if !place.path.is_dir() => return Ok(None),
            Err(error) => return Err(error),
        };
        let (handler, config) = dev_config.split_once('/').unwrap_or((&dev_config, ""));
        let enabled = self.read_if_any(&place.path.join("enable")).as_deref() == Some("1");
        // 0 stands for the default until the device is enabled.
        let block_size = number("hw_block_size").filter(|size| *size > 0);
        let info = self
            .read_if_any(&place.path.join("info"))
            .unwrap_or_default();
        let state = match (enabled, info.contains("Status: ACTIVATED")) {
            (false, _) => State::Disabled,
            (true, false) => State::Deactivated,
            (true, true) => State::Activated,
        };
        let small = |value: u64| u32::try_from(value).unwrap_or(u32::MAX);
        Ok(Some(Backstore {
            name: place.name.clone(),
            hba: place.hba,
            handler: handler.to_owned(),
            config: config.to_owned(),
            size: number("dev_size").unwrap_or(0),
            block_size: small(block_size.unwrap_or(DEFAULT_BLOCK_SIZE.into())),
            max_sectors: small(number("hw_max_sectors").unwrap_or(0)),
            state,
            serial: self.serial_of(&place.path),
            uio: if enabled { self.uio_of(place) } else { None },
            exports: exports
                .iter()
                .filter(|(path, _)| *path == place.path)
                .map(|(_, export)| export.clone())
                .collect(),
        }))
    }

    /// The unit serial number; the kernel shows it after a label.
    fn serial_of(&self, backstore: &Path) -> String {
        let text = self
            .read_if_any(&backstore.join("wwn/vpd_unit_serial"))
            .unwrap_or_default();
        text.split_once(": ")
            .map_or(text.as_str(), |(_, serial)| serial)
            .trim()
            .to_owned()
    }

    /// The uio device whose name is `tcm-user/<hba>/<name>/<dev_config>`.
    fn uio_of(&self, place: &Place) -> Option<PathBuf> {
        let wanted = format!("tcm-user/{}/{}", place.hba, place.name);
        let class = self.roots.sysfs.join("class/uio");
        self.names(&class).ok()?.into_iter().find_map(|uio| {
            let text = self.read_if_any(&class.join(&uio).join("name"))?;
            let rest = text.strip_prefix(&wanted)?;
            (rest.is_empty() || rest.starts_with('/')).then(|| self.roots.dev.join(&uio))
        })
    }

    /// The readable files of a folder by name.
    fn attributes(&self, folder: &Path, prefix: &str) -> Result<BTreeMap<String, String>> {
        let names = self.names(folder)?;
        Ok(names
            .into_iter()
            .filter_map(|name| {
                let text = self.read_if_any(&folder.join(&name))?;
                Some((format!("{prefix}{name}"), text))
            })
            .collect())
    }
}
