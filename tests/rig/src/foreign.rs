//! Programs of a Debian release that need not be this machine's, the same version everywhere.

use std::fs;
use std::path::{Path, PathBuf};

use crate::apt::{Mirror, Release};
use crate::cache::{self, Entry};
use crate::error::{Context as _, Error};

/// A Debian package with all that it depends on, down to the C library, unpacked into the cache.
///
/// Nothing is installed: its programs run by the release's own dynamic loader, which is what
/// [`command`](Self::command) begins with.
#[derive(Debug, Clone)]
pub struct ForeignPackage {
    root: PathBuf,
}

impl ForeignPackage {
    /// Downloads the package of a suite, such as `trixie`, unless that was done before. `say` gets a
    /// line for each step.
    ///
    /// # Errors
    /// Where there is no Debian mirror, or the suite has no such package.
    pub fn fetch(suite: &str, package: &str, mut say: impl FnMut(&str)) -> Result<Self, Error> {
        let _lock = cache::lock(|| say("another download is running: waiting for it"))?;
        let beginning = format!("{package}-{suite}-");
        if let Some(root) = cache::newest(&beginning, "")? {
            return Ok(ForeignPackage { root });
        }
        cache::sweep()?;
        let work = Entry::new()?;
        say(&format!("reading the package list of {suite}"));
        let release = Release::read(&Mirror::of_this_machine()?, suite, work.path().join("apt"))?;
        let version = release.version(package)?.ok_or_else(|| {
            Error::missing(
                format!("the package {package} of {suite}"),
                "this machine's mirror must offer it",
            )
        })?;
        let packages = release.with_dependencies(package)?;
        say(&format!(
            "downloading {package} {version} and what it needs ({} packages)",
            packages.len()
        ));
        release.unpack_all(&packages, work.path())?;
        let apt = work.path().join("apt");
        fs::remove_dir_all(&apt).path_context("remove", &apt)?;
        let package = ForeignPackage {
            root: work.path().to_owned(),
        };
        // Whatever is wrong with it should show now.
        package.loader()?;
        let root = work.complete(&format!("{beginning}{version}"))?;
        Ok(ForeignPackage { root })
    }

    /// The words that run a program of the package, such as `iscsi-test-cu`; its arguments follow.
    ///
    /// # Errors
    /// If the package has no such program.
    pub fn command(&self, program: &str) -> Result<Vec<String>, Error> {
        let path = ["usr/bin", "usr/sbin", "bin", "sbin"]
            .iter()
            .map(|dir| self.root.join(dir).join(program))
            .find(|path| path.is_file())
            .ok_or_else(|| {
                let advice = format!("remove {}, to have it unpacked again", self.root.display());
                Error::missing(program, advice)
            })?;
        let words = [
            self.loader()?,
            "--library-path".into(),
            self.libraries()?,
            path,
        ];
        Ok(words.iter().map(|w| w.display().to_string()).collect())
    }

    fn loader(&self) -> Result<PathBuf, Error> {
        // Its place and name differ from one architecture to the other.
        let dirs = ["usr/lib64", "usr/lib", "lib64", "lib"];
        let mut files = dirs.iter().flat_map(|dir| entries(&self.root.join(dir)));
        files
            .find(|path| name(path).starts_with("ld-linux"))
            .ok_or_else(|| self.incomplete("dynamic loader"))
    }

    fn libraries(&self) -> Result<PathBuf, Error> {
        let mut dirs = entries(&self.root.join("usr/lib")).into_iter();
        dirs.find(|dir| dir.join("libc.so.6").exists())
            .ok_or_else(|| self.incomplete("C library"))
    }

    fn incomplete(&self, what: &str) -> Error {
        Error::missing(
            format!("the {what} in {}", self.root.display()),
            "remove the folder, to have it unpacked again",
        )
    }
}

fn entries(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries.map(|entry| entry.path()).collect()
}

fn name(path: &Path) -> &str {
    path.file_name()
        .and_then(|n| n.to_str())
        .unwrap_or_default()
}
