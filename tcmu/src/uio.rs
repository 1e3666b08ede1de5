//! A TCMU device's UIO node: the way to the ring's memory, and its doorbell.
//!
//! The rules are those of drivers/uio/uio.c: reads and writes move exactly four bytes, and
//! mmap(2) must name the exact length of the device's memory.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use crate::attribute::on_path;
use crate::discovery::{Device, DeviceName, read_name};
use crate::doorbell::Doorbell;
use crate::mapping::Mapping;

/// An open UIO node of a TCMU device. While it lives, no other process can open the device.
///
/// Closing it gives back the data of all commands that were completed with KEEP_BUF.
#[derive(Debug)]
pub struct Uio {
    fd: OwnedFd,
    path: PathBuf,
    name: DeviceName,
    mapping_len: usize,
}

impl Uio {
    /// Opens a device that was found by [`Sysfs`](crate::discovery::Sysfs).
    ///
    /// # Errors
    /// - [`io::ErrorKind::ResourceBusy`]: another process serves the device.
    /// - [`io::ErrorKind::NotFound`]: the device is gone, even where another backstore's device
    ///   has its minor number by now.
    /// - [`io::ErrorKind::PermissionDenied`]: UIO nodes belong to root.
    pub fn open(device: &Device) -> io::Result<Self> {
        let flags = OFlags::RDWR | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let fd = rustix::fs::open(&device.path, flags, Mode::empty())
            .map_err(|errno| open_error(&device.path, errno))?;
        // The device may have gone, and its minor number to another one, since it was found.
        // From here on the node is held and the number cannot change its meaning unnoticed:
        // if this device goes away, `clear` and `kick` fail.
        let name = read_name(&device.sysfs)?;
        if (name.hba, &name.name) != (device.name.hba, &device.name.name) {
            return Err(io::Error::new(
                io::ErrorKind::NotFound,
                format!(
                    "{} is now {name}, no longer {}",
                    device.path.display(),
                    device.name
                ),
            ));
        }
        Ok(Self {
            fd,
            path: device.path.clone(),
            name,
            mapping_len: device.mapping_len()?,
        })
    }

    /// The device node, `/dev/uioN`.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The name that the device had when it was opened.
    pub fn name(&self) -> &DeviceName {
        &self.name
    }

    /// Maps the device's memory: mailbox, command ring and data area.
    ///
    /// # Errors
    /// [`io::ErrorKind::NotFound`] where the device is gone, and what mmap(2) answers.
    pub fn map(&self) -> io::Result<Mapping> {
        Mapping::map(&self.fd, self.mapping_len).map_err(|error| {
            // The length is the kernel's own, so EINVAL only says that nothing is there.
            match error.raw_os_error().map(Errno::from_raw_os_error) {
                Some(Errno::INVAL | Errno::NODEV) => gone(&self.path, error),
                _ => on_path("map", &self.path, error),
            }
        })
    }
}

fn gone(path: &Path, error: impl std::fmt::Display) -> io::Error {
    io::Error::new(
        io::ErrorKind::NotFound,
        format!("{} is gone: {error}", path.display()),
    )
}

/// Says what to do where open(2) alone would only name an error number.
fn open_error(path: &Path, errno: Errno) -> io::Error {
    match errno {
        Errno::BUSY => io::Error::new(
            io::ErrorKind::ResourceBusy,
            format!(
                "{} is held by another process: only one can serve a device",
                path.display()
            ),
        ),
        // What `uio_open` and the character device layer answer while a device goes away.
        Errno::NODEV | Errno::NXIO | Errno::INVAL | Errno::NOENT => gone(path, errno),
        errno => on_path("open", path, errno.into()),
    }
}

impl AsFd for Uio {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Doorbell for Uio {
    fn poll_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    fn clear(&self) -> io::Result<()> {
        let mut event_count = [0; 4];
        match rustix::io::retry_on_intr(|| rustix::io::read(&self.fd, &mut event_count)) {
            Ok(_) | Err(Errno::AGAIN) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }

    fn kick(&self) -> io::Result<()> {
        match rustix::io::retry_on_intr(|| rustix::io::write(&self.fd, &1i32.to_ne_bytes())) {
            Ok(_) => Ok(()),
            // `uio_write` has two answers for a device that was unregistered.
            Err(Errno::INVAL) => Err(Errno::IO.into()),
            Err(errno) => Err(errno.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::discovery::Sysfs;
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    use std::fs;

    /// A file tree with one device whose node is a FIFO: like UIO, it blocks no reader that
    /// asks for O_NONBLOCK, and it can be read and written in one process.
    fn device() -> (tempfile::TempDir, Device) {
        let root = tempfile::tempdir().unwrap();
        let uio0 = root.path().join("sys/class/uio/uio0");
        fs::create_dir_all(uio0.join("maps/map0")).unwrap();
        fs::write(uio0.join("name"), "tcm-user/0/disk/file//x\n").unwrap();
        fs::write(uio0.join("maps/map0/size"), "0x0000000000900000\n").unwrap();
        fs::create_dir(root.path().join("dev")).unwrap();
        rustix::fs::mknodat(
            rustix::fs::CWD,
            root.path().join("dev/uio0"),
            rustix::fs::FileType::Fifo,
            Mode::RUSR | Mode::WUSR,
            0,
        )
        .unwrap();
        let device = Sysfs::at(root.path()).device(0).unwrap();
        (root, device)
    }

    fn readable(uio: &Uio) -> bool {
        let poll_fd = uio.poll_fd();
        let mut fds = [PollFd::new(&poll_fd, PollFlags::IN)];
        poll(&mut fds, Some(&Timespec::default())).unwrap() == 1
    }

    #[test]
    fn clearing_takes_one_signal_and_does_not_wait_for_one() {
        let (_root, device) = device();
        let uio = Uio::open(&device).unwrap();
        assert!(!readable(&uio));
        uio.clear().unwrap();
        uio.kick().unwrap();
        assert!(readable(&uio));
        uio.clear().unwrap();
        assert!(!readable(&uio));
    }

    #[test]
    fn knows_the_memory_of_the_device() {
        let (_root, device) = device();
        let uio = Uio::open(&device).unwrap();
        assert_eq!(uio.mapping_len, 9 << 20);
        assert_eq!(uio.path(), device.path);
        assert_eq!(uio.name(), &device.name);
    }

    #[test]
    fn a_minor_number_that_went_to_another_device_is_not_opened() {
        let (root, device) = device();
        let name = root.path().join("sys/class/uio/uio0/name");
        fs::write(&name, "tcm-user/0/other/file//x\n").unwrap();
        let error = Uio::open(&device).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
        assert!(error.to_string().contains("tcm-user/0/other"), "{error}");
        // A new config is still the same device.
        fs::write(&name, "tcm-user/0/disk/file//y\n").unwrap();
        assert_eq!(Uio::open(&device).unwrap().name().config, "/y");
    }

    #[test]
    fn a_missing_node_is_a_device_that_is_gone() {
        let (_root, device) = device();
        fs::remove_file(&device.path).unwrap();
        let error = Uio::open(&device).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn a_held_device_is_said_to_be_held() {
        let error = open_error(Path::new("/dev/uio3"), Errno::BUSY);
        assert_eq!(error.kind(), io::ErrorKind::ResourceBusy);
        assert!(
            error
                .to_string()
                .contains("/dev/uio3 is held by another process")
        );
    }
}
