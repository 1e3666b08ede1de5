//! Our own User-mode Linux kernel: newer than the packaged one, several CPUs, all built in.

use std::fs::{self, File};
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use crate::apt::{self, Mirror, Release};
use crate::cache::{self, Entry};
use crate::command;
use crate::error::{Context as _, Error};
use crate::kernel::{Bootable, Kernel};

/// What the guests need of the kernel.
const CONFIG: &str = include_str!("../kernel/uml.config");

/// What we change in the kernel's own User-mode Linux part; the patch says why.
const PATCH: &str = include_str!("../kernel/patches/bind-cpus.patch");

/// The source that this was tried with. Without it, the newest that is offered is taken.
const SOURCE: &str = "linux-source-7.2";
/// Suites that may have it, the steadier first.
const SUITES: &[&str] = &["trixie-backports", "sid"];

/// How often the build says how far it is.
const REPORT_EVERY: Duration = Duration::from_secs(20);

/// What building needs, as Debian packages.
pub(crate) const PACKAGES: &[&str] = &[
    "bc",
    "bison",
    "build-essential",
    "debian-archive-keyring",
    "flex",
    "kmod",
    "libelf-dev",
    "libssl-dev",
    "patch",
    "xz-utils",
];

fn recipe() -> String {
    cache::fingerprint(&[CONFIG, PATCH])
}

/// The newest one that was built from this recipe.
pub(crate) fn cached() -> Result<Option<Bootable>, Error> {
    Ok(cache::newest("uml-", &recipe())?.map(|dir| bootable(&dir)))
}

fn bootable(dir: &Path) -> Bootable {
    Bootable {
        kernel: Kernel::UmlBuilt,
        image: dir.join("linux"),
        modules_dir: Some(dir.join("lib/modules")),
        initramfs: None,
        qemu: None,
    }
}

/// Builds it unless it is there, and returns its folder.
pub(crate) fn build(say: &mut dyn FnMut(&str)) -> Result<PathBuf, Error> {
    let _lock = cache::lock(|| say("another build is running: waiting for it"))?;
    if let Some(dir) = cache::newest("uml-", &recipe())? {
        return Ok(dir);
    }
    cache::sweep()?;
    let work = Entry::new()?;
    let result = build_in(&work, say);
    if result.is_err() {
        let log = cache::kernels()?.join("failed-build.log");
        if fs::copy(work.path().join("build.log"), &log).is_ok() {
            say(&format!("the build's log is in {}", log.display()));
        }
    }
    let version = result?;
    // The sources and objects are of no more use, and large.
    for dir in ["apt", "package", "source", "objects"] {
        let dir = work.path().join(dir);
        fs::remove_dir_all(&dir).path_context("remove", &dir)?;
    }
    work.complete(&format!("uml-{version}-{}", recipe()))
}

/// Returns the source's version.
fn build_in(work: &Entry, say: &mut dyn FnMut(&str)) -> Result<String, Error> {
    let dir = |name: &str| work.path().join(name);
    let log_path = dir("build.log");
    let log = File::create(&log_path).path_context("create", &log_path)?;

    let (release, package, version) = find_source(&dir("apt"), say)?;
    say(&format!("downloading {package} {version}"));
    release.unpack(&package, &version, &dir("package"))?;
    say("unpacking it");
    fs::create_dir(dir("source")).path_context("create", &dir("source"))?;
    let archive = dir("package")
        .join("usr/src")
        .join(format!("{package}.tar.xz"));
    let mut tar = Command::new("tar");
    tar.arg("--extract")
        .arg("--strip-components=1")
        .arg("--directory")
        .arg(dir("source"));
    command::logged(tar.arg("--file").arg(archive), &log)?;

    apply_patch(work.path(), &log, say)?;

    say("configuring it");
    fs::create_dir(dir("objects")).path_context("create", &dir("objects"))?;
    let fragment = dir("uml.config");
    fs::write(&fragment, CONFIG).path_context("write", &fragment)?;
    let make = || {
        let mut make = Command::new("make");
        make.arg("-C")
            .arg(dir("source"))
            .arg("ARCH=um")
            .arg(format!("O={}", dir("objects").display()));
        make
    };
    command::logged(make().arg("defconfig"), &log)?;
    let config = dir("objects").join(".config");
    let mut merge = Command::new("scripts/kconfig/merge_config.sh");
    merge
        .current_dir(dir("source"))
        .args(["-m", "-O"])
        .arg(dir("objects"));
    command::logged(merge.args([&config, &fragment]), &log)?;
    command::logged(make().arg("olddefconfig"), &log)?;
    let text = fs::read_to_string(&config).path_context("read", &config)?;
    let refused = refused_options(CONFIG, &text);
    if !refused.is_empty() {
        return Err(Error::Usage(format!(
            "Linux {version} does not take these options of kernel/uml.config: {}",
            refused.join(", ")
        )));
    }

    let jobs = thread::available_parallelism().map_or(1, usize::from);
    say(&format!(
        "building it with {jobs} jobs: 4 to 8 minutes on two CPUs"
    ));
    let mut compile = make();
    compile.arg(format!("-j{jobs}")).args(["linux", "modules"]);
    watched(&mut compile, &log, &log_path, say)?;

    let linux = dir("linux");
    fs::copy(dir("objects").join("linux"), &linux).path_context("create", &linux)?;
    fs::copy(&config, dir("config")).path_context("create", &dir("config"))?;
    let to = format!("INSTALL_MOD_PATH={}", work.path().display());
    command::logged(
        make().args([&to, "INSTALL_MOD_STRIP=1", "modules_install"]),
        &log,
    )?;
    Ok(version)
}

/// Changes the source, unless it is one that the patch was not made for: the kernel works without.
fn apply_patch(work: &Path, log: &File, say: &mut dyn FnMut(&str)) -> Result<(), Error> {
    let file = work.join("bind-cpus.patch");
    fs::write(&file, PATCH).path_context("write", &file)?;
    let patch = |options: &[&str]| {
        let mut patch = Command::new("patch");
        patch
            .args(["--strip=1", "--forward", "--batch"])
            .args(options);
        patch
            .arg("--directory")
            .arg(work.join("source"))
            .arg("--input")
            .arg(&file);
        patch
    };
    match command::logged(&mut patch(&["--dry-run"]), log) {
        Ok(()) => command::logged(&mut patch(&[]), log),
        Err(e) => {
            say(&format!(
                "bind-cpus.patch does not fit this source, building without it: {e}"
            ));
            Ok(())
        }
    }
}

/// The pinned source from the first suite that has it, else the newest of all.
fn find_source(dir: &Path, say: &mut dyn FnMut(&str)) -> Result<(Release, String, String), Error> {
    let mirror = Mirror::of_this_machine()?;
    let mut newest: Option<(Release, String, String)> = None;
    for suite in SUITES.iter().copied().chain([mirror.codename.as_str()]) {
        say(&format!("reading the package list of {suite}"));
        let release = match Release::read(&mirror, suite, dir.join(suite)) {
            Ok(release) => release,
            Err(e) => {
                say(&format!("{suite} cannot be read: {e}"));
                continue;
            }
        };
        if let Some(version) = release.version(SOURCE)? {
            return Ok((release, SOURCE.to_owned(), version));
        }
        let mut best: Option<(String, String)> = None;
        for package in release.names(r"^linux-source-[0-9.]+$")? {
            let Some(version) = release.version(&package)? else {
                continue;
            };
            if best
                .as_ref()
                .is_none_or(|(_, than)| apt::is_newer(&version, than))
            {
                best = Some((package, version));
            }
        }
        if let Some((package, version)) = best
            && newest
                .as_ref()
                .is_none_or(|(_, _, than)| apt::is_newer(&version, than))
        {
            newest = Some((release, package, version));
        }
    }
    let found = newest.ok_or_else(|| {
        Error::missing(
            "a linux-source package",
            "this machine's mirror must offer one",
        )
    })?;
    say(&format!(
        "there is no {SOURCE}: taking {} {}",
        found.1, found.2
    ));
    Ok(found)
}

/// Runs a long command and says now and then how far it is.
fn watched(
    command: &mut Command,
    log: &File,
    log_path: &Path,
    say: &mut dyn FnMut(&str),
) -> Result<(), Error> {
    let (done, finished) = mpsc::channel();
    thread::scope(|scope| {
        scope.spawn(move || done.send(command::logged(command, log)));
        loop {
            match finished.recv_timeout(REPORT_EVERY) {
                Ok(result) => {
                    return result.map_err(|e| match e {
                        Error::Command {
                            command, status, ..
                        } => Error::Command {
                            command,
                            status,
                            log: last_lines(log_path),
                        },
                        other => other,
                    });
                }
                Err(mpsc::RecvTimeoutError::Timeout) => {
                    let text = fs::read_to_string(log_path).unwrap_or_default();
                    let files = text.lines().filter(|l| l.starts_with("  CC ")).count();
                    say(&format!("{files} files compiled"));
                }
                Err(mpsc::RecvTimeoutError::Disconnected) => {
                    return Err(Error::Usage(
                        "the build's thread ended without a result".into(),
                    ));
                }
            }
        }
    })
}

fn last_lines(path: &Path) -> String {
    let mut text = Vec::new();
    if let Ok(mut file) = File::open(path) {
        let _ = file.read_to_end(&mut text);
    }
    command::tail(&String::from_utf8_lossy(&text))
}

/// The options of a fragment that a configuration did not take as asked.
fn refused_options(fragment: &str, config: &str) -> Vec<String> {
    let taken = |wanted: &str| config.lines().any(|line| line == wanted);
    fragment
        .lines()
        .filter_map(|line| match line.strip_prefix("# CONFIG_") {
            // An option that is off may also be left out, where what it depends on is off.
            Some(off) => {
                let name = off.strip_suffix(" is not set")?;
                let on = ["=y", "=m"]
                    .iter()
                    .any(|v| taken(&format!("CONFIG_{name}{v}")));
                on.then(|| line.to_owned())
            }
            None => (line.starts_with("CONFIG_") && !taken(line)).then(|| line.to_owned()),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::refused_options;

    #[test]
    fn an_option_that_was_not_taken_is_found() {
        let fragment = "# a remark\nCONFIG_UIO=y\nCONFIG_SCSI_DEBUG=m\nCONFIG_NR_CPUS=8\n\
                        # CONFIG_PREEMPT is not set\n# CONFIG_SOUND is not set\n";
        let good = "CONFIG_UIO=y\nCONFIG_SCSI_DEBUG=m\nCONFIG_NR_CPUS=8\n\
                    # CONFIG_PREEMPT is not set\n";
        assert!(refused_options(fragment, good).is_empty());
        let bad = "CONFIG_UIO=m\n# CONFIG_SCSI_DEBUG is not set\nCONFIG_NR_CPUS=80\n\
                   CONFIG_PREEMPT=y\n";
        assert_eq!(
            refused_options(fragment, bad),
            [
                "CONFIG_UIO=y",
                "CONFIG_SCSI_DEBUG=m",
                "CONFIG_NR_CPUS=8",
                "# CONFIG_PREEMPT is not set"
            ]
        );
    }
}
