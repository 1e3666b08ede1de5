//! Finding TCMU's devices among the UIO devices of the system.
//!
//! target_core_user registers one UIO device per enabled backstore and describes the backstore
//! in that device's name (`tcmu_update_uio_info` in drivers/target/target_core_user.c).

use std::fmt;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use rustix::io::Errno;

use crate::attribute;
use crate::configfs::BackstoreDir;
use crate::module::Module;

/// What starts the name of every UIO device that belongs to target_core_user.
const PREFIX: &str = "tcm-user/";

/// The name of a TCMU device: which backstore it serves, and what its owner configured.
///
/// The kernel writes it as `tcm-user/<hba>/<name>[/<dev_config>]`, and users write `dev_config`
/// as `<subtype>/<config>`. Here `tcm-user/0/disk1/file//srv/disk1.img` has the subtype `file`
/// and the config `/srv/disk1.img`.
///
/// A device without `dev_config` has an empty subtype, and a `dev_config` without `/` is a
/// subtype with an empty config. Compare the subtype exactly: a prefix names another handler.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct DeviceName {
    /// The number N of the backstore's configfs folder `core/user_N`.
    pub hba: u32,
    /// The backstore's name: the last part of its configfs folder.
    pub name: String,
    /// Which handler serves the device: `dev_config` up to its first `/`.
    pub subtype: String,
    /// What the handler is told: `dev_config` after its first `/`.
    pub config: String,
}

/// Why a text is not the name of a TCMU device.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DeviceNameError {
    /// The UIO device belongs to another driver.
    #[error("{0:?} does not start with \"{PREFIX}\": not a TCMU device")]
    Foreign(String),
    /// The part after the prefix is not a decimal number.
    #[error("{0:?} is not an HBA number: expected \"{PREFIX}<hba>/<name>\"")]
    Hba(String),
    /// The backstore's name is missing, or could not be a folder in configfs.
    #[error("{0:?} is not a backstore's name: expected \"{PREFIX}<hba>/<name>\"")]
    Name(String),
}

impl DeviceName {
    /// What [`split_dev_config`] makes of the device's `dev_config`.
    pub fn subtype_and_config(&self) -> (&str, &str) {
        (&self.subtype, &self.config)
    }
}

impl FromStr for DeviceName {
    type Err = DeviceNameError;

    /// Parses a UIO device's name as sysfs and netlink give it; newlines at its end, which
    /// `echo` leaves in `attrib/dev_config`, are ignored.
    fn from_str(text: &str) -> Result<Self, DeviceNameError> {
        let text = text.trim_end_matches('\n');
        let rest = text
            .strip_prefix(PREFIX)
            .ok_or_else(|| DeviceNameError::Foreign(text.to_owned()))?;
        let (hba, rest) = rest.split_once('/').unwrap_or((rest, ""));
        let (name, dev_config) = rest.split_once('/').unwrap_or((rest, ""));
        // `u32::from_str` would take a plus sign, which the kernel never writes.
        let hba = Some(hba)
            .filter(|digits| digits.bytes().all(|digit| digit.is_ascii_digit()))
            .and_then(|digits| digits.parse().ok())
            .ok_or_else(|| DeviceNameError::Hba(hba.to_owned()))?;
        // The name becomes part of a path in configfs.
        if matches!(name, "" | "." | "..") || name.contains('\0') {
            return Err(DeviceNameError::Name(name.to_owned()));
        }
        let (subtype, config) = split_dev_config(dev_config);
        Ok(Self {
            hba,
            name: name.to_owned(),
            subtype: subtype.to_owned(),
            config: config.to_owned(),
        })
    }
}

impl fmt::Display for DeviceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{PREFIX}{}/{}", self.hba, self.name)?;
        match (self.subtype.as_str(), self.config.as_str()) {
            ("", "") => Ok(()),
            (subtype, "") => write!(f, "/{subtype}"),
            (subtype, config) => write!(f, "/{subtype}/{config}"),
        }
    }
}

/// Splits a `dev_config` into the subtype and the handler's own config.
///
/// Newlines at the end are dropped, as in [`DeviceName`].
pub fn split_dev_config(dev_config: &str) -> (&str, &str) {
    let dev_config = dev_config.trim_end_matches('\n');
    dev_config.split_once('/').unwrap_or((dev_config, ""))
}

/// A TCMU device that was there when it was looked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Device {
    /// The number N of `/dev/uioN`. The kernel gives it to another device later.
    pub minor: u32,
    /// The backstore behind the device.
    pub name: DeviceName,
    /// The device node, `/dev/uioN`.
    pub path: PathBuf,
    /// The device's folder below `/sys/class/uio`.
    pub(crate) sysfs: PathBuf,
}

impl Device {
    /// A number that no other device has had since the machine was started: that of the device's
    /// folder in sysfs, which counts up (`__kernfs_new_node` in fs/kernfs/dir.c).
    ///
    /// # Errors
    /// [`io::ErrorKind::NotFound`] where the device is gone.
    pub fn instance(&self) -> io::Result<u64> {
        let folder = fs::metadata(&self.sysfs);
        let folder = folder.map_err(|error| attribute::on_path("look at", &self.sysfs, error))?;
        Ok(folder.ino())
    }

    /// The length of the device's memory in bytes: mailbox, command ring and data area.
    ///
    /// mmap(2) takes exactly this length (`tcmu_mmap_prepare`, or `tcmu_mmap` in older kernels).
    ///
    /// # Errors
    /// [`io::ErrorKind::NotFound`] where the device is gone.
    pub(crate) fn mapping_len(&self) -> io::Result<usize> {
        let path = self.sysfs.join("maps/map0/size");
        let size = attribute::read_hex(&path).map_err(gone_as_not_found)?;
        usize::try_from(size)
            .ok()
            .filter(|size| *size != 0)
            .ok_or_else(|| attribute::unexpected(&path, &format!("{size:#x}")))
    }
}

/// The places where the kernel describes TCMU's devices.
#[derive(Clone, Debug)]
pub struct Sysfs {
    root: PathBuf,
}

impl Sysfs {
    /// This system: `/sys` and `/dev`.
    pub fn system() -> Self {
        Self::at("/")
    }

    /// A file tree that holds `sys` and `dev`, as a test or a container's root does.
    pub fn at(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// All TCMU devices, whatever their subtype, in the order of their minor numbers.
    ///
    /// UIO devices of other drivers are left out, and so is a device that vanishes meanwhile.
    ///
    /// # Errors
    /// Where sysfs cannot be read. Without the uio module there are no devices, which is none.
    pub fn scan(&self) -> io::Result<Vec<Device>> {
        let class = self.root.join("sys/class");
        let uio = class.join("uio");
        let entries = match fs::read_dir(&uio) {
            Err(error) if error.kind() == io::ErrorKind::NotFound && class.exists() => {
                return Ok(Vec::new());
            }
            entries => entries.map_err(|error| attribute::on_path("list", &uio, error))?,
        };
        let mut devices = Vec::new();
        for entry in entries {
            let entry = entry.map_err(|error| attribute::on_path("list", &uio, error))?;
            let Some(minor) = entry.file_name().to_str().and_then(minor_of) else {
                continue;
            };
            match self.device(minor) {
                Ok(device) => devices.push(device),
                Err(error)
                    if matches!(
                        error.kind(),
                        io::ErrorKind::NotFound | io::ErrorKind::InvalidInput
                    ) => {}
                Err(error) => return Err(error),
            }
        }
        devices.sort_by_key(|device| device.minor);
        Ok(devices)
    }

    /// The TCMU device with this minor number.
    ///
    /// # Errors
    /// [`io::ErrorKind::NotFound`] where there is no such UIO device (any more), and
    /// [`io::ErrorKind::InvalidInput`] with a [`DeviceNameError`] where it is no TCMU device.
    pub fn device(&self, minor: u32) -> io::Result<Device> {
        let sysfs = self.root.join(format!("sys/class/uio/uio{minor}"));
        let name = read_name(&sysfs)?;
        Ok(Device {
            minor,
            name,
            path: self.root.join(format!("dev/uio{minor}")),
            sysfs,
        })
    }

    /// The configfs folder of a device's backstore.
    pub fn backstore(&self, name: &DeviceName) -> BackstoreDir {
        BackstoreDir::at(self.root.join(format!(
            "sys/kernel/config/target/core/user_{}/{}",
            name.hba, name.name
        )))
    }

    /// LIO's folder in configfs.
    pub fn target(&self) -> PathBuf {
        self.root.join("sys/kernel/config/target")
    }

    /// The parameters of the kernel module target_core_user.
    pub fn module(&self) -> Module {
        Module::at(self.root.join("sys/module/target_core_user"))
    }
}

/// Reads the name that a UIO device has now.
pub(crate) fn read_name(sysfs: &Path) -> io::Result<DeviceName> {
    attribute::read(&sysfs.join("name"))
        .map_err(gone_as_not_found)?
        .parse()
        .map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))
}

/// The minor number in `uioN`.
fn minor_of(file_name: &str) -> Option<u32> {
    file_name.strip_prefix("uio")?.parse().ok()
}

/// A UIO device on its way out answers EINVAL or ENODEV to the reader of an attribute that was
/// still there to be opened (`name_show` in drivers/uio/uio.c).
fn gone_as_not_found(error: io::Error) -> io::Error {
    match attribute::error_number(&error).map(Errno::from_raw_os_error) {
        Some(Errno::INVAL | Errno::NODEV) => io::Error::new(io::ErrorKind::NotFound, error),
        _ => error,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::os::unix::fs::symlink;

    fn name(text: &str) -> DeviceName {
        text.parse().unwrap()
    }

    #[test]
    fn splits_a_full_name() {
        let parsed = name("tcm-user/7/disk 1/file//srv/a/b.img;x=1\n");
        assert_eq!(
            parsed,
            DeviceName {
                hba: 7,
                name: "disk 1".into(),
                subtype: "file".into(),
                config: "/srv/a/b.img;x=1".into(),
            }
        );
        assert_eq!(
            parsed.to_string(),
            "tcm-user/7/disk 1/file//srv/a/b.img;x=1"
        );
    }

    #[test]
    fn parts_of_dev_config_may_be_missing() {
        for (text, subtype, config) in [
            ("tcm-user/0/d", "", ""),
            ("tcm-user/0/d/", "", ""),
            ("tcm-user/0/d/null", "null", ""),
            ("tcm-user/0/d/null/", "null", ""),
            ("tcm-user/0/d//x", "", "x"),
        ] {
            let parsed = name(text);
            assert_eq!(
                (parsed.subtype.as_str(), parsed.config.as_str()),
                (subtype, config),
                "{text}"
            );
        }
    }

    #[test]
    fn says_what_is_wrong() {
        let error = |text: &str| text.parse::<DeviceName>().unwrap_err();
        assert!(matches!(error(""), DeviceNameError::Foreign(_)));
        assert!(matches!(error("tcm-user"), DeviceNameError::Foreign(_)));
        assert!(matches!(error("igb_uio/0/d"), DeviceNameError::Foreign(_)));
        for text in [
            "tcm-user/",
            "tcm-user//d",
            "tcm-user/+1/d",
            "tcm-user/4294967296/d",
            "tcm-user/x/d",
        ] {
            assert!(matches!(error(text), DeviceNameError::Hba(_)), "{text}");
        }
        for text in [
            "tcm-user/0",
            "tcm-user/0/",
            "tcm-user/0//file/x",
            "tcm-user/0/../file/x",
            "tcm-user/0/./file/x",
            "tcm-user/0/a\0b/file/x",
        ] {
            assert!(matches!(error(text), DeviceNameError::Name(_)), "{text}");
        }
        assert!(error("tcm-user/x/d").to_string().contains("\"x\""));
    }

    proptest! {
        #[test]
        fn parsing_never_panics(text in any::<String>()) {
            let _ = text.parse::<DeviceName>();
            let _ = format!("{PREFIX}{text}").parse::<DeviceName>();
        }

        #[test]
        fn what_is_shown_parses_back(
            hba: u32,
            device in "[^/\0\n]{3,40}",
            subtype in "[^/\n]{0,10}",
            config in "[^\n]{0,40}",
        ) {
            let original = DeviceName { hba, name: device, subtype, config };
            prop_assert_eq!(name(&original.to_string()), original);
        }
    }

    /// A file tree with the UIO devices `(minor, name)`.
    fn tree(devices: &[(u32, &str)]) -> (tempfile::TempDir, Sysfs) {
        let root = tempfile::tempdir().unwrap();
        let uio = root.path().join("sys/class/uio");
        fs::create_dir_all(&uio).unwrap();
        for (minor, name) in devices {
            let device = uio.join(format!("uio{minor}"));
            fs::create_dir_all(device.join("maps/map0")).unwrap();
            fs::write(device.join("name"), format!("{name}\n")).unwrap();
            fs::write(device.join("maps/map0/size"), "0x40800000\n").unwrap();
        }
        let sysfs = Sysfs::at(root.path());
        (root, sysfs)
    }

    #[test]
    fn scans_only_tcmu_devices_in_order() {
        let (root, sysfs) = tree(&[
            (10, "tcm-user/0/b/file//b"),
            (2, "tcm-user/0/a/file//a"),
            (3, "uio_pdrv_genirq"),
            (4, "tcm-user/bad"),
        ]);
        // What a scan meets when a device goes away between listing and reading.
        symlink("nowhere", root.path().join("sys/class/uio/uio5")).unwrap();
        fs::create_dir(root.path().join("sys/class/uio/uio6")).unwrap();
        fs::create_dir(root.path().join("sys/class/uio/other")).unwrap();
        let found = sysfs.scan().unwrap();
        let minors: Vec<_> = found.iter().map(|device| device.minor).collect();
        assert_eq!(minors, [2, 10]);
        assert_eq!(found[0].name, name("tcm-user/0/a/file//a"));
        assert_eq!(found[0].path, root.path().join("dev/uio2"));
        assert_eq!(found[0].mapping_len().unwrap(), 0x4080_0000);
    }

    #[test]
    fn no_uio_class_means_no_devices_but_no_sysfs_is_an_error() {
        let root = tempfile::tempdir().unwrap();
        let sysfs = Sysfs::at(root.path());
        assert_eq!(sysfs.scan().unwrap_err().kind(), io::ErrorKind::NotFound);
        fs::create_dir_all(root.path().join("sys/class")).unwrap();
        assert_eq!(sysfs.scan().unwrap(), []);
    }

    #[test]
    fn tells_a_missing_device_from_a_foreign_one() {
        let (_root, sysfs) = tree(&[(3, "uio_pdrv_genirq")]);
        assert_eq!(sysfs.device(1).unwrap_err().kind(), io::ErrorKind::NotFound);
        assert_eq!(
            sysfs.device(3).unwrap_err().kind(),
            io::ErrorKind::InvalidInput
        );
    }

    #[test]
    fn a_memory_of_no_length_is_refused() {
        let (root, sysfs) = tree(&[(0, "tcm-user/0/a/null/")]);
        let device = sysfs.device(0).unwrap();
        let size = root.path().join("sys/class/uio/uio0/maps/map0/size");
        fs::write(&size, "0x0000000000000000\n").unwrap();
        assert_eq!(
            device.mapping_len().unwrap_err().kind(),
            io::ErrorKind::InvalidData
        );
        fs::remove_file(&size).unwrap();
        assert_eq!(
            device.mapping_len().unwrap_err().kind(),
            io::ErrorKind::NotFound
        );
    }

    #[test]
    fn finds_the_backstore_and_the_module() {
        let sysfs = Sysfs::system();
        assert_eq!(
            sysfs.backstore(&name("tcm-user/12/d/file//x")).path(),
            Path::new("/sys/kernel/config/target/core/user_12/d")
        );
    }
}
