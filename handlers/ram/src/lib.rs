//! Sparse backstore in memory, for tests.
//!
//! The LUN reads as zeroes at first; memory is taken as it is written to, at most as much as the LUN
//! is large, and given back by unmapping. Closing the LUN loses everything.
#![deny(missing_docs)]
#![forbid(unsafe_code)]

mod chunks;
mod ram;

pub use ram::Ram;

use tcmu_handler::{Config, Handler, OpenRequest, Result};

const HELP: &str = "\
ram/NAME[;OPTION=VALUE]...

A sparse disk in the daemon's memory, for tests: it takes memory only for what was written, and all
is lost when the LUN is closed or the daemon ends. NAME is only a label and may be left out: two
LUNs never share a disk.

  readonly=on|off  on: writes are refused, so that the LUN stays all zeroes. The default is off.
";

/// The handler `ram`.
#[derive(Clone, Copy, Debug, Default)]
pub struct RamHandler;

impl Handler for RamHandler {
    type Backstore = Ram;

    fn subtype(&self) -> &str {
        "ram"
    }

    fn help(&self) -> &str {
        HELP
    }

    fn check(&self, config: &Config) -> Result<()> {
        read_only(config).map(drop)
    }

    fn open(&self, request: &OpenRequest) -> Result<Ram> {
        Ok(Ram::new(request.size, read_only(&request.config)?))
    }
}

fn read_only(config: &Config) -> Result<bool> {
    config.allow_options(&["readonly"])?;
    Ok(config.switch("readonly")?.unwrap_or(false))
}
