//! A user backstore's folder in LIO's configfs, as its server uses it.
//!
//! The attributes are those of drivers/target/target_core_user.c and target_core_configfs.c.
//! They are read when asked for, since their owner may change them at any time; tools write
//! the unit serial number only after the device was enabled.
//!
//! # Where reading waits
//! configfs holds locks while the kernel waits for a netlink answer (fs/configfs/dir.c, file.c),
//! and the wait cannot be interrupted. A server that must answer and waits for such a lock
//! would never go on:
//!
//! - Until [`Removed`](crate::netlink::Event::Removed) is answered, rmdir(2) has the parent
//!   folder `core/user_N` locked. Answer that event without touching the backstore's folder.
//! - If somebody runs rmdir(2) on a backstore that is just being enabled, its attributes cannot
//!   be read before [`Added`](crate::netlink::Event::Added) is answered. So read them on another
//!   thread than the one that answers, and refuse the event if that takes too long.
//!
//! A server that is killed while one of its threads waits like that, or for its own answer to a
//! change that it made ([`BackstoreDir::set_write_cache`]), does not end: its netlink socket stays
//! open, and the kernel goes on waiting. Another process has to end the wait, by
//! [`Module::reset_netlink`](crate::module::Module::reset_netlink).

use std::io;
use std::path::{Path, PathBuf};

use crate::attribute;

mod alua;

pub use alua::{TargetPort, TargetPortGroup};

/// The folder `/sys/kernel/config/target/core/user_<hba>/<name>`.
///
/// All methods fail with [`io::ErrorKind::NotFound`] where the backstore is not there (any
/// more), and with [`io::ErrorKind::InvalidData`] where an attribute is not as documented.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BackstoreDir {
    path: PathBuf,
}

/// What becomes of the commands that are in flight when a ring is reset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ResetVerdict {
    /// BUSY: the commands were not started or can be repeated, and the initiator shall do so.
    Busy,
    /// CHECK CONDITION: the commands may have had an effect and must not be repeated blindly.
    CheckCondition,
}

impl BackstoreDir {
    /// The backstore whose folder is `path`.
    pub fn at(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into() }
    }

    /// The backstore's folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether the device is enabled. It is not yet while the kernel waits for the answer to
    /// [`Added`](crate::netlink::Event::Added).
    pub fn is_enabled(&self) -> io::Result<bool> {
        self.flag("enable")
    }

    /// The device's size in bytes (`dev_size`).
    pub fn size(&self) -> io::Result<u64> {
        self.value("attrib/dev_size")
    }

    /// The size of a logical block in bytes.
    ///
    /// This is `hw_block_size`: a TCMU device has no `block_size` attribute, since the kernel
    /// passes its commands through and only copies this value.
    pub fn block_size(&self) -> io::Result<u32> {
        self.value("attrib/hw_block_size")
    }

    /// The longest transfer in logical blocks that the owner configured.
    ///
    /// The kernel rounds it down to whole pages once the device is enabled.
    pub fn hw_max_sectors(&self) -> io::Result<u32> {
        self.value("attrib/hw_max_sectors")
    }

    /// Whether the device shall report a volatile write cache (`emulate_write_cache`).
    pub fn write_cache(&self) -> io::Result<bool> {
        self.flag("attrib/emulate_write_cache")
    }

    /// Says whether the device reports a volatile write cache, after that was changed by an
    /// initiator.
    ///
    /// The kernel asks the server first, by
    /// [`Reconfigured`](crate::netlink::Event::Reconfigured): this blocks until whoever hears the
    /// kernel's events has answered, and must not run on the same thread.
    ///
    /// # Errors
    /// What the server answered, or [`io::ErrorKind::ResourceBusy`] while another such question about
    /// the device is open.
    pub fn set_write_cache(&self, enabled: bool) -> io::Result<()> {
        self.write(
            "attrib/emulate_write_cache",
            if enabled { "1" } else { "0" },
        )
    }

    /// Has the kernel say by [`TaskManagement`](crate::ring::Entry::TaskManagement) entries of the
    /// ring which commands were aborted (`tmr_notification`).
    ///
    /// # Errors
    /// [`io::ErrorKind::NotFound`] also before Linux 5.9, which cannot.
    pub fn notify_task_management(&self) -> io::Result<()> {
        self.write("attrib/tmr_notification", "1")
    }

    /// Whether the target core answers reservations (`emulate_pr` and `pgr_support`).
    pub fn serves_reservations(&self) -> io::Result<bool> {
        Ok(self.flag_or("attrib/emulate_pr", true)? && self.flag_or("attrib/pgr_support", true)?)
    }

    /// The whole config string, `<subtype>/<config>`.
    pub fn dev_config(&self) -> io::Result<String> {
        self.text("attrib/dev_config")
    }

    /// The unit serial number (SPC, VPD page 80h), or `None` while none was set.
    pub fn unit_serial(&self) -> io::Result<Option<String>> {
        const LABEL: &str = "T10 VPD Unit Serial Number:";
        let path = self.path.join("wwn/vpd_unit_serial");
        let text = attribute::read(&path)?;
        let serial = text
            .strip_prefix(LABEL)
            .ok_or_else(|| attribute::unexpected(&path, &text))?;
        Ok(some_text(serial))
    }

    /// The T10 vendor identification of the standard INQUIRY data, or `None` where it is empty.
    pub fn vendor(&self) -> io::Result<Option<String>> {
        self.text("wwn/vendor_id").map(|text| some_text(&text))
    }

    /// The product identification of the standard INQUIRY data, or `None` where it is empty.
    pub fn product(&self) -> io::Result<Option<String>> {
        self.text("wwn/product_id").map(|text| some_text(&text))
    }

    /// The product revision level of the standard INQUIRY data, or `None` where it is empty.
    pub fn revision(&self) -> io::Result<Option<String>> {
        self.text("wwn/revision").map(|text| some_text(&text))
    }

    /// Blocks or unblocks the device: while it is blocked, the kernel answers new commands with
    /// BUSY. Blocking also completes everything that the server has published in the ring.
    ///
    /// # Errors
    /// The kernel refuses with [`io::ErrorKind::InvalidInput`] while the device is not enabled.
    pub fn set_blocked(&self, blocked: bool) -> io::Result<()> {
        self.write("action/block_dev", if blocked { "1" } else { "0" })
    }

    /// Empties the ring: head and tail become 0, and every command in flight is answered with
    /// `verdict`. Block the device first and forget all commands: none may be completed later.
    ///
    /// # Errors
    /// The kernel refuses with [`io::ErrorKind::InvalidInput`] while the device is not enabled.
    pub fn reset_ring(&self, verdict: ResetVerdict) -> io::Result<()> {
        let value = match verdict {
            ResetVerdict::Busy => "1",
            ResetVerdict::CheckCondition => "2",
        };
        self.write("action/reset_ring", value)
    }

    /// Tells the kernel the device's size in bytes after the server found it changed.
    ///
    /// It goes through `control`, which raises no netlink event: through `attrib/dev_size` the
    /// kernel would wait for an answer from the very caller of this function.
    pub fn set_size(&self, bytes: u64) -> io::Result<()> {
        self.write("control", &format!("dev_size={bytes}"))
    }

    /// Names another image: the whole config string, `<subtype>/<config>`. The UIO device's name
    /// follows.
    ///
    /// The kernel asks the server first, by
    /// [`Reconfigured`](crate::netlink::Event::Reconfigured): this blocks until whoever hears the
    /// kernel's events has answered, and must not run on the same thread.
    ///
    /// # Errors
    /// What the server answered, [`io::ErrorKind::InvalidInput`] for more than 255 bytes, or
    /// [`io::ErrorKind::ResourceBusy`] while another such question about the device is open.
    pub fn set_dev_config(&self, config: &str) -> io::Result<()> {
        // `control` takes a comma for the end.
        self.write("attrib/dev_config", config)
    }

    fn text(&self, attribute: &str) -> io::Result<String> {
        attribute::read(&self.path.join(attribute))
    }

    fn value<T: std::str::FromStr>(&self, attribute: &str) -> io::Result<T> {
        attribute::read_value(&self.path.join(attribute))
    }

    /// The kernel shows a flag as a number, and any but 0 is set.
    fn flag(&self, attribute: &str) -> io::Result<bool> {
        self.value::<i64>(attribute).map(|value| value != 0)
    }

    /// As [`flag`](Self::flag), with a value for kernels that have no such attribute.
    fn flag_or(&self, attribute: &str, absent: bool) -> io::Result<bool> {
        match self.flag(attribute) {
            Err(error) if error.kind() == io::ErrorKind::NotFound && self.path.exists() => {
                Ok(absent)
            }
            result => result,
        }
    }

    fn write(&self, attribute: &str, value: &str) -> io::Result<()> {
        attribute::write(&self.path.join(attribute), value)
    }
}

/// INQUIRY data is padded with spaces, which are no part of the text.
fn some_text(text: &str) -> Option<String> {
    let text = text.trim();
    (!text.is_empty()).then(|| text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    /// A backstore's folder with the kernel's own way to write each attribute.
    fn backstore() -> (tempfile::TempDir, BackstoreDir) {
        let root = tempfile::tempdir().unwrap();
        for (attribute, content) in [
            ("enable", "1\n"),
            ("control", ""),
            ("attrib/dev_size", "1073741824\n"),
            ("attrib/hw_block_size", "4096\n"),
            ("attrib/hw_max_sectors", "128\n"),
            ("attrib/emulate_write_cache", "1\n"),
            ("attrib/tmr_notification", "0\n"),
            ("attrib/emulate_pr", "1\n"),
            ("attrib/pgr_support", "0\n"),
            ("attrib/dev_config", "file//srv/a\n\n"),
            ("wwn/vpd_unit_serial", "T10 VPD Unit Serial Number: \n"),
            ("wwn/vendor_id", "LIO-ORG \n"),
            ("wwn/product_id", "\n"),
            ("wwn/revision", "0002\n"),
            ("action/block_dev", "unblocked\n"),
            ("action/reset_ring", ""),
        ] {
            let path = root.path().join(attribute);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, content).unwrap();
        }
        let backstore = BackstoreDir::at(root.path());
        (root, backstore)
    }

    fn written(backstore: &BackstoreDir, attribute: &str) -> String {
        fs::read_to_string(backstore.path().join(attribute)).unwrap()
    }

    #[test]
    fn reads_what_the_kernel_shows() {
        let (_root, backstore) = backstore();
        assert!(backstore.is_enabled().unwrap());
        assert_eq!(backstore.size().unwrap(), 1 << 30);
        assert_eq!(backstore.block_size().unwrap(), 4096);
        assert_eq!(backstore.hw_max_sectors().unwrap(), 128);
        assert!(backstore.write_cache().unwrap());
        assert_eq!(backstore.dev_config().unwrap(), "file//srv/a");
        assert_eq!(backstore.vendor().unwrap().as_deref(), Some("LIO-ORG"));
        assert_eq!(backstore.product().unwrap(), None);
        assert_eq!(backstore.revision().unwrap().as_deref(), Some("0002"));
    }

    #[test]
    fn the_serial_number_appears_once_it_is_written() {
        let (root, backstore) = backstore();
        assert_eq!(backstore.unit_serial().unwrap(), None);
        let path = root.path().join("wwn/vpd_unit_serial");
        fs::write(&path, "T10 VPD Unit Serial Number: 3f-a b\n").unwrap();
        assert_eq!(backstore.unit_serial().unwrap().as_deref(), Some("3f-a b"));
        fs::write(&path, "3f\n").unwrap();
        assert_eq!(
            backstore.unit_serial().unwrap_err().kind(),
            io::ErrorKind::InvalidData
        );
    }

    #[test]
    fn writes_what_the_kernel_parses() {
        let (_root, backstore) = backstore();
        backstore.set_size(u64::MAX).unwrap();
        assert_eq!(
            written(&backstore, "control"),
            "dev_size=18446744073709551615"
        );
        backstore.reset_ring(ResetVerdict::Busy).unwrap();
        assert!(written(&backstore, "action/reset_ring").starts_with('1'));
        backstore.reset_ring(ResetVerdict::CheckCondition).unwrap();
        assert!(written(&backstore, "action/reset_ring").starts_with('2'));
        backstore.set_write_cache(false).unwrap();
        assert!(!backstore.write_cache().unwrap());
        backstore.set_write_cache(true).unwrap();
        assert!(backstore.write_cache().unwrap());
        backstore.set_dev_config("file//srv/b,c").unwrap();
        assert!(written(&backstore, "attrib/dev_config").starts_with("file//srv/b,c"));
        backstore.notify_task_management().unwrap();
        assert!(written(&backstore, "attrib/tmr_notification").starts_with('1'));
        backstore.set_blocked(true).unwrap();
        assert!(written(&backstore, "action/block_dev").starts_with('1'));
        backstore.set_blocked(false).unwrap();
        assert!(written(&backstore, "action/block_dev").starts_with('0'));
    }

    #[test]
    fn reservations_need_both_attributes() {
        let (root, backstore) = backstore();
        assert!(!backstore.serves_reservations().unwrap());
        let attribute = root.path().join("attrib/pgr_support");
        fs::write(&attribute, "1\n").unwrap();
        assert!(backstore.serves_reservations().unwrap());
        // Older kernels have no such switch.
        fs::remove_file(&attribute).unwrap();
        assert!(backstore.serves_reservations().unwrap());
        fs::write(root.path().join("attrib/emulate_pr"), "0\n").unwrap();
        assert!(!backstore.serves_reservations().unwrap());
        drop(root);
        assert!(backstore.serves_reservations().is_err());
    }

    #[test]
    fn a_backstore_that_is_gone_is_not_found() {
        let (root, backstore) = backstore();
        drop(root);
        assert_eq!(
            backstore.size().unwrap_err().kind(),
            io::ErrorKind::NotFound
        );
        assert_eq!(
            backstore.set_blocked(true).unwrap_err().kind(),
            io::ErrorKind::NotFound
        );
    }
}
