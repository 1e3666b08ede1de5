//! The guest's file system tree.
//!
//! The root is the host's own tree, read-only (hostfs or 9p), under an overlay whose upper layer is
//! in the guest's memory. So every program of the host is there, a test may write anywhere, and
//! nothing reaches the host but what is written to a share. `/run` and `/dev/shm` are plain tmpfs:
//! the place for images.
//!
//! Or else the root is a folder of the host's with a Debian tree, under such an overlay, and its
//! systemd sets up the rest.

use std::ffi::CString;
use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::mount::{MountFlags, UnmountFlags, mount, mount_bind, unmount};

use crate::guest::HOST_TREE;
use crate::protocol::{ORDER_FILE, Order};

/// Where the control share is, once the guest is set up.
pub(crate) const CONTROL_DIR: &str = "/run/tcmu-rig";

const NEW_ROOT: &str = "/run/root";
const MODPROBE_ROOT: &str = "/run/modprobe";

/// Mounts everything and enters the new root.
pub(crate) fn set_up(control: &str, share_type: &str) -> io::Result<Order> {
    attach("proc", "/proc", "proc", "")?;
    // Some kernels have mounted it already.
    let _ = attach("devtmpfs", "/dev", "devtmpfs", "");
    attach("tmpfs", "/run", "tmpfs", "mode=755")?;
    fs::create_dir(CONTROL_DIR)?;
    attach_share(control, CONTROL_DIR, share_type)?;
    let order: Order = serde_json::from_slice(&fs::read(Path::new(CONTROL_DIR).join(ORDER_FILE))?)?;

    if let Some(modules) = &order.modules_dir {
        fs::create_dir_all(Path::new(MODPROBE_ROOT).join("lib"))?;
        symlink(modules, Path::new(MODPROBE_ROOT).join("lib/modules"))?;
        modprobe(&["-q", "-d", MODPROBE_ROOT], &["overlay"]);
    }
    for dir in ["/run/upper", "/run/work", NEW_ROOT] {
        fs::create_dir(dir)?;
    }
    let lower = match &order.systemd_root {
        Some(root) => utf8(root)?,
        None => "/",
    };
    let layers = format!("lowerdir={lower},upperdir=/run/upper,workdir=/run/work");
    attach("overlay", NEW_ROOT, "overlay", &layers)?;
    enter_new_root()?;

    attach("proc", "/proc", "proc", "")?;
    attach("sysfs", "/sys", "sysfs", "")?;
    attach("devtmpfs", "/dev", "devtmpfs", "")?;
    for (dir, kind, options) in [
        ("/dev/pts", "devpts", "ptmxmode=666,mode=620"),
        ("/dev/shm", "tmpfs", "mode=1777"),
        ("/run", "tmpfs", "mode=755"),
        (CONTROL_DIR, share_type, ""),
    ] {
        fs::create_dir_all(dir)?;
        if dir == CONTROL_DIR {
            attach_share(control, dir, share_type)?;
        } else {
            attach(kind, dir, kind, options)?;
        }
    }
    fs::create_dir_all("/run/lock")?;
    for share in &order.shares {
        fs::create_dir_all(&share.path)?;
        attach_share(&share.source, &share.path, share_type)?;
    }
    if order.systemd_root.is_some() {
        fs::create_dir(HOST_TREE)?;
        mount("host", HOST_TREE, share_type, MountFlags::RDONLY, c"/")?;
    }

    if let Some(modules) = &order.modules_dir {
        fs::create_dir_all("/usr/lib/modules")?;
        match &order.systemd_root {
            Some(_) => mount_bind(on_host(modules), "/usr/lib/modules")?,
            None => mount_bind(modules, "/usr/lib/modules")?,
        }
    }
    if order.systemd_root.is_some() {
        // The rest is systemd's to set up.
        return Ok(order);
    }
    // One by one and quietly: what a kernel has built in, or lacks, is for the program to find out.
    for module in order.modules.iter().map(String::as_str).chain(["configfs"]) {
        modprobe(&["-q"], &[module]);
    }
    attach("configfs", "/sys/kernel/config", "configfs", "")?;
    let _ = attach("debugfs", "/sys/kernel/debug", "debugfs", "");

    // Where LIO keeps persistent reservations; without it they are refused.
    if let Ok(db_root) = fs::read_to_string("/sys/kernel/config/target/dbroot") {
        fs::create_dir_all(Path::new(db_root.trim()).join("pr"))?;
    }

    rustix::system::sethostname(b"tcmu-guest")?;
    // Loopback carries the iSCSI tests; a program that needs it says so itself.
    if let Err(e) = quiet(Command::new("ip").args(["link", "set", "lo", "up"])) {
        eprintln!("tcmu-rig: no loopback network: {e}");
    }
    Ok(order)
}

/// Makes the overlay the root for every process and kernel thread (so that the kernel's own
/// `modprobe` finds the modules too), and drops the old one.
fn enter_new_root() -> io::Result<()> {
    std::env::set_current_dir(NEW_ROOT)?;
    rustix::process::pivot_root(".", ".")?;
    // The old root now lies on top of the new one.
    unmount(".", UnmountFlags::DETACH)?;
    std::env::set_current_dir("/")
}

fn attach(source: &str, target: &str, kind: &str, options: &str) -> io::Result<()> {
    let data = CString::new(options)?;
    mount(source, target, kind, MountFlags::empty(), data.as_c_str()).map_err(|e| {
        let e = io::Error::from(e);
        io::Error::new(e.kind(), format!("cannot mount {kind} on {target}: {e}"))
    })
}

fn utf8(path: &Path) -> io::Result<&str> {
    path.to_str()
        .ok_or_else(|| io::Error::other(format!("{} is not UTF-8", path.display())))
}

/// Where a path of the host's is in a guest with a tree of its own.
pub(crate) fn on_host(path: &Path) -> PathBuf {
    Path::new(HOST_TREE).join(path.strip_prefix("/").unwrap_or(path))
}

fn attach_share(source: &str, target: impl AsRef<Path>, share_type: &str) -> io::Result<()> {
    let target = target.as_ref();
    let target = utf8(target)?;
    match share_type {
        // hostfs takes the host's folder as its option.
        "hostfs" => attach("hostfs", target, "hostfs", source),
        kind => attach(
            source,
            target,
            kind,
            "trans=virtio,version=9p2000.L,msize=512000",
        ),
    }
}

fn modprobe(options: &[&str], modules: &[&str]) {
    let _ = quiet(Command::new("modprobe").args(options).args(modules));
}

fn quiet(command: &mut Command) -> io::Result<()> {
    command.env("PATH", crate::guest::GUEST_PATH);
    let status = command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()?;
    if status.success() {
        Ok(())
    } else {
        Err(io::Error::other(status.to_string()))
    }
}
