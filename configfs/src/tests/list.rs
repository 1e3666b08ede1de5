//! Listing and showing.

use std::fs;

use crate::fake::Machine;
use crate::{BackstoreSpec, Error, Roots, State, Tree};

fn spec(name: &str) -> BackstoreSpec {
    BackstoreSpec::new(name, "qcow", "/x.qcow2").size(1 << 20)
}

#[test]
fn a_machine_without_lio_has_no_backstores() {
    let folder = tempfile::tempdir().expect("a folder");
    assert!(
        Tree::at(Roots::under(folder.path()))
            .list()
            .expect("listed")
            .is_empty()
    );
}

#[test]
fn backstores_are_listed_by_hba_and_name() {
    let machine = Machine::new();
    let tree = machine.tree();
    for (name, hba) in [("c", 10), ("b", 2), ("a", 2)] {
        tree.create(&spec(name).hba(hba)).expect("created");
    }
    fs::create_dir_all(machine.target("core/fileio_0/other")).expect("another kind");
    fs::create_dir_all(machine.target("core/alua/lu_gps")).expect("no HBA");
    let found = tree.list().expect("listed");
    let names: Vec<_> = found.iter().map(|b| (b.hba, b.name.as_str())).collect();
    assert_eq!(names, [(2, "a"), (2, "b"), (10, "c")]);
    assert!(
        found
            .iter()
            .all(|b| b.state == State::Deactivated && b.handler == "qcow")
    );
}

#[test]
fn a_uio_device_belongs_to_the_whole_name() {
    let machine = Machine::new();
    let tree = machine.tree();
    tree.create(&spec("d1")).expect("created");
    machine.write("sys/class/uio/uio0/name", "tcm-user/0/d10/qcow//x.qcow2\n");
    assert_eq!(tree.show("d1", None).expect("shown").backstore.uio, None);
    machine.write("sys/class/uio/uio1/name", "tcm-user/0/d1/qcow//x.qcow2\n");
    let shown = tree.show("d1", None).expect("shown");
    assert_eq!(shown.backstore.uio, Some(machine.roots.dev.join("uio1")));
}

#[test]
fn show_has_attributes_and_statistics() {
    let machine = Machine::new();
    machine.tree().create(&spec("d1")).expect("created");
    let shown = machine.tree().show("d1", None).expect("shown");
    assert_eq!(shown.attributes["dev_config"], "qcow//x.qcow2");
    assert_eq!(shown.statistics["scsi_lu/num_cmds"], "0");
}

#[test]
fn an_ambiguous_name_needs_its_hba() {
    let machine = Machine::new();
    let tree = machine.tree();
    tree.create(&spec("a").hba(1)).expect("created");
    tree.create(&spec("b").hba(5)).expect("created");
    fs::rename(
        machine.target("core/user_5/b"),
        machine.target("core/user_5/a"),
    )
    .expect("renamed");
    let error = tree.show("a", None).expect_err("two of them");
    assert!(
        matches!(&error, Error::Ambiguous { hbas, .. } if hbas == &[1, 5]),
        "{error}"
    );
    assert_eq!(tree.show("a", Some(5)).expect("shown").backstore.hba, 5);
    assert!(matches!(tree.show("a", Some(2)), Err(Error::NotFound(_))));
}

#[test]
fn the_json_has_the_documented_fields() {
    let machine = Machine::new();
    let tree = machine.tree();
    let spec = spec("a").loopback().serial("S");
    let value = serde_json::to_value(tree.create(&spec).expect("created")).expect("JSON");
    let disk = machine.roots.dev.join("sda");
    assert_eq!(
        value,
        serde_json::json!({
            "name": "a", "hba": 0, "handler": "qcow", "config": "/x.qcow2", "size": 1_048_576,
            "block_size": 512, "max_sectors": 8192, "state": "activated", "serial": "S",
            "uio": null,
            "exports": [{
                "fabric": "loopback", "target": value["exports"][0]["target"], "tpg": 1, "lun": 0,
                "portals": [], "initiators": [], "scsi_address": "2:0:1:0", "block_device": disk,
            }],
        })
    );
}
