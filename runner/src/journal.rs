//! The journals of LUNs in the file system.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use tcmu::discovery::DeviceName;

use crate::device_server::Journal;

/// Where they are kept, so that they outlive the machine's power.
const FOLDER: &str = "/var/lib/tcmu-runner/journal";

/// A LUN's journal: a file that begins with the LUN's configuration, since another LUN may get the
/// same name later.
#[derive(Debug)]
pub(crate) struct FileJournal {
    path: PathBuf,
    /// The file's first line.
    owner: String,
}

impl FileJournal {
    /// The journal of a device.
    pub(crate) fn of(device: &DeviceName) -> Self {
        Self::at(Path::new(FOLDER), device)
    }

    fn at(folder: &Path, device: &DeviceName) -> Self {
        Self {
            path: folder.join(format!("{}.{}", device.hba, device.name)),
            // Quoted, it has no line breaks.
            owner: format!("{:?}", format!("{}/{}", device.subtype, device.config)),
        }
    }

    fn folder(&self) -> &Path {
        self.path.parent().unwrap_or(Path::new("/"))
    }
}

impl Journal for FileJournal {
    fn load(&self) -> io::Result<Option<String>> {
        let content = match fs::read_to_string(&self.path) {
            Ok(content) => content,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let text = content.split_once('\n');
        let text = text.filter(|(owner, _)| *owner == self.owner);
        if text.is_none() {
            tracing::warn!(path = %self.path.display(), "the journal is another LUN's; passed over");
        }
        Ok(text.map(|(_, text)| text.to_owned()))
    }

    fn store(&self, text: Option<&str>) -> io::Result<()> {
        let Some(text) = text else {
            return match fs::remove_file(&self.path) {
                Ok(()) => File::open(self.folder())?.sync_all(),
                Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
                Err(error) => Err(error),
            };
        };
        fs::create_dir_all(self.folder())?;
        let mut name = self.path.clone().into_os_string();
        name.push(".new");
        let new = PathBuf::from(name);
        let mut file = File::create(&new)?;
        write!(file, "{}\n{text}", self.owner)?;
        file.sync_all()?;
        fs::rename(&new, &self.path)?;
        File::open(self.folder())?.sync_all()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn device(config: &str) -> DeviceName {
        format!("tcm-user/3/disk/{config}").parse().unwrap()
    }

    #[test]
    fn keeps_the_last_text() {
        let folder = tempfile::tempdir().unwrap();
        let journal = FileJournal::at(&folder.path().join("made"), &device("file//x"));
        assert_eq!(journal.load().unwrap(), None);
        journal.store(None).unwrap();
        journal.store(Some("one\ntwo\n")).unwrap();
        journal.store(Some("three\nfour")).unwrap();
        let again = FileJournal::at(&folder.path().join("made"), &device("file//x"));
        assert_eq!(again.load().unwrap().as_deref(), Some("three\nfour"));
        journal.store(None).unwrap();
        assert_eq!(again.load().unwrap(), None);
    }

    #[test]
    fn another_lun_of_the_same_name_has_its_own() {
        let folder = tempfile::tempdir().unwrap();
        let journal = FileJournal::at(folder.path(), &device("file//x"));
        journal.store(Some("text")).unwrap();
        let other = FileJournal::at(folder.path(), &device("file//y"));
        assert_eq!(other.load().unwrap(), None);
    }
}
