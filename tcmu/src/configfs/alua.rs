//! Target port groups: asymmetric logical unit access (ALUA), as the target core keeps it.
//!
//! The target core holds the groups and their states, and refuses commands in the states that do not
//! allow them (`target_alua_state_check` in target_core_alua.c). What it leaves to user space is to
//! tell initiators: it passes REPORT and SET TARGET PORT GROUPS on (`passthrough_parse_cdb` in
//! target_core_device.c).

use std::fs;
use std::io;
use std::path::{Component, Path, PathBuf};

use super::BackstoreDir;
use crate::attribute;

/// A target port group of a logical unit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TargetPortGroup {
    /// The name of its folder.
    pub name: String,
    /// TARGET PORT GROUP.
    pub id: u16,
    /// PREF: initiators should prefer it.
    pub preferred: bool,
    /// ASYMMETRIC ACCESS STATE, a constant of
    /// [`access_state`](crate::scsi::target_port_groups::access_state).
    pub state: u8,
    /// The states that there are: byte 1 of the group's descriptor (SPC-4, 6.37.2).
    pub supported_states: u8,
    /// STATUS CODE: who changed the state last.
    pub status: u8,
    /// The target changes the state by itself.
    pub implicit: bool,
    /// Initiators may change the state.
    pub explicit: bool,
    /// IMPLICIT TRANSITION TIME in seconds; 0: not said.
    pub transition_time: u8,
    /// The ports through which the logical unit can be reached, of this group.
    pub ports: Vec<TargetPort>,
}

/// A target port: a fabric's portal group with a LUN of the backstore.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TargetPort {
    /// RELATIVE TARGET PORT IDENTIFIER.
    pub relative_id: u16,
    /// Commands can come through it. The ports of other machines of a cluster are configured too, and
    /// not enabled.
    pub enabled: bool,
}

/// The names of `alua_support_*` with their bits in a descriptor.
const STATES: [(&str, u8); 7] = [
    ("transitioning", 0x80),
    ("offline", 0x40),
    ("lba_dependent", 0x10),
    ("unavailable", 0x08),
    ("standby", 0x04),
    ("active_nonoptimized", 0x02),
    ("active_optimized", 0x01),
];

impl BackstoreDir {
    /// The target port groups, by id. None where the target core does not keep them
    /// (`attrib/alua_support` is 0).
    ///
    /// # Errors
    /// As said at [`BackstoreDir`].
    pub fn target_port_groups(&self) -> io::Result<Vec<TargetPortGroup>> {
        if !self.flag_or("attrib/alua_support", true)? {
            return Ok(Vec::new());
        }
        let folder = self.path().join("alua");
        let mut groups = Vec::new();
        for entry in
            fs::read_dir(&folder).map_err(|error| attribute::on_path("read", &folder, error))?
        {
            let name = entry?.file_name().to_string_lossy().into_owned();
            let id = self.text(&format!("alua/{name}/tg_pt_gp_id"))?;
            // It is empty for a group that has none yet, and does not count.
            if let Ok(id) = id.trim().parse() {
                groups.push(self.target_port_group(name, id)?);
            }
        }
        groups.sort_by_key(|group| group.id);
        // Before Linux 6.5 the kernel does not tell its numbers: the ports are counted.
        let ports = groups.iter_mut().flat_map(|group| &mut group.ports);
        for (port, number) in ports.zip(1..) {
            if port.relative_id == 0 {
                port.relative_id = number;
            }
        }
        Ok(groups)
    }

    fn target_port_group(&self, name: String, id: u16) -> io::Result<TargetPortGroup> {
        let at = |attribute: &str| format!("alua/{name}/{attribute}");
        let mut supported_states = 0;
        for (state, bit) in STATES {
            if self.flag(&at(&format!("alua_support_{state}")))? {
                supported_states |= bit;
            }
        }
        let access_type = self.text(&at("alua_access_type"))?;
        let status = self.text(&at("alua_access_status"))?;
        let members = self.text(&at("members"))?;
        let state: u8 = self.value(&at("alua_access_state"))?;
        let transition_time: i64 = self.value(&at("implicit_trans_secs"))?;
        Ok(TargetPortGroup {
            id,
            preferred: self.flag(&at("preferred"))?,
            state: state & 0x0f,
            supported_states,
            status: match status.as_str() {
                "Altered by Explicit STPG" => 1,
                "Altered by Implicit ALUA" => 2,
                _ => 0,
            },
            implicit: access_type.contains("Implicit"),
            explicit: access_type.contains("Explicit"),
            transition_time: u8::try_from(transition_time).unwrap_or(u8::MAX),
            ports: self.ports(&members)?,
            name,
        })
    }

    /// The ports of a group whose attribute `members` reads so: one `fabric/target/tpgt_N/lun_M` on
    /// each line, with NULs between them.
    fn ports(&self, members: &str) -> io::Result<Vec<TargetPort>> {
        members
            .split(['\n', '\0'])
            .filter(|member| !member.is_empty())
            .map(|member| {
                let Some(folder) = self.portal_group(member) else {
                    return Ok(TargetPort {
                        relative_id: 0,
                        enabled: true,
                    });
                };
                let relative_id = absent_ok(attribute::read_hex(&folder.join("rtpi")))?;
                // Fabrics that cannot be disabled have no such attribute.
                let enabled = absent_ok(attribute::read_value::<i64>(&folder.join("enable")))?;
                Ok(TargetPort {
                    relative_id: relative_id
                        .and_then(|id| u16::try_from(id).ok())
                        .unwrap_or(0),
                    enabled: enabled != Some(0),
                })
            })
            .collect()
    }

    /// The folder of a member's portal group, if it is where it should be. The kernel writes the
    /// fabric's name, which is not always its folder's: `iSCSI` for `iscsi`.
    fn portal_group(&self, member: &str) -> Option<PathBuf> {
        // Up from target/core/user_N/NAME.
        let target = self.path().ancestors().nth(3)?;
        let member = Path::new(member).parent()?;
        let is_plain = |part| matches!(part, Component::Normal(_));
        if !member.components().all(is_plain) {
            return None;
        }
        let (fabric, rest) = member.to_str()?.split_once('/')?;
        [fabric.to_owned(), fabric.to_lowercase()]
            .into_iter()
            .map(|fabric| target.join(fabric).join(rest))
            .find(|folder| folder.is_dir())
    }

    /// Changes the state of the group in the folder `group`, for an initiator that asked for it
    /// (SET TARGET PORT GROUPS). The kernel establishes a unit attention for all initiators. May take
    /// as long as the group's `trans_delay_msecs`.
    ///
    /// # Errors
    /// [`io::ErrorKind::InvalidInput`] where the group does not have this state, or is not
    /// [`implicit`](TargetPortGroup::implicit): the kernel lets user space change no others.
    pub fn set_access_state(&self, group: &str, state: u8) -> io::Result<()> {
        self.write(
            &format!("alua/{group}/alua_access_state"),
            &state.to_string(),
        )?;
        self.write(&format!("alua/{group}/alua_access_status"), "1")
    }
}

/// `None` for an attribute that is not there.
fn absent_ok<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A tree with one backstore; attributes are written as the kernel writes them.
    struct Tree(tempfile::TempDir);

    impl Tree {
        fn new() -> Self {
            let tree = Self(tempfile::tempdir().unwrap());
            tree.write("core/user_0/disk/attrib/alua_support", "1\n");
            tree
        }

        fn write(&self, path: &str, content: &str) {
            let path = self.0.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, content).unwrap();
        }

        fn read(&self, path: &str) -> String {
            fs::read_to_string(self.0.path().join(path)).unwrap()
        }

        fn group(&self, name: &str, id: &str, members: &str) {
            for (attribute, content) in [
                ("tg_pt_gp_id", id),
                ("members", members),
                ("alua_access_state", "0\n"),
                ("alua_access_status", "None\n"),
                ("alua_access_type", "Implicit and Explicit\n"),
                ("preferred", "0\n"),
                ("implicit_trans_secs", "0\n"),
                ("alua_support_transitioning", "1\n"),
                ("alua_support_offline", "1\n"),
                ("alua_support_lba_dependent", "0\n"),
                ("alua_support_unavailable", "1\n"),
                ("alua_support_standby", "1\n"),
                ("alua_support_active_nonoptimized", "1\n"),
                ("alua_support_active_optimized", "1\n"),
            ] {
                self.write(
                    &format!("core/user_0/disk/alua/{name}/{attribute}"),
                    content,
                );
            }
        }

        fn backstore(&self) -> BackstoreDir {
            BackstoreDir::at(self.0.path().join("core/user_0/disk"))
        }

        fn groups(&self) -> Vec<TargetPortGroup> {
            self.backstore().target_port_groups().unwrap()
        }
    }

    #[test]
    fn groups_are_read_with_their_ports() {
        let tree = Tree::new();
        tree.group("late", "16\n", "");
        tree.group(
            "default_tg_pt_gp",
            "0\n",
            "loopback/naa.6001/tpgt_1/lun_0\n\0iSCSI/iqn.2026-11.a:b/tpgt_2/lun_3\n\0",
        );
        tree.group("unnumbered", "", "");
        tree.write("loopback/naa.6001/tpgt_1/rtpi", "0x7\n");
        tree.write("iscsi/iqn.2026-11.a:b/tpgt_2/rtpi", "0xffff\n");
        tree.write("iscsi/iqn.2026-11.a:b/tpgt_2/enable", "0\n");
        let groups = tree.groups();
        assert_eq!(groups.len(), 2);
        assert_eq!(
            groups[0],
            TargetPortGroup {
                name: "default_tg_pt_gp".to_owned(),
                id: 0,
                preferred: false,
                state: 0,
                supported_states: 0xcf,
                status: 0,
                implicit: true,
                explicit: true,
                transition_time: 0,
                ports: vec![
                    TargetPort {
                        relative_id: 7,
                        enabled: true
                    },
                    TargetPort {
                        relative_id: 0xffff,
                        enabled: false
                    },
                ],
            }
        );
        assert_eq!((groups[1].id, groups[1].ports.len()), (16, 0));
    }

    #[test]
    fn ports_without_a_number_are_counted() {
        let tree = Tree::new();
        let member = "loopback/naa.6001/tpgt_1/lun_0\n\0";
        tree.group("a", "2\n", member);
        // A fabric whose folder is not found where it should be, or that lies elsewhere.
        tree.group(
            "b",
            "1\n",
            "fc/20:00/tpgt_1/lun_0\n\0../../../etc/lun_0\n\0",
        );
        tree.write("loopback/naa.6001/tpgt_1/nexus", "\n");
        let groups = tree.groups();
        let ids: Vec<_> = groups
            .iter()
            .flat_map(|group| &group.ports)
            .map(|port| (port.relative_id, port.enabled))
            .collect();
        assert_eq!(ids, [(1, true), (2, true), (3, true)]);
    }

    #[test]
    fn states_are_read_and_changed() {
        let tree = Tree::new();
        tree.group("g", "1\n", "");
        let attribute = |name: &str| format!("core/user_0/disk/alua/g/{name}");
        tree.write(&attribute("alua_access_state"), "2\n");
        tree.write(
            &attribute("alua_access_status"),
            "Altered by Implicit ALUA\n",
        );
        tree.write(&attribute("alua_access_type"), "Implicit\n");
        tree.write(&attribute("preferred"), "1\n");
        tree.write(&attribute("implicit_trans_secs"), "30\n");
        let group = tree.groups().remove(0);
        assert_eq!(
            (group.state, group.status, group.transition_time),
            (2, 2, 30)
        );
        assert!(group.preferred && group.implicit && !group.explicit);
        tree.backstore().set_access_state("g", 1).unwrap();
        assert!(tree.read(&attribute("alua_access_state")).starts_with('1'));
        assert!(tree.read(&attribute("alua_access_status")).starts_with('1'));
        let error = tree.backstore().set_access_state("h", 1).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn there_are_none_where_the_kernel_keeps_none() {
        let tree = Tree::new();
        tree.group("g", "1\n", "");
        tree.write("core/user_0/disk/attrib/alua_support", "0\n");
        assert_eq!(tree.groups(), []);
    }
}
