//! The daemon's configuration file: TOML, all keys optional.

mod change;
mod file;
mod parse;
mod settings;
mod watch;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use serde::Deserialize;

pub(crate) use self::settings::{Cause, Settings};
use crate::metrics::Listen;

/// What the configuration file sets. Without a file the defaults hold.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// `error`, `warn`, `info`, `debug`, `trace`, or a filter per module; `--log-level` goes before.
    /// The C tcmu-runner's numbers are read too.
    #[serde(default, deserialize_with = "parse::log_level")]
    pub log_level: Option<String>,
    /// How many reactor threads there are, 1 to 64. Default: one per CPU that the daemon may run
    /// on, at most 4.
    #[serde(default, deserialize_with = "parse::within::<_, 64>")]
    pub reactors: Option<usize>,
    /// How many threads each reactor may have for what blocks, 1 to 1024, beside up to 256 more while
    /// they all hang. Default: 16.
    #[serde(default, deserialize_with = "parse::within::<_, 1024>")]
    pub blocking_threads: Option<usize>,
    /// How many seconds whoever enables a LUN waits for its image to be opened, 1 to 600. Default: 25,
    /// a little less than tcmuctl waits, so that it hears why.
    #[serde(default, deserialize_with = "parse::within::<_, 600>")]
    pub opening_limit: Option<usize>,
    /// Commands that the backstore takes longer for are logged: this many milliseconds, 1 to 3600000.
    /// Default: none is logged.
    #[serde(default, deserialize_with = "parse::within::<_, 3_600_000>")]
    pub slow_command_ms: Option<usize>,
    /// The figures for Prometheus.
    #[serde(default)]
    pub metrics: MetricsConfig,
    /// How many seconds the commands of a LUN wait for an image that cannot be opened when the daemon
    /// starts anew, 1 to 3600; then they end with NOT READY until it can. Default: 20, less than the 30
    /// after which Linux's initiators lose their patience.
    #[serde(default, deserialize_with = "parse::within::<_, 3600>")]
    pub offline_after: Option<usize>,
    /// Settings of handlers, by subtype.
    #[serde(default)]
    pub handlers: BTreeMap<String, HandlerConfig>,
}

/// What the configuration file sets for one handler.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HandlerConfig {
    /// Whether the handler's LUNs are served. Default: true. Without it they are left to whoever else
    /// serves their subtype, such as another tcmu-runner.
    #[serde(default)]
    pub enabled: Option<bool>,
    /// The absolute paths at or below which images must lie. Default: they may lie anywhere.
    #[serde(default, deserialize_with = "parse::absolute_paths")]
    pub allowed_paths: Option<Vec<PathBuf>>,
}

impl HandlerConfig {
    pub(crate) fn is_enabled(&self) -> bool {
        self.enabled.unwrap_or(true)
    }
}

/// Who may fetch the figures.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MetricsConfig {
    /// `unix:/PATH`, or a loopback address and port. Default: nobody may.
    #[serde(default, deserialize_with = "parse::listen")]
    pub listen: Option<Listen>,
}

impl Config {
    /// How much to log.
    pub(crate) fn log_level(&self) -> &str {
        self.log_level.as_deref().unwrap_or("info")
    }

    /// How many reactor threads to start.
    pub(crate) fn reactors(&self) -> usize {
        let cpus = || {
            std::thread::available_parallelism()
                .map_or(1, usize::from)
                .min(4)
        };
        self.reactors.unwrap_or_else(cpus)
    }

    /// How many threads to have for what blocks.
    pub(crate) fn blocking_threads(&self) -> usize {
        self.blocking_threads.unwrap_or(16)
    }

    /// How long the kernel, and whoever enables a device, waits for its image to be opened.
    pub(crate) fn opening_limit(&self) -> Duration {
        Duration::from_secs(self.opening_limit.unwrap_or(25) as u64)
    }

    /// From when on a command is slow, if that is to be logged.
    pub(crate) fn slow_command(&self) -> Option<Duration> {
        let milliseconds = self.slow_command_ms?;
        Some(Duration::from_millis(milliseconds as u64))
    }

    /// How long commands wait for an image that cannot be opened.
    pub(crate) fn offline_after(&self) -> Duration {
        Duration::from_secs(self.offline_after.unwrap_or(20) as u64)
    }
}
