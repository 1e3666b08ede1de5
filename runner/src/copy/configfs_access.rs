//! The access rules, as LIO's configfs has them.
//!
//! A copy may reach another LUN only if whoever can send a command to this LUN can also send one to
//! the other:
//!
//! - Every target portal group that offers this LUN offers the other, too.
//! - Every ACL (`acls/<initiator>`) that maps this LUN maps the other, too, and for writing not
//!   write-protected. Initiators without an ACL (`generate_node_acls`) see all LUNs of the group.
//! - The other LUN's paths are in an active ALUA state there.
//! - Nobody holds a reservation on the other LUN: whether it is this initiator cannot be told. (For
//!   the LUN at hand the kernel has checked all that.)
//!
//! The layout is target_core_fabric_configfs.c's:
//! `target/<fabric>/<wwn>/tpgt_N/lun/lun_M/<link to the backstore>` and
//! `target/<fabric>/<wwn>/tpgt_N/acls/<initiator>/lun_K/<link to lun_M>`.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::access::Access;

/// What configfs says at the moment of asking.
#[derive(Debug)]
pub(crate) struct ConfigfsAccess {
    /// `/sys/kernel/config/target`.
    target: PathBuf,
}

impl ConfigfsAccess {
    pub(crate) fn at(target: PathBuf) -> Self {
        Self { target }
    }

    /// What cannot be read is not allowed: it may just be changing.
    fn check(&self, own: &Path, other: &Path, for_writing: bool) -> io::Result<bool> {
        let (own, other) = (own.canonicalize()?, other.canonicalize()?);
        if is_reserved(&other)? {
            return Ok(false);
        }
        let mut offered = false;
        for fabric in folders(&self.target)? {
            if fabric.file_name() == Some(OsStr::new("core")) {
                continue;
            }
            for wwn in folders(&fabric)? {
                for group in folders(&wwn)? {
                    if !is_numbered(&group, "tpgt_") {
                        continue;
                    }
                    let luns = luns_of(&group)?;
                    let own_luns = leading_to(&luns, &own);
                    if own_luns.is_empty() {
                        continue;
                    }
                    offered = true;
                    let other_luns = leading_to(&luns, &other);
                    if !group_allows(&group, &own_luns, &other_luns, for_writing)? {
                        return Ok(false);
                    }
                }
            }
        }
        Ok(offered)
    }
}

impl Access for ConfigfsAccess {
    fn allows(&self, own: &Path, other: &Path, for_writing: bool) -> bool {
        let allowed = self.check(own, other, for_writing);
        if !matches!(allowed, Ok(true)) {
            tracing::info!(
                own = %own.display(),
                other = %other.display(),
                ?allowed,
                "a copy was refused: not all who see the one LUN may use the other"
            );
        }
        allowed.unwrap_or(false)
    }
}

/// Whether a target portal group lets those who use `own` use `other`, both as folders `lun/lun_M`.
fn group_allows(
    group: &Path,
    own: &[&Path],
    other: &[&Path],
    for_writing: bool,
) -> io::Result<bool> {
    if other.is_empty() {
        return Ok(false);
    }
    for lun in other {
        if !is_active(lun)? {
            return Ok(false);
        }
    }
    for acl in folders(&group.join("acls"))? {
        let mapped = folders(&acl)?
            .into_iter()
            .filter(|folder| is_numbered(folder, "lun_"))
            .map(|folder| Ok((link_in(&folder)?, folder)))
            .collect::<io::Result<Vec<_>>>()?;
        let maps = |lun: &Option<PathBuf>, luns: &[&Path]| {
            lun.as_deref().is_some_and(|lun| luns.contains(&lun))
        };
        if !mapped.iter().any(|(lun, _)| maps(lun, own)) {
            continue;
        }
        let mut maps_other = false;
        for (lun, folder) in &mapped {
            if maps(lun, other) {
                maps_other = true;
                if for_writing && read(&folder.join("write_protect"))?.trim() != "0" {
                    return Ok(false);
                }
            }
        }
        if !maps_other {
            return Ok(false);
        }
    }
    Ok(true)
}

/// The LUNs of a target portal group, each with the backstore that it leads to.
fn luns_of(group: &Path) -> io::Result<Vec<(PathBuf, PathBuf)>> {
    let mut luns = Vec::new();
    for lun in folders(&group.join("lun"))? {
        if let Some(backstore) = link_in(&lun)? {
            luns.push((lun.canonicalize()?, backstore));
        }
    }
    Ok(luns)
}

fn leading_to<'a>(luns: &'a [(PathBuf, PathBuf)], backstore: &Path) -> Vec<&'a Path> {
    let of_backstore = luns.iter().filter(|(_, goal)| goal == backstore);
    of_backstore.map(|(lun, _)| lun.as_path()).collect()
}

/// Where the symbolic link in a folder leads, if there is one.
fn link_in(folder: &Path) -> io::Result<Option<PathBuf>> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_type()?.is_symlink() {
            return entry.path().canonicalize().map(Some);
        }
    }
    Ok(None)
}

/// Whether a LUN's target port group is in an active state (target_core_alua.c): I/O through it would
/// be refused otherwise.
fn is_active(lun: &Path) -> io::Result<bool> {
    let group = match read(&lun.join("alua_tg_pt_gp")) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(true),
        Err(error) => return Err(error),
    };
    let value = |key: &str| {
        let line = group.lines().find_map(|line| line.strip_prefix(key))?;
        Some(line.trim_start_matches(':').trim().to_owned())
    };
    // There is no text for a LUN without a group, such as one of a backstore that leaves ALUA to
    // its device.
    let primary = value("TG Port Primary Access State");
    let secondary = value("TG Port Secondary Access State");
    Ok(primary.is_none_or(|state| state.starts_with("Active/"))
        && secondary.is_none_or(|state| state == "None"))
}

/// Whether somebody holds a reservation on a backstore (`target_pr_res_holder_show` in
/// target_core_configfs.c).
fn is_reserved(backstore: &Path) -> io::Result<bool> {
    let text = match read(&backstore.join("pr/res_holder")) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(error),
    };
    let free = ["No SPC-", "SPC_RESERVATIONS_DISABLED", "Passthrough"];
    Ok(!free.iter().any(|start| text.starts_with(start)))
}

fn read(path: &Path) -> io::Result<String> {
    fs::read(path).map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
}

/// The folders in a folder, without symbolic links; none if it is not there.
fn folders(folder: &Path) -> io::Result<Vec<PathBuf>> {
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut folders = Vec::new();
    for entry in entries {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            folders.push(entry.path());
        }
    }
    Ok(folders)
}

fn is_numbered(folder: &Path, prefix: &str) -> bool {
    let name = folder.file_name().and_then(OsStr::to_str);
    name.and_then(|name| name.strip_prefix(prefix))
        .is_some_and(|number| !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    /// A tree of plain folders with the kernel's layout.
    struct Tree(tempfile::TempDir);

    impl Tree {
        fn new() -> Self {
            let tree = Self(tempfile::tempdir().unwrap());
            for name in ["a", "b"] {
                tree.write(
                    &format!("core/user_0/{name}/pr/res_holder"),
                    "No SPC-3 Reservation holder\n",
                );
            }
            tree
        }

        fn path(&self, path: &str) -> PathBuf {
            self.0.path().join(path)
        }

        fn write(&self, path: &str, text: &str) {
            let path = self.path(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }

        /// Offers a backstore as a LUN of a target portal group.
        fn offer(&self, group: &str, lun: u32, backstore: &str) {
            let folder = format!("{group}/lun/lun_{lun}");
            self.write(
                &format!("{folder}/alua_tg_pt_gp"),
                "TG Port Alias: default_tg_pt_gp\nTG Port Group ID: 0\n\
                 TG Port Primary Access State: Active/Optimized\n\
                 TG Port Primary Access Status: None\nTG Port Secondary Access State: None\n\
                 TG Port Secondary Access Status: None\n",
            );
            let goal = self.path(&format!("core/user_0/{backstore}"));
            symlink(goal, self.path(&format!("{folder}/storage"))).unwrap();
        }

        /// Maps a LUN for an initiator.
        fn map(&self, group: &str, initiator: &str, lun: u32, protected: bool) {
            let folder = format!("{group}/acls/{initiator}/lun_{lun}");
            let protected = if protected { "1\n" } else { "0\n" };
            self.write(&format!("{folder}/write_protect"), protected);
            let goal = self.path(&format!("{group}/lun/lun_{lun}"));
            symlink(goal, self.path(&format!("{folder}/mapped"))).unwrap();
        }

        fn allows(&self, own: &str, other: &str, for_writing: bool) -> bool {
            let access = ConfigfsAccess::at(self.0.path().to_owned());
            let backstore = |name| self.path(&format!("core/user_0/{name}"));
            access.allows(&backstore(own), &backstore(other), for_writing)
        }
    }

    const GROUP: &str = "iscsi/iqn.x/tpgt_1";
    const SECOND: &str = "loopback/naa.1/tpgt_1";

    #[test]
    fn the_same_target_is_allowed() {
        let tree = Tree::new();
        tree.offer(GROUP, 0, "a");
        tree.offer(GROUP, 1, "b");
        assert!(tree.allows("a", "b", true));
        assert!(tree.allows("b", "a", true));
    }

    #[test]
    fn luns_of_different_targets_are_refused() {
        let tree = Tree::new();
        tree.offer(GROUP, 0, "a");
        tree.offer(SECOND, 0, "b");
        assert!(!tree.allows("a", "b", false));
        // One target with both does not make up for another with one alone.
        tree.offer(SECOND, 1, "a");
        assert!(!tree.allows("a", "b", false));
        assert!(tree.allows("b", "a", false));
        tree.offer(GROUP, 1, "b");
        assert!(tree.allows("a", "b", false));
    }

    #[test]
    fn a_lun_that_nobody_offers_is_refused() {
        let tree = Tree::new();
        assert!(!tree.allows("a", "b", false));
        tree.offer(GROUP, 0, "b");
        assert!(!tree.allows("a", "b", false));
        assert!(!tree.allows("a", "missing", false));
    }

    #[test]
    fn every_initiator_has_to_see_both() {
        let tree = Tree::new();
        tree.offer(GROUP, 0, "a");
        tree.offer(GROUP, 1, "b");
        tree.map(GROUP, "iqn.one", 0, false);
        tree.map(GROUP, "iqn.one", 1, false);
        assert!(tree.allows("a", "b", true));
        tree.map(GROUP, "iqn.two", 0, false);
        assert!(!tree.allows("a", "b", false));
        // Whoever sees only "b" sends nothing to "a".
        assert!(tree.allows("b", "a", true));
    }

    #[test]
    fn a_write_protected_mapping_is_only_read() {
        let tree = Tree::new();
        tree.offer(GROUP, 0, "a");
        tree.offer(GROUP, 1, "b");
        tree.map(GROUP, "iqn.one", 0, false);
        tree.map(GROUP, "iqn.one", 1, true);
        assert!(tree.allows("a", "b", false));
        assert!(!tree.allows("a", "b", true));
    }

    #[test]
    fn a_reserved_lun_is_refused() {
        let tree = Tree::new();
        tree.offer(GROUP, 0, "a");
        tree.offer(GROUP, 1, "b");
        for (text, allowed) in [
            ("No SPC-2 Reservation holder\n", true),
            ("Passthrough\n", true),
            ("SPC_RESERVATIONS_DISABLED\n", true),
            (
                "SPC-3 Reservation: iSCSI Initiator Node: iqn.two,i,0x1\n",
                false,
            ),
            ("SPC-2 Reservation: iSCSI Initiator: iqn.two\n", false),
        ] {
            tree.write("core/user_0/b/pr/res_holder", text);
            assert_eq!(tree.allows("a", "b", false), allowed, "{text}");
        }
    }

    #[test]
    fn a_standby_path_is_refused() {
        let tree = Tree::new();
        tree.offer(GROUP, 0, "a");
        tree.offer(GROUP, 1, "b");
        let path = format!("{GROUP}/lun/lun_1/alua_tg_pt_gp");
        for (state, allowed) in [
            ("Active/NonOptimized", true),
            ("Standby", false),
            ("Offline", false),
        ] {
            let text = format!("TG Port Primary Access State: {state}\n");
            tree.write(&path, &text);
            assert_eq!(tree.allows("a", "b", false), allowed, "{state}");
        }
        tree.write(&path, "TG Port Secondary Access State: Offline\n");
        assert!(!tree.allows("a", "b", false));
    }
}
