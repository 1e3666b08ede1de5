//! A configuration as it is saved and restored: backstores, and the targets that expose them.
//!
//! The kernel's tree is gone after a reboot. [`Tree::capture`](crate::Tree::capture) describes
//! what of it this crate knows about, [`Saved::write`] keeps that in a file, [`Saved::read`] reads
//! such a file, or one of targetcli's, and [`Tree::restore`](crate::Tree::restore) makes the tree
//! look like it again.
//!
//! # The file
//! JSON, with CHAP's passwords in clear, so only root may read it:
//!
//! ```json
//! {
//!   "format": "tcmuctl",
//!   "version": 1,
//!   "backstores": [
//!     { "name": "disk0", "handler": "file", "config": "/srv/disk0.img", "size": 10737418240 }
//!   ],
//!   "targets": [
//!     { "fabric": "loopback", "name": "naa.5001405000000001",
//!       "groups": [ { "tag": 1, "luns": [ { "lun": 0, "backstore": "disk0" } ] } ] }
//!   ]
//! }
//! ```
//!
//! What is left out has the default that `tcmuctl create` or the kernel has. The fields are those
//! of the types here. A file of a version that this crate does not know is refused as a whole; the
//! version goes up when a field changes its meaning, or when leaving a new one out of account would
//! restore something else than was saved.

mod attributes;
mod capture;
mod file;
mod port_groups;
mod restore;
mod restore_acls;
mod restore_targets;
mod targetcli;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

pub use self::restore::{Outcome, Step};

/// Where `tcmuctl` keeps the configuration unless told otherwise.
pub const DEFAULT_FILE: &str = "/etc/tcmu/saveconfig.json";

/// Attributes of a folder in configfs: the file's name and its text without the last newline.
pub type Attributes = BTreeMap<String, String>;

/// A configuration.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Saved {
    /// The backstores.
    pub backstores: Vec<Backstore>,
    /// The targets that expose them.
    pub targets: Vec<Target>,
}

/// A saved configuration, and what was left out of it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Taken {
    /// What was understood.
    pub saved: Saved,
    /// What was there as well, and is not in [`saved`](Self::saved), with the reason.
    pub left_out: Vec<Step>,
}

/// A user backstore.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Backstore {
    /// Its name.
    pub name: String,
    /// The number N of its HBA `user_N`; the lowest free one if it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hba: Option<u32>,
    /// The handler's subtype.
    pub handler: String,
    /// What the handler serves: `dev_config` behind the subtype.
    pub config: String,
    /// Size in bytes.
    pub size: u64,
    /// Logical block size in bytes (`hw_block_size`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub block_size: Option<u32>,
    /// Largest transfer of one command in logical blocks (`hw_max_sectors`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_sectors: Option<u32>,
    /// Limit of the memory for commands' data in MiB (`max_data_area_mb`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data_area_mb: Option<u32>,
    /// Pages in a block of that memory (`data_pages_per_blk`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pages_per_block: Option<u32>,
    /// Size of the command ring in MiB (`cmd_ring_size_mb`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ring_mb: Option<u32>,
    /// The unit serial number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub serial: Option<String>,
    /// The files of `attrib` that are none of the above.
    #[serde(default, skip_serializing_if = "Attributes::is_empty")]
    pub attributes: Attributes,
    /// The files of `wwn` that are none of the above: what INQUIRY shows of vendor and product.
    #[serde(default, skip_serializing_if = "Attributes::is_empty")]
    pub identification: Attributes,
    /// Target port groups (ALUA).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub port_groups: Vec<PortGroup>,
}

/// A target port group of a backstore (ALUA): `alua/NAME`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PortGroup {
    /// Its name.
    pub name: String,
    /// Its identifier (`tg_pt_gp_id`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<u16>,
    /// Its other files.
    #[serde(default, skip_serializing_if = "Attributes::is_empty")]
    pub attributes: Attributes,
}

/// A target of a fabric: `loopback` or `iscsi`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Target {
    /// The fabric.
    pub fabric: String,
    /// The target's name: its IQN or NAA identifier.
    pub name: String,
    /// Whether `tcmuctl` made it, and removes it with its last LUN.
    #[serde(default, skip_serializing_if = "is_false")]
    pub managed: bool,
    /// Its target portal groups.
    pub groups: Vec<Group>,
}

/// A target portal group: `tpgt_TAG`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Group {
    /// Its tag.
    pub tag: u16,
    /// Whether initiators may log in, where the fabric can say.
    #[serde(default = "yes", skip_serializing_if = "is_true")]
    pub enabled: bool,
    /// Loopback: the initiator port's name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nexus: Option<String>,
    /// The files of `attrib`.
    #[serde(default, skip_serializing_if = "Attributes::is_empty")]
    pub attributes: Attributes,
    /// The files of `param`: what iSCSI negotiates.
    #[serde(default, skip_serializing_if = "Attributes::is_empty")]
    pub parameters: Attributes,
    /// The files of `auth`: CHAP's names and secrets.
    #[serde(default, skip_serializing_if = "Attributes::is_empty")]
    pub authentication: Attributes,
    /// Where it listens, as `address:port`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub portals: Vec<String>,
    /// Its LUNs.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub luns: Vec<Lun>,
    /// The initiators that it knows.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub acls: Vec<Acl>,
}

/// A LUN of a target portal group.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Lun {
    /// The logical unit number.
    pub lun: u64,
    /// The backstore's name.
    pub backstore: String,
    /// Its HBA, where several have a backstore of this name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hba: Option<u32>,
    /// The backstore's target port group that it belongs to (ALUA).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port_group: Option<String>,
}

/// An initiator that a target portal group knows.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Acl {
    /// Its name.
    pub initiator: String,
    /// How many commands it may have under way (`cmdsn_depth`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub queue_depth: Option<u32>,
    /// The files of `attrib`.
    #[serde(default, skip_serializing_if = "Attributes::is_empty")]
    pub attributes: Attributes,
    /// The files of `auth`: CHAP's names and secrets.
    #[serde(default, skip_serializing_if = "Attributes::is_empty")]
    pub authentication: Attributes,
    /// The LUNs that it sees.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub luns: Vec<MappedLun>,
}

/// A LUN as an initiator sees it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MappedLun {
    /// The number that the initiator sees.
    pub lun: u64,
    /// The number that the target portal group has.
    pub target_lun: u64,
    /// Whether the initiator may not write.
    #[serde(default, skip_serializing_if = "is_false")]
    pub read_only: bool,
}

impl Default for Group {
    fn default() -> Self {
        Group {
            tag: 1,
            enabled: true,
            nexus: None,
            attributes: Attributes::new(),
            parameters: Attributes::new(),
            authentication: Attributes::new(),
            portals: Vec::new(),
            luns: Vec::new(),
            acls: Vec::new(),
        }
    }
}

impl Saved {
    /// How many LUNs its targets have.
    pub fn luns(&self) -> usize {
        let groups = self.targets.iter().flat_map(|target| &target.groups);
        groups.map(|group| group.luns.len()).sum()
    }
}

fn yes() -> bool {
    true
}

fn is_true(value: &bool) -> bool {
    *value
}

fn is_false(value: &bool) -> bool {
    !*value
}
