//! What has to be there before the tree can be changed: privilege, configfs, modules.

use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::mount::{MountFlags, mount};

use crate::change::Change;
use crate::error::{Error, Result};
use crate::tree::Tree;

/// The module behind user-space backstores.
const TCMU: &str = "target_core_user";

impl Tree {
    /// Refuses users who cannot change the tree anyway, before anything is tried.
    pub(crate) fn require_root(&self) -> Result<()> {
        if self.roots.is_system() && !rustix::process::geteuid().is_root() {
            return Err(Error::NotRoot(self.roots.configfs.display().to_string()));
        }
        Ok(())
    }

    /// Mounts configfs and loads the target core and TCMU, as far as that is still to do.
    pub(crate) fn prepare(&self) -> Result<()> {
        self.require_root()?;
        self.mount_configfs()?;
        let core = self.roots.core();
        if !core.is_dir() {
            self.load("target_core_mod", || core.is_dir())?;
        }
        let parameters = self.roots.tcmu_parameter("");
        if !parameters.is_dir() {
            self.load(TCMU, || parameters.is_dir())?;
        }
        Ok(())
    }

    fn mount_configfs(&self) -> Result<()> {
        let path = &self.roots.configfs;
        if !self.roots.is_system() || self.is_configfs(path) {
            return Ok(());
        }
        if !path.is_dir() {
            self.load("configfs", || path.is_dir())?;
        }
        mount("configfs", path, "configfs", MountFlags::empty(), None).map_err(|e| {
            Error::NoConfigfs {
                path: path.display().to_string(),
                source: e.into(),
            }
        })
    }

    /// Whether configfs is mounted there.
    pub(crate) fn is_configfs(&self, path: &Path) -> bool {
        let mounts = std::fs::read_to_string(self.roots.proc.join("self/mounts"));
        mounts.is_ok_and(|table| {
            table.lines().any(|line| {
                let mut fields = line.split(' ').skip(1);
                fields.next().map(Path::new) == Some(path) && fields.next() == Some("configfs")
            })
        })
    }

    /// The folder of a fabric, its module loaded.
    ///
    /// Creating the folder makes the kernel look for the module itself; modprobe is asked where
    /// that did not work.
    pub(crate) fn fabric(&self, fabric: &str, module: &'static str) -> Result<PathBuf> {
        let folder = self.roots.fabric(fabric);
        let make = || {
            folder.is_dir()
                || match self.apply(Change::MakeDir(folder.clone())) {
                    Ok(()) => true,
                    Err(Error::Kernel { source, .. }) => {
                        source.kind() == io::ErrorKind::AlreadyExists
                    }
                    Err(_) => false,
                }
        };
        if !make() {
            self.load(module, make)?;
        }
        Ok(folder)
    }

    /// Loads a module; `present` says whether it is there then.
    fn load(&self, module: &'static str, present: impl Fn() -> bool) -> Result<()> {
        let mut detail = "the kernel does not offer it".to_owned();
        if self.roots.is_system() {
            let output = Command::new("modprobe")
                .arg(module)
                .stdin(Stdio::null())
                .output();
            match output {
                Ok(output) if output.status.success() => {}
                Ok(output) => {
                    detail = String::from_utf8_lossy(&output.stderr).trim().to_owned();
                }
                Err(error) => detail = format!("modprobe cannot be run ({error})"),
            }
        }
        if present() {
            Ok(())
        } else {
            Err(Error::NoModule { module, detail })
        }
    }
}
