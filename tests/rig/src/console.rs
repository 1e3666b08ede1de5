//! Reading a guest kernel's console for what went wrong.

use std::fs;
use std::path::Path;

/// Beginnings of messages that a healthy kernel does not print.
const COMPLAINTS: &[&str] = &[
    "BUG: ",
    "WARNING: ",
    "Oops",
    "INFO: task ",
    "general protection fault",
    "Kernel panic",
];
/// More of them say nothing new.
const MAX_COMPLAINTS: usize = 20;

pub(crate) struct Console {
    /// The line that says why the kernel panicked.
    pub panic: Option<String>,
    /// The last line, for a guest that says nothing else.
    pub last_line: Option<String>,
    /// Lines that tell of a kernel bug or a hang.
    pub complaints: Vec<String>,
}

impl Console {
    pub(crate) fn read(path: &Path) -> Self {
        Self::parse(&String::from_utf8_lossy(
            &fs::read(path).unwrap_or_default(),
        ))
    }

    fn parse(text: &str) -> Self {
        let mut console = Console {
            panic: None,
            last_line: None,
            complaints: Vec::new(),
        };
        for line in text.lines().map(without_timestamp) {
            if !line.is_empty() {
                console.last_line = Some(line.to_owned());
            }
            if console.panic.is_none() && line.starts_with("Kernel panic - not syncing") {
                console.panic = Some(line.to_owned());
            }
            if console.complaints.len() < MAX_COMPLAINTS
                && COMPLAINTS.iter().any(|c| line.starts_with(c))
            {
                console.complaints.push(line.to_owned());
            }
        }
        console
    }
}

/// `[    1.234567] text`, `[    1.234567][  T12] text`: text.
fn without_timestamp(line: &str) -> &str {
    let mut rest = line.trim_end();
    while let Some(after) = rest.strip_prefix('[') {
        let Some((stamp, text)) = after.split_once(']') else {
            break;
        };
        if !stamp
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || matches!(c, ' ' | '.'))
        {
            break;
        }
        rest = text.trim_start();
    }
    rest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_the_panic_and_the_complaints() {
        let console = Console::parse(
            "[    0.000000] Linux version 7.2\r\n\
             [    1.500000][    T1] BUG: scheduling while atomic: fio/33/0x00000002\n\
             [    1.600000] a driver's WARNING: not at the start\n\
             [   61.000000] INFO: task tcmuctl:40 blocked for more than 60 seconds.\n\
             Kernel panic - not syncing: Attempted to kill init! exitcode=0x00000100\n\
             [    1.700000] Kernel panic - not syncing: a second one\n",
        );
        assert_eq!(
            console.panic.as_deref(),
            Some("Kernel panic - not syncing: Attempted to kill init! exitcode=0x00000100")
        );
        assert_eq!(console.complaints.len(), 4, "{:?}", console.complaints);
        assert!(console.complaints[0].starts_with("BUG: scheduling"));
    }

    #[test]
    fn a_clean_console_has_none() {
        let console =
            Console::parse("[    0.000000] Linux\n[] odd\n[unended\nreboot: Power down\n");
        assert!(console.panic.is_none());
        assert_eq!(console.last_line.as_deref(), Some("reboot: Power down"));
        assert!(console.complaints.is_empty());
    }
}
