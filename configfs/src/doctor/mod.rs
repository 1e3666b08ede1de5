//! What on this machine would stop TCMU, or slow it down, and how to mend it.

mod bus;
mod daemon;
mod disks;
mod host;
mod kernel;
mod luns;
mod options;

pub(crate) use self::bus::policies;

use serde::Serialize;

use crate::error::Result;
use crate::tree::Tree;

/// How to get a kernel that was built with everything.
const OTHER_KERNEL: &str = "apt install linux-image-amd64   # not a cloud kernel, then reboot";

/// How bad a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Nothing is the matter.
    Ok,
    /// It works, slower or with less safety than it could.
    Slow,
    /// It does not work, or data are at risk.
    Broken,
}

impl Severity {
    /// The severity's name, as in JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Severity::Ok => "ok",
            Severity::Slow => "slow",
            Severity::Broken => "broken",
        }
    }
}

/// One thing that was looked at.
///
/// Its serialized form is `tcmuctl`'s JSON; fields may be added to it, but none change their
/// meaning.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What was looked at: a word that stays the same from version to version.
    pub check: &'static str,
    /// Whose: a LUN, a disk, a module; empty where there is only one.
    pub subject: String,
    /// How bad it is.
    pub severity: Severity,
    /// What was found.
    pub what: String,
    /// Why that matters; empty where nothing is the matter.
    pub why: String,
    /// What to type to mend it; empty where nothing is to be mended.
    pub mend: String,
}

impl Finding {
    /// Nothing is the matter.
    fn ok(check: &'static str, subject: impl Into<String>, what: impl Into<String>) -> Self {
        Finding {
            check,
            subject: subject.into(),
            severity: Severity::Ok,
            what: what.into(),
            why: String::new(),
            mend: String::new(),
        }
    }

    fn slow(self, why: impl Into<String>, mend: impl Into<String>) -> Self {
        self.bad(Severity::Slow, why, mend)
    }

    fn broken(self, why: impl Into<String>, mend: impl Into<String>) -> Self {
        self.bad(Severity::Broken, why, mend)
    }

    fn bad(self, severity: Severity, why: impl Into<String>, mend: impl Into<String>) -> Self {
        Finding {
            severity,
            why: why.into(),
            mend: mend.into(),
            ..self
        }
    }
}

impl Tree {
    /// Looks at everything that is known to stop or slow TCMU. Nothing is changed.
    ///
    /// # Errors
    /// [`Error::Kernel`](crate::Error::Kernel) if LIO's tree cannot be read.
    pub fn examine(&self) -> Result<Vec<Finding>> {
        let mut findings = Vec::new();
        self.examine_kernel(&mut findings);
        self.examine_host(&mut findings);
        self.examine_daemon(&mut findings)?;
        self.examine_luns(&mut findings)?;
        Ok(findings)
    }
}
