//! Internal snapshots: listed, shown, and never changed.

use tcmu_handler::testing::UnorderedEngine;

use super::variants::{self, SIZE};
use super::workload::{Workload, close, read_all, run};
use super::{open, qemu};

#[test]
fn they_stay_as_they_are() {
    for name in [
        "with two snapshots, small clusters",
        "with a snapshot, subclusters, on raw",
        "with a snapshot, compressed",
        "with a snapshot, v2",
    ] {
        let (folder, path) = variants::make(name);
        let engine = UnorderedEngine::repeatable(9);
        let show = |which: &str| {
            let image = open(&path, &format!(";snapshot={which}"), SIZE).unwrap();
            read_all(&engine, &image).unwrap()
        };
        let before = show("one");
        let mut model = qemu::contents(&path);
        let image = open(&path, "", SIZE).unwrap();
        assert_eq!(image.snapshots()[0].name, "one");
        assert_eq!(image.snapshots()[0].size, SIZE);
        let workload = Workload {
            seed: 4,
            depth: 16,
            requests: 200,
            longest: 256 << 10,
        };
        run(&engine, &image, &mut model, workload);
        close(&engine, &image).unwrap();
        drop(image);
        assert!(show("one") == before, "{name}");
        assert!(show("1") == before, "{name}: by its id");
        qemu::check(&path, false);
        qemu::img_in(folder.path(), &["snapshot", "-a", "one", "a.qcow2"]);
        assert!(
            qemu::contents(&path) == before,
            "{name}: qemu goes back to other bytes"
        );
        qemu::img_in(folder.path(), &["snapshot", "-d", "one", "a.qcow2"]);
        qemu::check(&path, false);
    }
}

#[test]
fn a_snapshot_that_is_not_there() {
    let (_folder, path) = variants::make("with a snapshot");
    let error = open(&path, ";snapshot=?", SIZE).map(drop).unwrap_err();
    let words = format!("there are one (id 1, {SIZE} bytes)");
    assert!(error.to_string().contains(&words), "{error}");
}
