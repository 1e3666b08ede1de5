//! From the file's text to settings, or to an error that names line and key.

use std::path::PathBuf;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer};
use toml::de::DeTable;

use super::{Config, HandlerConfig};
use crate::log;
use crate::metrics::Listen;

/// What the C tcmu-runner's file may hold that means nothing here, and why.
const NOT_OURS: &[(&str, &str)] = &[
    ("log_dir", "the log goes to the journal"),
    ("log_dir_path", "the log goes to the journal"),
];

/// What was read.
#[derive(Debug)]
pub(super) struct Parsed {
    pub(super) config: Config,
    /// What the reader should know although it is no error.
    pub(super) remarks: Vec<String>,
}

/// Reads the text of a configuration file.
///
/// The error is `line: key: why`, to be put behind the file's name.
pub(super) fn parse(text: &str) -> Result<Parsed, String> {
    let mut table = DeTable::parse(text).map_err(|error| explain(text, &error))?;
    let mut remarks = Vec::new();
    for (key, why) in NOT_OURS {
        if let Some((key, _)) = table.get_mut().remove_entry(*key) {
            let line = line_of(text, key.span().start);
            let key = key.get_ref();
            remarks.push(format!(
                "{line}: {key} means nothing here and is ignored: {why}"
            ));
        }
    }
    Config::deserialize(toml::de::Deserializer::from(table))
        .map(|config| Parsed { config, remarks })
        .map_err(|error| explain(text, &error))
}

/// What a file that cannot be used says all the same of which handlers are not enabled: those serve
/// nothing, whatever else is wrong.
pub(super) fn disabled_handlers(text: &str) -> Config {
    let (table, _) = DeTable::parse_recoverable(text);
    let handlers = table.get_ref().get("handlers");
    let handlers = handlers.and_then(|handlers| handlers.get_ref().as_table());
    let disabled = handlers.into_iter().flatten().filter(|(_, handler)| {
        let enabled = handler.get_ref().get("enabled");
        enabled.and_then(|enabled| enabled.get_ref().as_bool()) == Some(false)
    });
    let disabled = disabled.map(|(subtype, _)| {
        let handler = HandlerConfig {
            enabled: Some(false),
            ..HandlerConfig::default()
        };
        (subtype.get_ref().to_string(), handler)
    });
    Config {
        handlers: disabled.collect(),
        ..Config::default()
    }
}

/// The number of the line that holds the byte at `offset`.
fn line_of(text: &str, offset: usize) -> usize {
    1 + text.bytes().take(offset).filter(|&b| b == b'\n').count()
}

fn explain(text: &str, error: &toml::de::Error) -> String {
    let message = error.message().replace('\n', ", ");
    let Some(span) = error.span() else {
        return message;
    };
    let line = line_of(text, span.start);
    match key_at(text, line) {
        Some(key) => format!("{line}: {key}: {message}"),
        None => format!("{line}: {message}"),
    }
}

/// The key whose value stands in a line, which may have begun before.
fn key_at(text: &str, line: usize) -> Option<&str> {
    let before: Vec<&str> = text.lines().take(line).collect();
    let (key, _) = before.iter().rev().find_map(|line| line.split_once('='))?;
    let key = key.trim();
    (!key.is_empty() && !key.starts_with('#')).then_some(key)
}

/// A level or a filter, or one of the C tcmu-runner's numbers.
pub(super) fn log_level<'de, D: Deserializer<'de>>(de: D) -> Result<Option<String>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Level {
        Number(i64),
        Filter(String),
    }
    let level = match Level::deserialize(de).map_err(|_| D::Error::custom(log::LEVELS))? {
        Level::Filter(filter) => {
            log::filter(&filter).map_err(D::Error::custom)?;
            filter
        }
        Level::Number(number) => {
            let levels = ["error", "error", "warn", "info", "debug", "trace"];
            let level = usize::try_from(number).ok().and_then(|n| levels.get(n));
            let level = level.ok_or_else(|| {
                D::Error::custom(format!(
                    "{number} is none of the C tcmu-runner's levels, 0 to 5"
                ))
            })?;
            (*level).to_owned()
        }
    };
    Ok(Some(level))
}

/// A number from 1 to `MOST`.
pub(super) fn within<'de, D: Deserializer<'de>, const MOST: usize>(
    de: D,
) -> Result<Option<usize>, D::Error> {
    let number = i64::deserialize(de)?;
    match usize::try_from(number) {
        Ok(number) if (1..=MOST).contains(&number) => Ok(Some(number)),
        _ => Err(D::Error::custom(format!(
            "{number} is not a number from 1 to {MOST}"
        ))),
    }
}

/// A list of absolute paths.
pub(super) fn absolute_paths<'de, D: Deserializer<'de>>(
    de: D,
) -> Result<Option<Vec<PathBuf>>, D::Error> {
    let paths = Vec::<PathBuf>::deserialize(de)?;
    match paths.iter().find(|path| !path.is_absolute()) {
        None => Ok(Some(paths)),
        Some(path) => Err(D::Error::custom(format!(
            "\"{}\" is not an absolute path",
            path.display()
        ))),
    }
}

/// Where to listen.
pub(super) fn listen<'de, D: Deserializer<'de>>(de: D) -> Result<Option<Listen>, D::Error> {
    let text = String::deserialize(de)?;
    text.parse().map(Some).map_err(D::Error::custom)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(text: &str) -> String {
        parse(text).unwrap_err()
    }

    #[test]
    fn a_file_with_a_mistake_still_says_which_handlers_are_not_enabled() {
        let disabled = |text: &str| {
            let config = disabled_handlers(text);
            let handlers = config.handlers.into_iter();
            handlers
                .map(|(subtype, handler)| {
                    assert!(!handler.is_enabled());
                    subtype
                })
                .collect::<Vec<_>>()
        };
        let handlers = "[handlers.rbd]\nenabled = false\n[handlers.file]\nenabled = true\n\
                        [handlers.qcow]\nenabled = 0\n";
        assert_eq!(disabled(&format!("reactors = 1000\n{handlers}")), ["rbd"]);
        assert_eq!(disabled(&format!("reactors = none\n{handlers}")), ["rbd"]);
        for nothing in ["", "handlers = 1", "[handlers]\nfile = 1", "[[[", "\0"] {
            assert_eq!(disabled(nothing), [""; 0], "{nothing}");
        }
    }

    #[test]
    fn an_empty_file_means_the_defaults() {
        let Parsed { config, remarks } = parse("").unwrap();
        assert_eq!(config, Config::default());
        assert!(remarks.is_empty());
        assert!((1..=4).contains(&config.reactors()));
        assert_eq!(config.blocking_threads(), 16);
        assert_eq!(config.log_level(), "info");
    }

    #[test]
    fn the_sample_shows_the_keys_that_there_are() {
        let sample = include_str!("../../../systemd/tcmu.conf");
        assert_eq!(parse(sample).unwrap().config, Config::default());
        let filled: String = sample
            .lines()
            .map(|line| {
                line.strip_prefix('#')
                    .filter(|line| line.contains(" = ") || line.starts_with('['))
                    .unwrap_or("")
            })
            .flat_map(|line| [line, "\n"])
            .collect();
        let config = parse(&filled).unwrap().config;
        assert_eq!(config.log_level.as_deref(), Some("info"));
        assert_eq!(config.reactors, Some(4));
        assert_eq!(config.blocking_threads, Some(16));
        assert_eq!(config.opening_limit, Some(25));
        assert_eq!(config.slow_command_ms, Some(1000));
        let listen = config.metrics.listen.map(|listen| listen.to_string());
        assert_eq!(
            listen.as_deref(),
            Some("unix:/run/tcmu-runner/metrics.sock")
        );
        assert_eq!(config.offline_after, Some(20));
        assert!(config.handlers["file"].allowed_paths.is_some());
        assert_eq!(config.handlers["file"].enabled, Some(true));
    }

    #[test]
    fn an_error_names_the_line_and_the_key() {
        let cases = [
            (
                "\nreactors = 0\n",
                "2: reactors: 0 is not a number from 1 to 64",
            ),
            (
                "reactors = 65",
                "1: reactors: 65 is not a number from 1 to 64",
            ),
            (
                "reactors = -1",
                "1: reactors: -1 is not a number from 1 to 64",
            ),
            (
                "blocking_threads = 1025",
                "1: blocking_threads: 1025 is not a number from 1 to 1024",
            ),
            (
                "reactors = \"two\"",
                "1: reactors: invalid type: string \"two\", expected i64",
            ),
            (
                "reactors = 2\nreactor = 3\n",
                "2: reactor: unknown field `reactor`, expected one of `log_level`, `reactors`, \
                 `blocking_threads`, `opening_limit`, `slow_command_ms`, `metrics`, \
                 `offline_after`, `handlers`",
            ),
            (
                "log_level = \"loud\"",
                "1: log_level: \"loud\" is none of error, warn, info, debug, trace, and no filter \
                 of modules",
            ),
            (
                "log_level = 6",
                "1: log_level: 6 is none of the C tcmu-runner's levels, 0 to 5",
            ),
            (
                "[handlers.file]\nallowed_paths = [\n  \"/srv\",\n  \"images\",\n]\n",
                "2: allowed_paths: \"images\" is not an absolute path",
            ),
            (
                "[handlers.file]\nallowed = []\n",
                "2: allowed: unknown field `allowed`, expected `enabled` or `allowed_paths`",
            ),
            ("reactors = 1\nreactors = 2", "2: reactors: duplicate key"),
            (
                "slow_command_ms = 0",
                "1: slow_command_ms: 0 is not a number from 1 to 3600000",
            ),
            (
                "[metrics]\nlisten = \"metrics.sock\"",
                "2: listen: \"metrics.sock\" is neither unix:/PATH nor ADDRESS:PORT, such as \
                 127.0.0.1:9361",
            ),
        ];
        for (text, expected) in cases {
            assert_eq!(error(text), expected);
        }
        let everywhere = error("[metrics]\nlisten = \"0.0.0.0:9361\"");
        let why = "2: listen: 0.0.0.0 is no loopback address: ";
        assert!(everywhere.starts_with(why), "{everywhere}");
        assert!(error("log_level = info").starts_with("1: log_level: "));
        assert!(error("# fine\n[handlers").starts_with("2: "));
    }

    #[test]
    fn the_c_tcmu_runners_file_is_understood() {
        let text = "log_level = 4\n# its default:\nlog_dir = \"/var/log\"\n";
        let Parsed { config, remarks } = parse(text).unwrap();
        assert_eq!(config.log_level(), "debug");
        assert_eq!(
            remarks,
            ["3: log_dir means nothing here and is ignored: the log goes to the journal"]
        );
        assert_eq!(parse("log_level = 0").unwrap().config.log_level(), "error");
        assert_eq!(parse("log_level = 5").unwrap().config.log_level(), "trace");
    }
}
