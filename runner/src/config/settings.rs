//! The settings in force, and how they come to be others.

use std::path::PathBuf;

use notify::RecommendedWatcher;

use super::Config;
use super::change::{Change, adopt};
use super::file::ConfigFile;
use super::parse::{Parsed, disabled_handlers};
use super::watch::watch;
use crate::log::Log;

/// Why the file is looked at again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cause {
    /// Somebody asked for it: an answer is due.
    Asked,
    /// Something in its folder was saved.
    Noticed,
}

/// The settings in force.
#[derive(Debug)]
pub(crate) struct Settings {
    file: ConfigFile,
    config: Config,
    /// The file's text when it was read last, also if it could not be used.
    text: Option<String>,
    log: Log,
    /// How much the command line says to log, which goes before.
    fixed_log_level: Option<String>,
    /// How much is logged.
    log_level: String,
    watcher: Option<RecommendedWatcher>,
}

impl Settings {
    /// Reads the file that was named, or else the usual one if it is there, and starts logging as it
    /// says, or as `log_level` does.
    ///
    /// # Errors
    /// Names the file, and the line and key that cannot be used.
    pub(crate) fn load(file: Option<PathBuf>, log_level: Option<&str>) -> anyhow::Result<Self> {
        let file = ConfigFile::named_or_usual(file);
        let text = file.text()?;
        let Parsed { config, remarks } = file.parse(text.as_deref().unwrap_or_default())?;
        let settings = Self::start(file, text, config, log_level)?;
        let path = settings.file.path().display();
        match settings.text {
            Some(_) => tracing::info!(file = %path, "settings read"),
            None => tracing::info!("there is no {path}: the defaults hold"),
        }
        warn(&remarks);
        Ok(settings)
    }

    /// As [`load`](Self::load), for whoever has to run whatever the file holds: where it cannot be used,
    /// the defaults hold, and the handlers that it does not enable are not enabled.
    ///
    /// # Errors
    /// If `log_level` is none.
    pub(crate) fn load_if_sound(
        file: Option<PathBuf>,
        log_level: Option<&str>,
    ) -> anyhow::Result<Self> {
        let why = match Self::load(file.clone(), log_level) {
            Ok(settings) => return Ok(settings),
            Err(why) => why,
        };
        let file = ConfigFile::named_or_usual(file);
        let text = file.text().ok().flatten();
        let config = disabled_handlers(text.as_deref().unwrap_or_default());
        let settings = Self::start(file, text, config, log_level)?;
        tracing::error!("the defaults hold: {why:#}");
        Ok(settings)
    }

    fn start(
        file: ConfigFile,
        text: Option<String>,
        config: Config,
        log_level: Option<&str>,
    ) -> anyhow::Result<Self> {
        let holds = log_level.unwrap_or(config.log_level()).to_owned();
        let log = Log::start(&holds)?;
        Ok(Self {
            file,
            config,
            text,
            log,
            fixed_log_level: log_level.map(str::to_owned),
            log_level: holds,
            watcher: None,
        })
    }

    /// What holds.
    pub(crate) fn config(&self) -> &Config {
        &self.config
    }

    /// Calls `changed`, on another thread, when something in the file's folder was saved.
    pub(crate) fn watch(&mut self, changed: impl Fn() + Send + 'static) {
        match watch(self.file.path(), changed) {
            Ok(watcher) => self.watcher = Some(watcher),
            Err(error) => {
                tracing::info!("changes of the settings are read on SIGHUP only: {error:#}");
            }
        }
    }

    /// Reads the file again. An error leaves in force what was; otherwise the new configuration is
    /// returned, if it is another.
    pub(crate) fn reload(&mut self, cause: Cause) -> Option<&Config> {
        let text = match self.file.text() {
            Ok(text) => text,
            Err(error) => {
                self.text = None;
                tracing::error!("the settings stay as they were: {error:#}");
                return None;
            }
        };
        if text == self.text && cause == Cause::Noticed {
            return None;
        }
        let parsed = self.file.parse(text.as_deref().unwrap_or_default());
        self.text = text;
        let Parsed { config, remarks } = match parsed {
            Ok(parsed) => parsed,
            Err(error) => {
                tracing::error!("the settings stay as they were: {error:#}");
                return None;
            }
        };
        warn(&remarks);
        let (config, changes) = adopt(&self.config, config);
        if config.log_level() != self.config.log_level() {
            self.take_log_level(config.log_level());
        }
        for change in &changes {
            match change {
                Change::Made(what) => tracing::info!("{what}"),
                Change::Later(what) => tracing::warn!("{what}"),
            }
        }
        tracing::info!(
            file = %self.file.path().display(),
            changes = changes.len(),
            "settings read again"
        );
        self.config = config;
        Some(&self.config)
    }

    /// How much is logged.
    pub(crate) fn log_level(&self) -> &str {
        &self.log_level
    }

    /// Changes how much is logged until the file says otherwise or the daemon ends; an empty `level`
    /// is the one of the command line or the file.
    ///
    /// # Errors
    /// If it is no level, and no filter of modules.
    pub(crate) fn set_log_level(&mut self, level: &str) -> anyhow::Result<()> {
        let usual = self.fixed_log_level.as_deref();
        let level = match level {
            "" => usual.unwrap_or(self.config.log_level()).to_owned(),
            level => level.to_owned(),
        };
        self.log.set_level(&level)?;
        self.log_level = level;
        Ok(())
    }

    fn take_log_level(&mut self, level: &str) {
        if self.fixed_log_level.is_some() {
            tracing::warn!("--log-level goes before log_level: what is logged stays as it is");
        } else if let Err(error) = self.set_log_level(level) {
            tracing::error!("the log level stays as it was: {error:#}");
        }
    }
}

fn warn(remarks: &[String]) {
    for remark in remarks {
        tracing::warn!("{remark}");
    }
}
