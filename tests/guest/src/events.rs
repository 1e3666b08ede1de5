//! What the guest tells the host, between the lines that tests print.

use serde::{Deserialize, Serialize};

/// Starts the lines that are events. A control character, so that no test prints it by chance.
const MARK: &str = "\u{2}guest-test ";

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Event {
    Started { test: String },
    Ended { test: String, outcome: Outcome },
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Outcome {
    Passed,
    Skipped(String),
    Failed(String),
}

impl Event {
    /// Prints the event on a line of its own, even if a test left one unfinished.
    pub(crate) fn send(&self) {
        match serde_json::to_string(self) {
            Ok(json) => println!("\n{MARK}{json}"),
            Err(e) => println!("cannot report {self:?}: {e}"),
        }
    }

    pub(crate) fn receive(line: &str) -> Option<Self> {
        serde_json::from_str(line.strip_prefix(MARK)?).ok()
    }
}
