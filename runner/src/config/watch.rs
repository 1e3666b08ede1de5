//! Noticing that the configuration file changes.

use std::path::Path;

use anyhow::Context;
use notify::event::{AccessKind, AccessMode, EventKind, ModifyKind, RenameMode};
use notify::{Event, RecommendedWatcher, RecursiveMode, Watcher};

/// Calls `changed`, on another thread, after anything in the file's folder was saved: written to and
/// closed, or renamed into place. It is the folder that is watched, so the file may be replaced, be a
/// link that changes, or not exist yet.
pub(super) fn watch(
    file: &Path,
    changed: impl Fn() + Send + 'static,
) -> anyhow::Result<RecommendedWatcher> {
    let folder = match file.parent() {
        Some(folder) if folder != Path::new("") => folder,
        _ => Path::new("."),
    };
    let on_event = move |event: notify::Result<Event>| {
        if event.is_ok_and(|event| is_save(event.kind)) {
            changed();
        }
    };
    let mut watcher =
        notify::recommended_watcher(on_event).context("watching the configuration file")?;
    watcher
        .watch(folder, RecursiveMode::NonRecursive)
        .with_context(|| {
            format!(
                "watching the configuration file's folder {}",
                folder.display()
            )
        })?;
    Ok(watcher)
}

/// Whether a file is complete after this. That one was made or written to does not say so: its writer
/// may be in the middle.
fn is_save(kind: EventKind) -> bool {
    matches!(
        kind,
        EventKind::Access(AccessKind::Close(AccessMode::Write))
            | EventKind::Modify(ModifyKind::Name(RenameMode::To | RenameMode::Both))
    )
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::Write;
    use std::sync::mpsc::channel;
    use std::time::Duration;

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(30);

    #[test]
    fn every_way_to_save_is_noticed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("tcmu.conf");
        let (sender, saves) = channel();
        let _watcher = watch(&path, move || sender.send(()).unwrap_or(())).unwrap();

        // Into a file that did not exist: noticed when it is complete.
        let mut file = fs::File::create(&path).unwrap();
        file.write_all(b"reactors").unwrap();
        file.sync_all().unwrap();
        file.write_all(b" = 1").unwrap();
        drop(file);
        saves.recv_timeout(PATIENCE).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "reactors = 1");

        let settle = || while saves.recv_timeout(Duration::from_millis(200)).is_ok() {};
        settle();
        let elsewhere = tempfile::tempdir_in(dir.path()).unwrap();
        let other = elsewhere.path().join("new");
        fs::write(&other, "reactors = 2").unwrap();
        settle();
        fs::rename(&other, &path).unwrap();
        saves.recv_timeout(PATIENCE).unwrap();

        settle();
        fs::rename(&path, dir.path().join("tcmu.conf~")).unwrap();
        settle();
        fs::write(&path, "reactors = 3").unwrap();
        saves.recv_timeout(PATIENCE).unwrap();
    }

    #[test]
    fn reading_is_no_change() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("tcmu.conf");
        fs::write(&path, "").unwrap();
        let (sender, saves) = channel();
        let _watcher = watch(&path, move || sender.send(()).unwrap_or(())).unwrap();
        fs::read(&path).unwrap();
        fs::write(dir.path().join("marker"), "").unwrap();
        // The marker's event is the first, so there was none of the reading.
        saves.recv_timeout(PATIENCE).unwrap();
        assert!(saves.recv_timeout(Duration::from_millis(200)).is_err());
    }

    #[test]
    fn a_folder_that_is_not_there_is_an_error() {
        let error = watch(Path::new("/nonexistent/tcmu.conf"), || {}).unwrap_err();
        assert!(format!("{error:#}").contains("/nonexistent"), "{error:#}");
    }
}
