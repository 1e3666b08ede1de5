//! A LUN's stable identity: the unit serial number and the port names derived from it.

use uuid::Uuid;

use crate::roots::Roots;

/// The name space of our unit serial numbers (RFC 9562, version 5).
const NAMESPACE: Uuid = Uuid::from_u128(0x6f6a_4c1d_2b0e_4d55_9c37_8a4b_51d0_72e1);

/// The unit serial number of a backstore: the same each time that the same backstore is created on
/// the same machine.
///
/// The machine's id is part of it, so that equal configurations on two machines do not look like
/// two paths to one disk, which multipath would merge. Whoever serves one image through two
/// machines gives both the same serial by hand.
pub(crate) fn serial(roots: &Roots, name: &str, dev_config: &str) -> String {
    let machine = std::fs::read_to_string(&roots.machine_id).unwrap_or_default();
    let text = [machine.trim(), name, dev_config].join("\0");
    Uuid::new_v5(&NAMESPACE, text.as_bytes()).to_string()
}

/// A port name derived from a serial number and the port's role: NAA 5 (IEEE Registered), LIO's
/// company id 001405, and 36 bits of hash.
pub(crate) fn naa(serial: &str, role: &str) -> String {
    let hash = Uuid::new_v5(&NAMESPACE, [role, serial].join("\0").as_bytes())
        .simple()
        .to_string();
    format!("naa.5001405{}", &hash[..9])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_identity_depends_on_all_that_makes_the_lun() {
        let folder = tempfile::tempdir().expect("a folder");
        let roots = Roots::under(folder.path());
        let one = serial(&roots, "disk0", "file//a");
        assert_eq!(one, serial(&roots, "disk0", "file//a"));
        assert_ne!(one, serial(&roots, "disk1", "file//a"));
        assert_ne!(one, serial(&roots, "disk0", "file//b"));
        std::fs::create_dir(folder.path().join("etc")).expect("a folder");
        std::fs::write(folder.path().join("etc/machine-id"), "0123\n").expect("written");
        assert_ne!(one, serial(&roots, "disk0", "file//a"), "another machine");
    }

    #[test]
    fn port_names_are_naa_5() {
        let target = naa("s", "target");
        assert_eq!(target.len(), "naa.".len() + 16);
        assert!(target.starts_with("naa.5001405"));
        assert_ne!(target, naa("s", "initiator"));
    }
}
