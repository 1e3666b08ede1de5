//! The kernels that the rig can boot.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use crate::error::Error;
use crate::init::kernel_release;
use crate::{built, debian_image};

/// The environment variable that chooses the kernel.
pub const KERNEL_VAR: &str = "TCMU_RIG_KERNEL";

/// A kernel to run on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, clap::ValueEnum)]
pub enum Kernel {
    /// Debian's `user-mode-linux` package: nothing to build, one CPU, slow system calls.
    Uml,
    /// Our own User-mode Linux from Debian's newest kernel source: `cargo xtask kernel` builds it.
    UmlBuilt,
    /// qemu without hardware acceleration, with Debian's own kernel: two real CPUs, all modules;
    /// slow, but evenly so.
    Qemu,
    /// The kernel that this machine runs: needs root and `target_core_user`.
    Host,
}

impl Kernel {
    /// All of them.
    pub const ALL: [Kernel; 4] = [Kernel::Uml, Kernel::UmlBuilt, Kernel::Qemu, Kernel::Host];

    /// What [`KERNEL_VAR`] says; else `uml-built` if it has been built, else `uml`.
    ///
    /// # Errors
    /// If the variable names no kernel.
    pub fn default_choice() -> Result<Self, Error> {
        match std::env::var(KERNEL_VAR) {
            Ok(name) => name.parse(),
            Err(_) if built::cached()?.is_some() => Ok(Kernel::UmlBuilt),
            Err(_) => Ok(Kernel::Uml),
        }
    }

    /// Its name, as options and [`KERNEL_VAR`] take it.
    pub fn name(self) -> &'static str {
        match self {
            Kernel::Uml => "uml",
            Kernel::UmlBuilt => "uml-built",
            Kernel::Qemu => "qemu",
            Kernel::Host => "host",
        }
    }

    /// The Debian packages that preparing and booting it needs on this machine.
    pub fn packages(self) -> &'static [&'static str] {
        match self {
            Kernel::Uml => &["iproute2", "kmod", "user-mode-linux"],
            Kernel::UmlBuilt => built::PACKAGES,
            Kernel::Qemu => debian_image::PACKAGES,
            Kernel::Host => &["iproute2", "kmod"],
        }
    }

    /// Makes it ready to boot: builds or downloads what is not in the cache yet. `say` gets a line
    /// for each step. Returns where the kernel is, for people.
    ///
    /// # Errors
    /// If something it needs is missing or a step fails. What was there before stays.
    pub fn prepare(self, mut say: impl FnMut(&str)) -> Result<String, Error> {
        match self {
            Kernel::UmlBuilt => Ok(built::build(&mut say)?.display().to_string()),
            Kernel::Qemu => Ok(debian_image::fetch(&mut say)?.display().to_string()),
            Kernel::Uml => Ok(self.find()?.image.display().to_string()),
            Kernel::Host => Ok(format!("Linux {}", kernel_release())),
        }
    }

    /// Whether it can be booted without [`prepare`](Self::prepare).
    ///
    /// # Errors
    /// If there is no place for a cache.
    pub fn is_ready(self) -> Result<bool, Error> {
        Ok(match self {
            Kernel::UmlBuilt => built::cached()?.is_some(),
            Kernel::Qemu => debian_image::cached()?.is_some(),
            Kernel::Uml => self.find().is_ok(),
            Kernel::Host => Path::new("/sys/module/target_core_user").exists(),
        })
    }

    /// Finds its files on this machine.
    pub(crate) fn find(self) -> Result<Bootable, Error> {
        match self {
            Kernel::Uml => {
                let image = Path::new("/usr/bin/linux.uml");
                if !image.exists() {
                    return Err(Error::missing(
                        image.display().to_string(),
                        "apt-get install user-mode-linux",
                    ));
                }
                Ok(Bootable {
                    kernel: self,
                    image: image.into(),
                    modules_dir: Some("/usr/lib/uml/modules".into()),
                    initramfs: None,
                    qemu: None,
                })
            }
            Kernel::UmlBuilt => built::cached()?
                .ok_or_else(|| Error::missing("the uml-built kernel", "cargo xtask kernel")),
            Kernel::Qemu => debian_image::cached()?.ok_or_else(|| {
                Error::missing("qemu's Debian kernel", "cargo xtask kernel --which qemu")
            }),
            Kernel::Host => Err(Error::Usage("the host's kernel needs no booting".into())),
        }
    }
}

impl fmt::Display for Kernel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Kernel {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self, Error> {
        Kernel::ALL
            .into_iter()
            .find(|k| k.name() == name)
            .ok_or_else(|| {
                Error::Usage(format!(
                    "no kernel `{name}`: take uml, uml-built, qemu or host"
                ))
            })
    }
}

/// A kernel's files.
#[derive(Debug, Clone)]
pub(crate) struct Bootable {
    pub kernel: Kernel,
    /// What is executed (UML) or loaded (qemu).
    pub image: PathBuf,
    /// Holds `<release>/`.
    pub modules_dir: Option<PathBuf>,
    /// What qemu loads beside the kernel.
    pub initramfs: Option<PathBuf>,
    /// The root of an unpacked qemu, if none is installed.
    pub qemu: Option<PathBuf>,
}
