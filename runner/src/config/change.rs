//! What a changed configuration means for the daemon that runs.

use super::{Config, HandlerConfig};

/// What is to be said of a change.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Change {
    /// It holds now.
    Made(String),
    /// It holds from the next start on.
    Later(String),
}

/// Puts into force what can be: returns the configuration that holds then, and what has changed.
pub(super) fn adopt(old: &Config, mut new: Config) -> (Config, Vec<Change>) {
    let mut changes = Vec::new();
    if old.log_level() != new.log_level() {
        let (old, new) = (old.log_level(), new.log_level());
        changes.push(Change::Made(format!(
            "log_level is \"{new}\", and was \"{old}\""
        )));
    }
    for (key, old, new) in [
        ("opening_limit", old.opening_limit(), new.opening_limit()),
        ("offline_after", old.offline_after(), new.offline_after()),
    ] {
        if old != new {
            changes.push(Change::Made(format!(
                "{key} is {} s, and was {} s",
                new.as_secs(),
                old.as_secs()
            )));
        }
    }
    if old.slow_command_ms != new.slow_command_ms {
        changes.push(Change::Made(match new.slow_command_ms {
            Some(limit) => format!("commands that take {limit} ms or longer are logged"),
            None => "slow commands are not logged any more".to_owned(),
        }));
    }
    if old.metrics != new.metrics {
        changes.push(Change::Made(match &new.metrics.listen {
            Some(listen) => format!("metrics.listen is \"{listen}\""),
            None => "metrics.listen is not set any more".to_owned(),
        }));
    }
    let fixed = [
        ("reactors", old.reactors(), new.reactors()),
        (
            "blocking_threads",
            old.blocking_threads(),
            new.blocking_threads(),
        ),
    ];
    for (key, old, new) in fixed {
        if old != new {
            changes.push(Change::Later(format!(
                "{key} stays {old}: it becomes {new} when tcmu-runner is restarted"
            )));
        }
    }
    let default = HandlerConfig::default();
    let subtypes = old.handlers.keys().chain(new.handlers.keys());
    let mut subtypes: Vec<String> = subtypes.cloned().collect();
    subtypes.sort_unstable();
    subtypes.dedup();
    for subtype in subtypes {
        let allowed = |config: &Config| {
            let handler = config.handlers.get(&subtype).unwrap_or(&default);
            handler.allowed_paths.clone()
        };
        let now = allowed(&new);
        if allowed(old) != now {
            let now = now.map_or_else(|| "every path".to_owned(), |paths| format!("{paths:?}"));
            changes.push(Change::Made(format!(
                "handlers.{subtype} may open {now}; LUNs that are served already go on"
            )));
        }
        let enabled = |config: &Config| {
            let handler = config.handlers.get(&subtype).unwrap_or(&default);
            handler.is_enabled()
        };
        if enabled(old) != enabled(&new) {
            let not = if enabled(old) { "" } else { "not " };
            changes.push(Change::Later(format!(
                "handlers.{subtype} stays {not}enabled until tcmu-runner is restarted"
            )));
            let handler = new.handlers.entry(subtype.clone()).or_default();
            handler.enabled = Some(enabled(old));
        }
    }
    let config = Config {
        reactors: old.reactors,
        blocking_threads: old.blocking_threads,
        ..new
    };
    (config, changes)
}

#[cfg(test)]
mod tests {
    use super::super::parse::parse;
    use super::*;

    fn config(text: &str) -> Config {
        parse(text).unwrap().config
    }

    #[test]
    fn says_what_holds_and_what_needs_a_restart() {
        let old = config("reactors = 2\n[handlers.file]\nallowed_paths = [\"/srv\"]");
        let new = config("reactors = 3\nblocking_threads = 8\nlog_level = \"debug\"");
        let (in_force, changes) = adopt(&old, new.clone());
        assert_eq!(
            changes,
            [
                Change::Made("log_level is \"debug\", and was \"info\"".to_owned()),
                Change::Later(
                    "reactors stays 2: it becomes 3 when tcmu-runner is restarted".to_owned()
                ),
                Change::Later(
                    "blocking_threads stays 16: it becomes 8 when tcmu-runner is restarted"
                        .to_owned()
                ),
                Change::Made(
                    "handlers.file may open every path; LUNs that are served already go on"
                        .to_owned()
                ),
            ]
        );
        assert_eq!(in_force.log_level(), "debug");
        assert_eq!(in_force.reactors(), 2);
        assert_eq!(in_force.blocking_threads(), 16);
        // The same file again says again what it does not reach.
        assert_eq!(adopt(&in_force, new).1.len(), 2);
    }

    #[test]
    fn what_is_to_be_seen_changes_at_once() {
        let text = "slow_command_ms = 20\n[metrics]\nlisten = \"127.0.0.1:9361\"";
        let (old, new) = (Config::default(), config(text));
        let made = |text: &str| Change::Made(text.to_owned());
        let (in_force, changes) = adopt(&old, new.clone());
        assert_eq!(in_force, new);
        assert_eq!(
            changes,
            [
                made("commands that take 20 ms or longer are logged"),
                made("metrics.listen is \"127.0.0.1:9361\""),
            ]
        );
        assert_eq!(
            adopt(&new, old).1,
            [
                made("slow commands are not logged any more"),
                made("metrics.listen is not set any more"),
            ]
        );
    }

    #[test]
    fn a_new_restriction_names_the_paths() {
        let new = config("[handlers.file]\nallowed_paths = [\"/srv\", \"/dev/vg0\"]");
        let (in_force, changes) = adopt(&Config::default(), new.clone());
        assert_eq!(
            changes,
            [Change::Made(
                "handlers.file may open [\"/srv\", \"/dev/vg0\"]; LUNs that are served already go on"
                    .to_owned()
            )]
        );
        assert_eq!(in_force, new);
    }

    #[test]
    fn handlers_come_and_go_with_a_restart() {
        let new = config("[handlers.qcow]\nenabled = false");
        let (in_force, changes) = adopt(&Config::default(), new.clone());
        assert_eq!(
            changes,
            [Change::Later(
                "handlers.qcow stays enabled until tcmu-runner is restarted".to_owned()
            )]
        );
        assert!(in_force.handlers["qcow"].is_enabled());
        let (in_force, changes) = adopt(&new, Config::default());
        assert_eq!(
            changes,
            [Change::Later(
                "handlers.qcow stays not enabled until tcmu-runner is restarted".to_owned()
            )]
        );
        assert!(!in_force.handlers["qcow"].is_enabled());
    }

    #[test]
    fn the_default_written_out_is_no_change() {
        let new =
            config("log_level = \"info\"\nblocking_threads = 16\n[handlers.file]\nenabled = true");
        assert_eq!(adopt(&Config::default(), new).1, []);
    }
}
