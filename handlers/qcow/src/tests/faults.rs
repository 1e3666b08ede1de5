//! Operations that fail: nobody else's data suffer, and the image stays whole.

use rustix::io::Errno;
use tcmu_handler::ErrorKind;
use tcmu_handler::testing::{Fault, OperationKind, UnorderedEngine};

use super::model::Request;
use super::variants::{self, SIZE};
use super::workload::{Workload, close, run};
use super::{open, qemu};

/// Lets the operations of a kind fail one after the other, each in a run of its own.
fn fail(name: &str, kind: OperationKind, errno: Errno, for_good: bool) {
    let (_folder, path) = variants::make(name);
    let start = std::fs::read(&path).unwrap();
    let before = qemu::contents(&path);
    let mut struck = 0;
    for nth in [1, 2, 3, 4, 5, 6, 8, 10, 13, 17, 23, 31, 47, 71, 97] {
        std::fs::write(&path, &start).unwrap();
        let engine = UnorderedEngine::repeatable(nth as u64);
        let image = open(&path, "", SIZE).unwrap();
        engine.set_fault(Some(Fault {
            kind,
            nth,
            errno: errno.raw_os_error(),
            for_good,
        }));
        let mut model = before.clone();
        let workload = Workload {
            seed: nth as u64,
            depth: 12,
            requests: 80,
            longest: 128 << 10,
        };
        let outcome = run(&engine, &image, &mut model, workload);
        let what = format!("{name}, {kind:?} {nth} fails with {errno:?}");
        let has_struck = engine.has_struck();
        if has_struck {
            struck += 1;
        } else {
            assert!(outcome.errors.is_empty(), "{what}: {:?}", outcome.errors);
        }
        for (_, error) in &outcome.errors {
            let kinds = match errno {
                Errno::NOSPC => &[ErrorKind::NoSpace, ErrorKind::Write][..],
                _ => &[ErrorKind::Read, ErrorKind::Write],
            };
            assert!(kinds.contains(&error.kind()), "{what}: {error:?}");
        }
        engine.set_fault(None);
        let closed = close(&engine, &image);
        if kind == OperationKind::Sync && has_struck && !for_good {
            // Whoever flushes after data were lost must be told so.
            assert!(
                closed.is_err(),
                "{what}: the image closed as if nothing was lost"
            );
        }
        drop(image);
        qemu::check(&path, true);
        let after = qemu::contents(&path);
        for (sector, (is, should)) in after.chunks(512).zip(model.chunks(512)).enumerate() {
            let at = sector as u64 * 512;
            let excused = outcome.errors.iter().any(|(placed, _)| {
                !matches!(placed.request, Request::Read | Request::Flush)
                    && (placed.offset..placed.offset + placed.len).contains(&at)
            });
            assert!(is == should || excused, "{what}: sector {sector} differs");
        }
    }
    assert!(struck > 0, "{name}: nothing failed");
}

const NAMES: [&str; 5] = [
    "v3 with data",
    "clusters of 512",
    "on raw, subclusters",
    "with two snapshots, small clusters",
    "compressed, zlib",
];

#[test]
fn a_read_fails() {
    for name in NAMES {
        fail(name, OperationKind::Read, Errno::IO, false);
    }
}

#[test]
fn a_write_fails() {
    for name in NAMES {
        fail(name, OperationKind::Write, Errno::IO, false);
    }
}

#[test]
fn the_file_system_is_full() {
    for name in NAMES {
        fail(name, OperationKind::Write, Errno::NOSPC, true);
    }
}

#[test]
fn a_flush_fails() {
    for name in NAMES {
        fail(name, OperationKind::Sync, Errno::IO, false);
    }
}

#[test]
fn a_hole_cannot_be_punched() {
    for name in NAMES {
        fail(name, OperationKind::Allocate, Errno::IO, false);
        fail(name, OperationKind::Allocate, Errno::OPNOTSUPP, true);
    }
}
