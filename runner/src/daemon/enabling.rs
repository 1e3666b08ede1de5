//! Devices that are found before they are enabled, and that nobody announces.
//!
//! Such a device may go at any time: the waits for a predecessor's answer were ended, or there was no
//! room for the announcement. Then the kernel (as of Linux 7.2) frees its memory although it is
//! mapped, and panics when that is touched (`tcmu_configure_device`, `tcmu_vma_fault` in
//! drivers/target/target_core_user.c). So it is left alone until it is enabled. One that is announced
//! stays for as long as it is not answered.

use std::thread;
use std::time::{Duration, Instant};

use tcmu::discovery::Sysfs;
use tcmu_handler::{Error, ErrorKind};

use super::device::Unwanted;
use crate::reactor::LunId;

/// How long the kernel may take to enable a device that waits for nobody, and how often to look.
const LIMIT: Duration = Duration::from_secs(10);
const POLL: Duration = Duration::from_millis(1);

/// Waits until a device is enabled; fails when it goes, or nobody wants it any more. May wait for a
/// lock of configfs.
pub(super) fn await_enabled(sysfs: &Sysfs, id: LunId, unwanted: &Unwanted) -> Result<(), Error> {
    let looking = |error| Error::os("looking at the device", error);
    let device = sysfs.device(id).map_err(looking)?;
    let instance = device.instance().map_err(looking)?;
    let backstore = sysfs.backstore(&device.name);
    let begin = Instant::now();
    while !backstore.is_enabled().map_err(looking)? {
        let gone = |why| Err(Error::new(ErrorKind::NotFound, why));
        if device.instance().map_err(looking)? != instance {
            return gone("it was not enabled, and went");
        }
        if unwanted.is_set() {
            return gone("nobody wants it any more");
        }
        if begin.elapsed() >= LIMIT {
            let why = "it exists, but is not enabled: delete it";
            return Err(Error::new(ErrorKind::Busy, why));
        }
        thread::sleep(POLL);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::PathBuf;

    use super::*;

    /// A tree with the device 3, and the file that says whether it is enabled.
    fn tree(enabled: &str) -> (tempfile::TempDir, Sysfs, PathBuf) {
        let root = tempfile::tempdir().unwrap();
        let uio = root.path().join("sys/class/uio/uio3");
        fs::create_dir_all(&uio).unwrap();
        fs::write(uio.join("name"), "tcm-user/1/disk/null/x\n").unwrap();
        let sysfs = Sysfs::at(root.path());
        let device = sysfs.device(3).unwrap();
        let folder = sysfs.backstore(&device.name).path().to_owned();
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join("enable"), enabled).unwrap();
        (root, sysfs, folder.join("enable"))
    }

    /// What became of waiting in another thread, while `change` happened some time later.
    fn meanwhile(sysfs: &Sysfs, unwanted: &Unwanted, change: impl FnOnce()) -> Result<(), Error> {
        thread::scope(|scope| {
            let waiting = scope.spawn(|| await_enabled(sysfs, 3, unwanted));
            thread::sleep(20 * POLL);
            assert!(!waiting.is_finished());
            change();
            waiting.join().unwrap()
        })
    }

    #[test]
    fn what_is_enabled_is_not_waited_for() {
        let (_root, sysfs, _) = tree("1\n");
        await_enabled(&sysfs, 3, &Unwanted::default()).unwrap();
    }

    #[test]
    fn a_device_is_waited_for_until_it_is_enabled() {
        let (root, sysfs, enable) = tree("0\n");
        // Replaced at once: a file that is being written is empty for a while.
        let enabled = root.path().join("enabled");
        fs::write(&enabled, "1\n").unwrap();
        let change = || fs::rename(&enabled, &enable).unwrap();
        meanwhile(&sysfs, &Unwanted::default(), change).unwrap();
    }

    #[test]
    fn a_device_that_goes_is_not_waited_for() {
        let (root, sysfs, _) = tree("0\n");
        let went = meanwhile(&sysfs, &Unwanted::default(), || {
            fs::remove_dir_all(root.path().join("sys/class/uio/uio3")).unwrap();
        });
        assert_eq!(went.unwrap_err().kind(), ErrorKind::NotFound);
    }

    #[test]
    fn another_device_of_the_number_is_not_waited_for() {
        let (root, sysfs, _) = tree("0\n");
        let uio = root.path().join("sys/class/uio/uio3");
        let other = root.path().join("other");
        fs::create_dir(&other).unwrap();
        let went = meanwhile(&sysfs, &Unwanted::default(), || {
            fs::remove_dir_all(&uio).unwrap();
            fs::rename(&other, &uio).unwrap();
        });
        assert_eq!(went.unwrap_err().kind(), ErrorKind::NotFound);
    }

    #[test]
    fn what_nobody_wants_any_more_is_not_waited_for() {
        let (_root, sysfs, _) = tree("0\n");
        let unwanted = Unwanted::default();
        let went = meanwhile(&sysfs, &unwanted, || unwanted.set());
        assert_eq!(went.unwrap_err().kind(), ErrorKind::NotFound);
    }
}
