//! Where images may be.

use std::ffi::OsStr;
use std::io;
use std::path::{Path, PathBuf};

use crate::{Error, ErrorKind};

/// The folders and files that a handler may open.
///
/// Symbolic links are followed first, so that a link cannot lead out of an allowed folder. Only names
/// in `/dev` count as they are written too: links there (`/dev/mapper`, `/dev/disk`) are udev's.
///
/// This guards against mistakes, and against those who may name images but not read every file. It
/// does not guard against somebody who may replace files *in* an allowed folder at the very time when
/// an image is opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AllowedPaths(Vec<PathBuf>);

impl AllowedPaths {
    /// What lies at or below one of these absolute paths is allowed; nothing is if there are none.
    pub fn new(prefixes: impl IntoIterator<Item = PathBuf>) -> Self {
        Self(prefixes.into_iter().collect())
    }

    /// Says whether a file may be opened, or made where there is none.
    ///
    /// # Errors
    /// [`ErrorKind::PermissionDenied`] if it lies elsewhere, and why the path cannot be followed.
    pub fn check(&self, path: &Path) -> Result<(), Error> {
        let real = resolve(path)
            .map_err(|error| Error::os(format!("following {}", path.display()), error))?;
        let named_by_udev = device_name(path);
        let allowed = self.0.iter().any(|prefix| {
            let real_prefix = prefix.canonicalize();
            real_prefix.is_ok_and(|prefix| real.starts_with(prefix))
                || named_by_udev
                    .as_deref()
                    .is_some_and(|name| name.starts_with(prefix))
        });
        if allowed {
            return Ok(());
        }
        let leads = if real == path {
            String::new()
        } else {
            format!(" leads to {}, which", real.display())
        };
        Err(Error::new(
            ErrorKind::PermissionDenied,
            format!(
                "{}{leads} is outside of the paths that tcmu-runner's configuration allows: {self}",
                path.display()
            ),
        ))
    }
}

impl std::fmt::Display for AllowedPaths {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.0.is_empty() {
            return f.write_str("none");
        }
        for (number, prefix) in self.0.iter().enumerate() {
            let comma = if number == 0 { "" } else { ", " };
            write!(f, "{comma}{}", prefix.display())?;
        }
        Ok(())
    }
}

/// The path without links; its last part need not exist.
fn resolve(path: &Path) -> io::Result<PathBuf> {
    match path.canonicalize() {
        Err(error) if error.kind() == io::ErrorKind::NotFound && !path.is_symlink() => {
            let (folder, name) = parts(path)?;
            Ok(folder.canonicalize()?.join(name))
        }
        other => other,
    }
}

/// The name of a block or character device in `/dev`, with its own last part as it is written.
fn device_name(path: &Path) -> Option<PathBuf> {
    let (folder, name) = parts(path).ok()?;
    let folder = folder.canonicalize().ok()?;
    let leads_to_device = path
        .canonicalize()
        .is_ok_and(|real| real.starts_with("/dev"));
    (folder.starts_with("/dev") && leads_to_device).then(|| folder.join(name))
}

fn parts(path: &Path) -> io::Result<(&Path, &OsStr)> {
    path.parent()
        .zip(path.file_name())
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "the path names no file"))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    /// A folder with `allowed/x`, `elsewhere/y` and links between them.
    fn tree() -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().canonicalize().unwrap();
        for folder in ["allowed", "allowed-not", "elsewhere"] {
            fs::create_dir(root.join(folder)).unwrap();
            fs::write(root.join(folder).join("x"), "").unwrap();
        }
        symlink("../elsewhere/x", root.join("allowed/out")).unwrap();
        symlink("../elsewhere/none", root.join("allowed/dangling")).unwrap();
        symlink("../elsewhere", root.join("allowed/folder")).unwrap();
        symlink("allowed", root.join("link")).unwrap();
        (dir, root)
    }

    #[test]
    fn what_lies_below_a_prefix_is_allowed() {
        let (_dir, root) = tree();
        for prefix in ["allowed", "link", "allowed/x"] {
            let allowed = AllowedPaths::new([root.join(prefix)]);
            allowed.check(&root.join("allowed/x")).unwrap();
            allowed.check(&root.join("link/x")).unwrap();
        }
        // An image that is to be made.
        let allowed = AllowedPaths::new([root.join("allowed")]);
        allowed.check(&root.join("allowed/new")).unwrap();
    }

    #[test]
    fn everything_else_is_refused() {
        let (_dir, root) = tree();
        let allowed = AllowedPaths::new([root.join("allowed")]);
        for path in [
            "elsewhere/x",
            "elsewhere/new",
            "allowed-not/x",
            "allowed/out",
            "allowed/folder/x",
            "allowed/folder/new",
            "allowed/../elsewhere/x",
        ] {
            let error = allowed.check(&root.join(path)).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::PermissionDenied, "{path}: {error}");
        }
        assert!(allowed.check(&root.join("allowed/dangling")).is_err());
        assert!(allowed.check(&root.join("none/x")).is_err());
        let nothing = AllowedPaths::new([]);
        let error = nothing.check(&root.join("allowed/x")).unwrap_err();
        assert!(error.to_string().ends_with("allows: none"), "{error}");
    }

    #[test]
    fn the_error_says_where_a_link_leads_and_what_is_allowed() {
        let (_dir, root) = tree();
        let allowed = AllowedPaths::new([root.join("allowed"), "/srv".into()]);
        let error = allowed.check(&root.join("allowed/out")).unwrap_err();
        let root = root.display();
        assert_eq!(
            error.to_string(),
            format!(
                "{root}/allowed/out leads to {root}/elsewhere/x, which is outside of the paths that \
                 tcmu-runner's configuration allows: {root}/allowed, /srv"
            )
        );
    }

    #[test]
    fn names_in_dev_count_as_they_are_written() {
        let allowed = AllowedPaths::new(["/dev/null".into()]);
        allowed.check(Path::new("/dev/null")).unwrap();
        assert!(allowed.check(Path::new("/dev/zero")).is_err());
    }
}
