//! `tcmuctl log-level`.

use std::io::{self, Write};

use clap::Args;
use serde_json::json;

use super::client::Client;
use super::error::Error;
use crate::output;

#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// error, warn, info, debug, trace, off, or a filter such as
    /// "info,tcmu_runner::reactor=trace" [default: show the present one]
    level: Option<String>,

    /// Log as the daemon's command line or configuration file says
    #[arg(long, conflicts_with = "level")]
    reset: bool,
}

pub(super) fn run(client: &Client, arguments: &Arguments, as_json: bool) -> Result<(), Error> {
    let holds = match &arguments.level {
        Some(level) if level.is_empty() => {
            return Err(Error::Usage("an empty level; see --reset".to_owned()));
        }
        Some(level) => client.set_log_level(level)?,
        None if arguments.reset => client.set_log_level("")?,
        None => client.status()?.log_level,
    };
    if as_json {
        output::json(&json!({ "log_level": holds }))?;
    } else {
        writeln!(io::stdout(), "{holds}")?;
    }
    Ok(())
}
