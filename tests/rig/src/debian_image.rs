//! Debian's own kernel for qemu, and qemu itself: unpacked into the cache, not installed, so that
//! this machine's packages stay as they are (installing bookworm's qemu-system-x86 would take a
//! newer qemu-utils away).

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::apt;
use crate::cache::{self, Entry};
use crate::command;
use crate::error::{Context as _, Error};
use crate::kernel::{Bootable, Kernel};

/// What unpacking needs, as Debian packages.
pub(crate) const PACKAGES: &[&str] = &["cpio", "iproute2", "kmod", "xz-utils"];

/// Always depends on the newest kernel of the release.
const META_PACKAGE: &str = "linux-image-amd64";
const QEMU_PACKAGE: &str = "qemu-system-x86";
const BUSYBOX_PACKAGE: &str = "busybox-static";
const INIT: &str = include_str!("../kernel/qemu-init.sh");
/// What the guest needs before it sees the host's tree, with what they depend on.
const EARLY_MODULES: &[&str] = &["virtio_pci", "9pnet_virtio", "9p"];

fn recipe() -> String {
    cache::fingerprint(&[INIT, &EARLY_MODULES.join(" ")])
}

/// The newest one that was unpacked by this recipe.
pub(crate) fn cached() -> Result<Option<Bootable>, Error> {
    Ok(cache::newest("qemu-", &recipe())?.map(|dir| Bootable {
        kernel: Kernel::Qemu,
        image: dir.join("vmlinuz"),
        modules_dir: Some(dir.join("lib/modules")),
        initramfs: Some(dir.join("initramfs")),
        qemu: dir.join("qemu").exists().then(|| dir.join("qemu")),
    }))
}

/// Downloads and unpacks it unless it is there, and returns its folder.
pub(crate) fn fetch(say: &mut dyn FnMut(&str)) -> Result<PathBuf, Error> {
    let _lock = cache::lock(|| say("another download is running: waiting for it"))?;
    if let Some(dir) = cache::newest("qemu-", &recipe())? {
        return Ok(dir);
    }
    cache::sweep()?;
    let work = Entry::new()?;
    let dir = |name: &str| work.path().join(name);
    let depends = apt::own_depends(META_PACKAGE)?;
    let package = depends
        .into_iter()
        .find(|name| name.starts_with("linux-image-"));
    let package =
        package.ok_or_else(|| Error::missing("Debian's kernel package", "run apt-get update"))?;
    let version = apt::own_version(&package)?;

    say(&format!("downloading {package} {version}"));
    let unpacked = make(dir("kernel"))?;
    apt::unpack_own(&[package, BUSYBOX_PACKAGE.to_owned()], &unpacked)?;
    let vmlinuz = the_only_entry(&unpacked.join("boot"), "vmlinuz-")?;
    fs::copy(&vmlinuz, dir("vmlinuz")).path_context("copy", &vmlinuz)?;
    let modules = ["lib/modules", "usr/lib/modules"]
        .iter()
        .map(|d| unpacked.join(d));
    let modules = modules.into_iter().find(|d| d.exists()).ok_or_else(|| {
        Error::missing(
            "the kernel's modules",
            "look at Debian's package: it has changed",
        )
    })?;
    make(dir("lib"))?;
    fs::rename(&modules, dir("lib/modules")).path_context("move", &modules)?;
    let release = the_only_entry(&dir("lib/modules"), "")?;
    let release = release.file_name().map(OsStr::to_owned).unwrap_or_default();
    command::output(
        Command::new("depmod")
            .arg("-b")
            .arg(work.path())
            .arg(&release),
    )?;

    say("making the initramfs");
    make_initramfs(work.path(), &unpacked, &release)?;
    fs::remove_dir_all(&unpacked).path_context("remove", &unpacked)?;

    if !is_installed("qemu-system-x86_64") {
        let packages = apt::own_additions(QEMU_PACKAGE)?;
        say(&format!(
            "downloading {QEMU_PACKAGE} and what it needs ({} packages)",
            packages.len()
        ));
        apt::unpack_own(&packages, &make(dir("qemu"))?)?;
    }
    work.complete(&format!("qemu-{version}-{}", recipe()))
}

fn is_installed(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|dir| dir.join(program).is_file())
}

fn make(dir: PathBuf) -> Result<PathBuf, Error> {
    fs::create_dir_all(&dir).path_context("create", &dir)?;
    Ok(dir)
}

/// The entry of a folder whose name begins so.
fn the_only_entry(dir: &Path, beginning: &str) -> Result<PathBuf, Error> {
    let mut entries = fs::read_dir(dir).path_context("read", dir)?.flatten();
    let found = entries.find(|e| e.file_name().to_string_lossy().starts_with(beginning));
    found.map(|entry| entry.path()).ok_or_else(|| {
        Error::missing(
            format!("{}/{beginning}*", dir.display()),
            "look at Debian's package: it has changed",
        )
    })
}

/// Busybox, the early modules in the order in which they are loaded, and the init script.
fn make_initramfs(work: &Path, unpacked: &Path, release: &OsStr) -> Result<(), Error> {
    let tree = make(work.join("initramfs.tree"))?;
    let bin = make(tree.join("bin"))?;
    let busybox = ["bin/busybox", "usr/bin/busybox"]
        .iter()
        .map(|b| unpacked.join(b));
    let busybox = busybox
        .into_iter()
        .find(|b| b.exists())
        .ok_or_else(|| Error::missing("busybox", "look at Debian's package: it has changed"))?;
    fs::copy(&busybox, bin.join("busybox")).path_context("copy", &busybox)?;
    let init = tree.join("init");
    fs::write(&init, INIT).path_context("write", &init)?;
    command::output(Command::new("chmod").arg("755").arg(&init))?;

    let modules = make(tree.join("modules"))?;
    let mut loaded: Vec<String> = Vec::new();
    for module in EARLY_MODULES {
        let mut modprobe = Command::new("modprobe");
        modprobe
            .args(["--show-depends", "--dirname"])
            .arg(work)
            .arg("--set-version")
            .arg(release);
        for line in command::output(modprobe.arg(module))?.lines() {
            // `insmod <path>`; what is built in says so instead.
            let Some(path) = line.strip_prefix("insmod ").map(str::trim) else {
                continue;
            };
            if !loaded.iter().any(|p| p == path) {
                loaded.push(path.to_owned());
            }
        }
    }
    for (number, path) in loaded.iter().enumerate() {
        let path = Path::new(path);
        let name = path
            .file_stem()
            .map(|n| n.to_string_lossy().into_owned())
            .unwrap_or_default();
        let to = modules.join(format!("{number:02}-{}", name.trim_end_matches(".ko")));
        if path.extension().is_some_and(|e| e == "xz") {
            let packed = to.with_extension("xz");
            fs::copy(path, &packed).path_context("copy", path)?;
            command::output(Command::new("xz").arg("--decompress").arg(&packed))?;
        } else {
            fs::copy(path, &to).path_context("copy", path)?;
        }
    }
    let pack = "find . | cpio --quiet --create --format=newc > ../initramfs";
    command::output(Command::new("sh").args(["-c", pack]).current_dir(&tree))?;
    fs::remove_dir_all(&tree).path_context("remove", &tree)
}
