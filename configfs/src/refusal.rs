//! Why the daemon has refused something: the kernel hands on no more than a number, so the daemon
//! notes its reasons in a file.

use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use crate::tree::Tree;

/// The latest reasons, the last at the end: lines of the time in milliseconds since 1970, `user_N/NAME`
/// and the reason, with a tab between them.
pub(crate) const FILE: &str = "/run/tcmu-runner/refusals";

/// The daemon keeps less.
const LONGEST: u64 = 1 << 20;

impl Tree {
    /// What the daemon has noted since then of why it refuses something for this backstore.
    pub(crate) fn refusal(&self, backstore: &Path, since: SystemTime) -> Option<String> {
        let mut notes = Vec::new();
        let file = File::open(&self.roots.refusals_file).ok()?;
        file.take(LONGEST).read_to_end(&mut notes).ok()?;
        let notes = String::from_utf8_lossy(&notes);
        let since = since.duration_since(UNIX_EPOCH).ok()?.as_millis();
        last_of(&notes, backstore, since).map(str::to_owned)
    }
}

fn last_of<'a>(notes: &'a str, backstore: &Path, since: u128) -> Option<&'a str> {
    let reason = |line: &'a str| {
        let (time, rest) = line.split_once('\t')?;
        let (lun, reason) = rest.split_once('\t')?;
        let is_meant = backstore.ends_with(lun) && time.parse::<u128>().ok()? >= since;
        is_meant.then_some(reason)
    };
    notes.lines().rev().find_map(reason)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_reason_for_that_backstore_counts() {
        let notes = "10\tuser_0/a\tno such file\n\
                     20\tuser_0/a\ttoo small\tby far\n\
                     30\tuser_1/a\tlocked\n\
                     25\tuser_0/b\tno space\n\
                     cut off";
        let core = Path::new("/sys/kernel/config/target/core");
        let last = |lun: &str, since| last_of(notes, &core.join(lun), since);
        assert_eq!(last("user_0/a", 0), Some("too small\tby far"));
        assert_eq!(last("user_0/a", 20), Some("too small\tby far"));
        assert_eq!(last("user_0/a", 21), None, "that was another attempt");
        assert_eq!(last("user_1/a", 30), Some("locked"));
        assert_eq!(last("user_10/a", 0), None);
        assert_eq!(last("user_0/c", 0), None);
        assert_eq!(last_of("", core, 0), None);
    }
}
