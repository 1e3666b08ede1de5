//! Why the daemon has refused what the kernel asked of it, for whoever asked the kernel: the answer has
//! room for no more than a number.

use std::collections::VecDeque;
use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};

use tcmu::discovery::DeviceName;

/// How many are kept: more than are asked for at once.
const KEPT: usize = 64;

/// The longest reason, in characters.
const LONGEST: usize = 1024;

/// The latest refusals, in a file that `tcmuctl` reads.
#[derive(Debug)]
pub(crate) struct Refusals {
    path: PathBuf,
    lines: VecDeque<String>,
}

impl Refusals {
    pub(crate) fn at(path: PathBuf) -> Self {
        Self {
            path,
            lines: VecDeque::new(),
        }
    }

    /// Notes a refusal. To be called before the kernel has its answer: it is looked for then.
    pub(crate) fn note(&mut self, lun: &DeviceName, reason: &str) {
        if self.lines.len() == KEPT {
            self.lines.pop_front();
        }
        self.lines.push_back(line(SystemTime::now(), lun, reason));
        if let Err(error) = self.write() {
            let path = self.path.display();
            tracing::warn!(%error, "{path} does not tell why this was refused: is /run full?");
        }
    }

    /// Whoever reads the file finds all of it. It is for root: reasons name images.
    fn write(&self) -> io::Result<()> {
        let unfinished = self.path.with_extension("new");
        let mut file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&unfinished)?;
        let text: String = self.lines.iter().map(String::as_str).collect();
        file.write_all(text.as_bytes())?;
        fs::rename(&unfinished, &self.path)
    }
}

/// Milliseconds since 1970, the LUN's folder below `core`, and the reason, with tabs between them.
fn line(time: SystemTime, lun: &DeviceName, reason: &str) -> String {
    let time = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    let reason: String = reason.chars().take(LONGEST).collect();
    let [name, reason] = [&lun.name, &reason].map(|text| text.replace(char::is_control, " "));
    format!("{}\tuser_{}/{name}\t{reason}\n", time.as_millis(), lun.hba)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn lun(hba: u32, name: &str) -> DeviceName {
        DeviceName {
            hba,
            name: name.to_owned(),
            subtype: "file".to_owned(),
            config: "/srv/x.img".to_owned(),
        }
    }

    #[test]
    fn a_refusal_is_a_line() {
        let time = UNIX_EPOCH + Duration::from_millis(1_700_000_000_123);
        assert_eq!(
            line(time, &lun(3, "disk"), "no such file:\n\t/srv/x.img"),
            "1700000000123\tuser_3/disk\tno such file:  /srv/x.img\n"
        );
        let long = line(time, &lun(3, "a\tb"), &"x".repeat(5000));
        assert!(long.contains("\tuser_3/a b\tx") && long.len() < 1100);
    }

    #[test]
    fn the_latest_are_kept() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("refusals");
        let mut refusals = Refusals::at(path.clone());
        for n in 0..KEPT + 3 {
            refusals.note(&lun(0, "disk"), &format!("reason {n}"));
        }
        let text = fs::read_to_string(&path).unwrap();
        let reasons: Vec<_> = text.lines().filter_map(|l| l.split('\t').nth(2)).collect();
        assert_eq!(reasons.len(), KEPT);
        assert_eq!(reasons[0], "reason 3");
        assert_eq!(reasons[KEPT - 1], format!("reason {}", KEPT + 2));
    }

    #[test]
    fn a_place_that_cannot_be_written_to_is_no_failure() {
        let mut refusals = Refusals::at("/nonexistent/refusals".into());
        refusals.note(&lun(0, "disk"), "too small");
    }
}
