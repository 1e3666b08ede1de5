//! The file of a saved configuration: reading any version that is known, writing the newest.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::{Backstore, Saved, Taken, Target, targetcli};
use crate::error::{Error, Result};

/// What marks our own files.
const FORMAT: &str = "tcmuctl";

/// The version that is written, and the newest that is read.
const VERSION: u32 = 1;

/// What tells the formats and versions apart; the rest is looked at later.
#[derive(Deserialize)]
struct Head {
    format: Option<String>,
    version: Option<serde_json::Number>,
    storage_objects: Option<serde::de::IgnoredAny>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Version1 {
    #[serde(rename = "format")]
    _format: String,
    #[serde(rename = "version")]
    _version: u32,
    #[serde(default)]
    backstores: Vec<Backstore>,
    #[serde(default)]
    targets: Vec<Target>,
}

#[derive(Serialize)]
struct Newest<'a> {
    format: &'static str,
    version: u32,
    backstores: &'a [Backstore],
    targets: &'a [Target],
}

impl Saved {
    /// Reads a file of ours or of targetcli's.
    ///
    /// # Errors
    /// [`Error::SavedFile`] if it cannot be read, is neither, or has a version that is not known.
    pub fn read(path: &Path) -> Result<Taken> {
        let failed = |why: String| Error::SavedFile {
            path: path.to_owned(),
            why,
        };
        let text = fs::read_to_string(path).map_err(|error| failed(error.to_string()))?;
        parse(&text).map_err(failed)
    }

    /// The file's text.
    fn text(&self) -> io::Result<String> {
        let newest = Newest {
            format: FORMAT,
            version: VERSION,
            backstores: &self.backstores,
            targets: &self.targets,
        };
        Ok(serde_json::to_string_pretty(&newest)? + "\n")
    }

    /// Writes a file in one step: whoever reads it, and whatever happens, finds the old one or the
    /// new one. The old one is kept beside it, with `.bak` behind its name. A file that says the
    /// same already is left alone; returns whether it was written.
    ///
    /// # Errors
    /// [`Error::SavedFile`]; what was there is still there.
    pub fn write(&self, path: &Path) -> Result<bool> {
        // Where it is a link, the file behind it is meant.
        let goal = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
        self.replace(&goal).map_err(|error| Error::SavedFile {
            path: path.to_owned(),
            why: format!("it cannot be written: {error}"),
        })
    }

    fn replace(&self, path: &Path) -> io::Result<bool> {
        let text = self.text()?;
        if fs::read(path).is_ok_and(|old| old == text.as_bytes()) {
            return Ok(false);
        }
        let folder = match path.parent() {
            Some(folder) if folder != Path::new("") => folder,
            _ => Path::new("."),
        };
        fs::create_dir_all(folder)?;
        let (new, old) = (beside(path, ".new"), beside(path, ".old"));
        // What an earlier attempt may have left.
        remove_if_any(&new)?;
        let mut file = File::options()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&new)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        remove_if_any(&old)?;
        match fs::hard_link(path, &old) {
            Ok(()) => fs::rename(&old, beside(path, ".bak"))?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        fs::rename(&new, path)?;
        File::open(folder)?.sync_all()?;
        Ok(true)
    }
}

fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

fn remove_if_any(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn parse(text: &str) -> std::result::Result<Taken, String> {
    let malformed = |error: serde_json::Error| format!("it is not understood: {error}");
    let head: Head = serde_json::from_str(text).map_err(malformed)?;
    match (head.format.as_deref(), head.version) {
        (Some(FORMAT), Some(version)) if version.as_u64() == Some(VERSION.into()) => {
            let Version1 {
                backstores,
                targets,
                ..
            } = serde_json::from_str(text).map_err(malformed)?;
            Ok(Taken {
                saved: Saved {
                    backstores,
                    targets,
                },
                left_out: Vec::new(),
            })
        }
        (Some(FORMAT), version) => Err(format!(
            "it is of version {}, and this tcmuctl understands version {VERSION}; nothing was \
             changed. Use the tcmuctl that wrote it, or a newer one",
            version.map_or("none".to_owned(), |version| version.to_string())
        )),
        (None, _) if head.storage_objects.is_some() => {
            let config = serde_json::from_str(text).map_err(malformed)?;
            Ok(targetcli::understand(&config))
        }
        _ => Err(format!(
            "it is neither a configuration of tcmuctl's (\"format\": \"{FORMAT}\") nor one of \
             targetcli's (\"storage_objects\")"
        )),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::super::{Group, Lun};
    use super::*;

    fn saved(size: u64) -> Saved {
        let backstore = Backstore {
            name: "disk0".to_owned(),
            handler: "file".to_owned(),
            config: "/srv/a,b.img".to_owned(),
            size,
            attributes: [("cmd_time_out".to_owned(), "0".to_owned())].into(),
            ..Backstore::default()
        };
        let group = Group {
            tag: 1,
            enabled: false,
            nexus: None,
            attributes: [("authentication".to_owned(), "1".to_owned())].into(),
            parameters: Default::default(),
            authentication: [("password".to_owned(), "secret \"1\"".to_owned())].into(),
            portals: vec!["[::1]:3260".to_owned()],
            luns: vec![Lun {
                lun: 7,
                backstore: "disk0".to_owned(),
                ..Lun::default()
            }],
            acls: Vec::new(),
        };
        Saved {
            backstores: vec![backstore],
            targets: vec![Target {
                fabric: "iscsi".to_owned(),
                name: "iqn.2026-11.com.example:a".to_owned(),
                managed: true,
                groups: vec![group],
            }],
        }
    }

    #[test]
    fn what_is_written_is_read() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("etc/tcmu/saveconfig.json");
        assert!(saved(4096).write(&path).expect("written"));
        let taken = Saved::read(&path).expect("read");
        assert_eq!(taken.saved, saved(4096));
        assert!(taken.left_out.is_empty());
        let mode = fs::metadata(&path).expect("there").permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "it holds passwords");
    }

    #[test]
    fn the_file_before_is_kept() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("x.json");
        let read = |path: &Path| Saved::read(path).expect("read").saved;
        assert!(saved(1).write(&path).expect("written"));
        assert!(!saved(1).write(&path).expect("nothing new"));
        assert!(!beside(&path, ".bak").exists());
        assert!(saved(2).write(&path).expect("written"));
        // Saying the same again does not push the other one out.
        assert!(!saved(2).write(&path).expect("nothing new"));
        assert_eq!(read(&path), saved(2));
        assert_eq!(read(&beside(&path, ".bak")), saved(1));
        let mut left: Vec<_> = fs::read_dir(folder.path())
            .expect("listed")
            .map(|entry| entry.expect("an entry").file_name())
            .collect();
        left.sort();
        assert_eq!(left, ["x.json", "x.json.bak"]);
    }

    #[test]
    fn what_cannot_be_written_leaves_what_was_there() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("x.json");
        saved(1).write(&path).expect("written");
        // In the way of the new file, and not to be removed.
        fs::create_dir(beside(&path, ".new")).expect("a folder");
        let error = saved(2).write(&path).expect_err("cannot be written");
        assert!(error.to_string().contains("x.json"), "{error}");
        assert_eq!(Saved::read(&path).expect("read").saved, saved(1));
    }

    #[test]
    fn a_link_stays_a_link() {
        let folder = tempfile::tempdir().expect("a folder");
        let (path, link) = (folder.path().join("real"), folder.path().join("link"));
        saved(1).write(&path).expect("written");
        std::os::unix::fs::symlink(&path, &link).expect("linked");
        saved(2).write(&link).expect("written");
        assert!(link.is_symlink());
        assert_eq!(Saved::read(&path).expect("read").saved, saved(2));
    }

    #[test]
    fn what_is_not_understood_says_why() {
        for (text, words) in [
            ("", "EOF"),
            ("[1]", "invalid type"),
            ("{}", "neither"),
            (r#"{"format":"other","version":1}"#, "neither"),
            (r#"{"format":"tcmuctl"}"#, "version none"),
            (r#"{"format":"tcmuctl","version":2,"new":[]}"#, "version 2"),
            (r#"{"format":"tcmuctl","version":-1}"#, "version -1"),
            (r#"{"format":"tcmuctl","version":"1"}"#, "line 1"),
            (
                r#"{"format":"tcmuctl","version":1,"backstores":[{"name":"a"}]}"#,
                "missing field `handler`",
            ),
            (
                "{\"format\":\"tcmuctl\",\"version\":1,\n\"backstore\":[]}",
                "unknown field `backstore`",
            ),
        ] {
            let why = parse(text).expect_err(text);
            assert!(why.contains(words), "{text}: {why}");
        }
        let why = parse("{\"format\":\"tcmuctl\",\"version\":1,\n\"x\":1}").expect_err("unknown");
        assert!(why.contains("line 2"), "{why}");
        assert!(parse(r#"{"format":"tcmuctl","version":1}"#).is_ok());
    }
}
