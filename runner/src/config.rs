//! The daemon's configuration file: TOML, all keys optional.

use std::path::Path;

use anyhow::Context;
use serde::Deserialize;

/// What the configuration file sets. Without a file the defaults hold.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// `error`, `warn`, `info`, `debug`, `trace`, or a filter per module; `--log-level` goes before.
    pub log_level: Option<String>,
    /// How many reactor threads there are, 1 to 64. Default: one per CPU that the daemon may run
    /// on, at most 4.
    pub reactors: Option<usize>,
    /// How many threads each reactor may have for what blocks, 1 to 1024. Default: 16.
    pub blocking_threads: Option<usize>,
}

impl Config {
    /// Reads a file.
    ///
    /// # Errors
    /// Names the file, and the line and key that cannot be used.
    pub fn read(path: &Path) -> anyhow::Result<Self> {
        let text = std::fs::read_to_string(path)
            .with_context(|| format!("reading the configuration file {}", path.display()))?;
        Self::parse(&text).with_context(|| format!("in the configuration file {}", path.display()))
    }

    fn parse(text: &str) -> anyhow::Result<Self> {
        let config: Self = toml::from_str(text)?;
        within("reactors", config.reactors, 64)?;
        within("blocking_threads", config.blocking_threads, 1024)?;
        Ok(config)
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
}

fn within(key: &str, value: Option<usize>, most: usize) -> anyhow::Result<()> {
    match value {
        Some(value) if !(1..=most).contains(&value) => {
            anyhow::bail!("{key} = {value} is not a number from 1 to {most}")
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_file_means_the_defaults() {
        let config = Config::parse("").unwrap();
        assert!((1..=4).contains(&config.reactors()));
        assert_eq!(config.blocking_threads(), 16);
    }

    #[test]
    fn the_sample_shows_the_keys_that_there_are() {
        let sample = include_str!("../../systemd/tcmu-runner.toml");
        let config = Config::parse(sample).unwrap();
        assert!(config.log_level.is_none() && config.reactors.is_none());
        let filled: String = sample
            .lines()
            .map(|line| {
                line.strip_prefix('#')
                    .filter(|line| line.contains(" = "))
                    .unwrap_or("")
            })
            .flat_map(|line| [line, "\n"])
            .collect();
        let config = Config::parse(&filled).unwrap();
        assert_eq!(config.log_level.as_deref(), Some("info"));
        assert_eq!(config.reactors, Some(4));
        assert_eq!(config.blocking_threads, Some(16));
    }

    #[test]
    fn an_error_names_the_key_and_the_line() {
        let error = format!(
            "{:#}",
            Config::parse("reactors = 2\nreactor = 3\n").unwrap_err()
        );
        assert!(
            error.contains("line 2") && error.contains("reactor"),
            "{error}"
        );
        let error = format!("{:#}", Config::parse("reactors = 0").unwrap_err());
        assert!(error.contains("reactors = 0"), "{error}");
    }
}
