//! Debian packages, read from the mirror that this machine's own apt uses, without touching what is
//! installed or the machine's apt configuration.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::command::output;
use crate::error::{Context as _, Error};

const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// Where this machine gets Debian from.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Mirror {
    uri: String,
    /// The release that the machine runs, such as `bookworm`.
    pub codename: String,
}

impl Mirror {
    /// Asks this machine's apt.
    pub(crate) fn of_this_machine() -> Result<Self, Error> {
        let format = "$(ORIGIN)|$(LABEL)|$(CREATED_BY)|$(COMPONENT)|$(REPO_URI)|$(CODENAME)";
        let targets = output(Command::new("apt-get").args(["indextargets", "--format", format]))?;
        Self::choose(&targets).ok_or_else(|| {
            Error::missing(
                "a Debian mirror in this machine's apt configuration",
                "run apt-get update, on Debian or in a container of it",
            )
        })
    }

    fn choose(targets: &str) -> Option<Self> {
        targets.lines().find_map(|line| {
            let fields: Vec<&str> = line.split('|').collect();
            // The security and updates archives hold no other releases' packages.
            let ["Debian", "Debian", "Packages", "main", uri, codename] = fields[..] else {
                return None;
            };
            let plain = !codename.contains('-');
            plain.then(|| Mirror {
                uri: uri.to_owned(),
                codename: codename.to_owned(),
            })
        })
    }
}

/// Another release's packages, read with lists and a cache of their own.
pub(crate) struct Release {
    dir: PathBuf,
}

impl Release {
    /// Reads the package lists of a suite of the mirror into a folder.
    pub(crate) fn read(mirror: &Mirror, suite: &str, dir: PathBuf) -> Result<Self, Error> {
        for sub in ["lists/partial", "cache/archives/partial"] {
            let sub = dir.join(sub);
            fs::create_dir_all(&sub).path_context("create", &sub)?;
        }
        let signed_by = match Path::new(KEYRING).exists() {
            true => format!("[signed-by={KEYRING}] "),
            false => String::new(),
        };
        let sources = dir.join("sources.list");
        fs::write(
            &sources,
            format!("deb {signed_by}{} {suite} main\n", mirror.uri),
        )
        .path_context("write", &sources)?;
        let release = Release { dir };
        output(release.apt("apt-get").args(["--quiet", "update"]))?;
        Ok(release)
    }

    fn apt(&self, program: &str) -> Command {
        let dir = self.dir.display();
        let mut command = Command::new(program);
        for option in [
            format!("Dir::Etc::SourceList={dir}/sources.list"),
            "Dir::Etc::SourceParts=/dev/null".into(),
            format!("Dir::State::Lists={dir}/lists"),
            format!("Dir::Cache={dir}/cache"),
            "Acquire::Languages=none".into(),
            // The unprivileged user that apt would become cannot enter our folder.
            "APT::Sandbox::User=".into(),
        ] {
            command.args(["-o", &option]);
        }
        command
    }

    /// The newest version of a package, if the suite has it.
    pub(crate) fn version(&self, package: &str) -> Result<Option<String>, Error> {
        let table = output(self.apt("apt-cache").args(["madison", package]))?;
        // `package | version | source`, newest first.
        Ok(table
            .lines()
            .find_map(|l| l.split('|').nth(1))
            .map(|v| v.trim().to_owned()))
    }

    /// The names of the packages that match a regular expression.
    pub(crate) fn names(&self, pattern: &str) -> Result<Vec<String>, Error> {
        let found = output(
            self.apt("apt-cache")
                .args(["search", "--names-only", pattern]),
        )?;
        Ok(found
            .lines()
            .filter_map(|l| l.split_whitespace().next())
            .map(str::to_owned)
            .collect())
    }

    /// The package and all that it depends on, by name.
    pub(crate) fn with_dependencies(&self, package: &str) -> Result<Vec<String>, Error> {
        let listing = output(self.apt("apt-cache").args([
            "depends",
            "--recurse",
            "--important",
            "--no-breaks",
            "--no-conflicts",
            "--no-enhances",
            "--no-replaces",
            package,
        ]))?;
        Ok(recursive_dependencies(&listing))
    }

    /// Downloads packages and unpacks them into a folder.
    pub(crate) fn unpack_all(&self, packages: &[String], into: &Path) -> Result<(), Error> {
        let mut apt = self.apt("apt-get");
        unpack(apt.arg("download").args(packages), &self.dir, into)
    }

    /// Downloads a package (apt checks its signature) and unpacks it into a folder.
    pub(crate) fn unpack(&self, package: &str, version: &str, into: &Path) -> Result<(), Error> {
        let mut apt = self.apt("apt-get");
        unpack(
            apt.arg("download").arg(format!("{package}={version}")),
            &self.dir,
            into,
        )
    }
}

/// The packages in what `apt-cache depends --recurse` prints: each starts a line.
fn recursive_dependencies(listing: &str) -> Vec<String> {
    let names = listing.lines().filter(|line| {
        // A virtual package stands in angle brackets.
        !line.is_empty() && !line.starts_with([' ', '<', '|'])
    });
    names.map(str::to_owned).collect()
}

/// Downloads packages of this machine's own release and unpacks them into a folder.
pub(crate) fn unpack_own(packages: &[String], into: &Path) -> Result<(), Error> {
    unpack(
        Command::new("apt-get").arg("download").args(packages),
        into,
        into,
    )
}

/// Runs a download command in a folder, then unpacks and removes the archives.
fn unpack(download: &mut Command, dir: &Path, into: &Path) -> Result<(), Error> {
    output(download.arg("--quiet").current_dir(dir))?;
    for entry in fs::read_dir(dir).path_context("read", dir)?.flatten() {
        let deb = entry.path();
        if deb.extension().is_some_and(|e| e == "deb") {
            output(
                Command::new("dpkg-deb")
                    .arg("--extract")
                    .args([deb.as_path(), into]),
            )?;
            fs::remove_file(&deb).path_context("remove", &deb)?;
        }
    }
    Ok(())
}

/// The newest version that this machine's own release has of a package.
pub(crate) fn own_version(package: &str) -> Result<String, Error> {
    let policy = output(Command::new("apt-cache").args(["policy", package]))?;
    policy
        .lines()
        .find_map(|line| line.trim().strip_prefix("Candidate: "))
        .filter(|version| *version != "(none)")
        .map(str::to_owned)
        .ok_or_else(|| Error::missing(format!("the package {package}"), "run apt-get update"))
}

/// What a package of this machine's own release depends on by name.
pub(crate) fn own_depends(package: &str) -> Result<Vec<String>, Error> {
    let depends = output(Command::new("apt-cache").args(["depends", "--important", package]))?;
    let names = depends
        .lines()
        .filter_map(|l| l.trim().strip_prefix("Depends: "));
    Ok(names.map(str::to_owned).collect())
}

/// The packages that installing one would add to this machine, itself included.
pub(crate) fn own_additions(package: &str) -> Result<Vec<String>, Error> {
    let mut simulate = Command::new("apt-get");
    simulate.args(["--simulate", "--no-install-recommends", "install", package]);
    let plan = output(&mut simulate)?;
    let names = plan
        .lines()
        .filter_map(|l| l.strip_prefix("Inst ")?.split_whitespace().next());
    Ok(names.map(str::to_owned).collect())
}

/// Orders two versions as dpkg does.
pub(crate) fn is_newer(version: &str, than: &str) -> bool {
    Command::new("dpkg")
        .args(["--compare-versions", version, "gt", than])
        .status()
        .is_ok_and(|status| status.success())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mirror_is_debian_itself() {
        let targets = "\
Google|cloud|Packages|main|https://packages.example/apt/|cloud-sdk\n\
Debian|Debian-Security|Packages|main|http://mirror.example/debian-security/|bookworm-security\n\
Debian|Debian|DEP-11|main|http://mirror.example/debian/|bookworm\n\
Debian|Debian|Packages|main|http://mirror.example/debian/|bookworm-updates\n\
Debian|Debian|Packages|contrib|http://mirror.example/debian/|bookworm\n\
Debian|Debian|Packages|main|http://mirror.example/debian/|bookworm\n";
        assert_eq!(
            Mirror::choose(targets),
            Some(Mirror {
                uri: "http://mirror.example/debian/".into(),
                codename: "bookworm".into()
            })
        );
        assert_eq!(
            Mirror::choose("Ubuntu|Ubuntu|Packages|main|http://mirror.example/|noble"),
            None
        );
    }

    #[test]
    fn dependencies_are_the_lines_that_are_packages() {
        let listing = "\
tool
  Depends: libc6
 |Depends: a
  Depends: <virtual>
    real
libc6
  Depends: libgcc-s1
<virtual>
libgcc-s1
";
        assert_eq!(
            recursive_dependencies(listing),
            ["tool", "libc6", "libgcc-s1"]
        );
    }

    #[test]
    fn versions_are_ordered_by_number() {
        assert!(is_newer("7.10", "7.9"));
        assert!(!is_newer("7.2.12-1~bpo13+1", "7.2.12-1"));
    }
}
