//! Configuration strings: `subtype/rest`, options as `;key=value`.

use std::fmt;
use std::ops::RangeInclusive;
use std::path::Path;
use std::str::FromStr;
use std::sync::Arc;

use crate::{AllowedPaths, Error, ErrorKind};

/// What stands behind the subtype in a configuration string: a target and options.
///
/// `file//var/lib/x.img;direct=on` reaches the handler `file` with the target `/var/lib/x.img` and
/// the option `direct` = `on`. A semicolon that belongs to the target is written `\;`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    target: String,
    options: Vec<(String, String)>,
    allowed: Option<Arc<AllowedPaths>>,
}

/// A configuration string that cannot be taken apart.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// An option without `=`, or without a key.
    #[error("\"{0}\" is not an option of the form key=value")]
    NotAnOption(String),
    /// An option that stands there twice.
    #[error("the option \"{0}\" is given more than once")]
    Repeated(String),
}

impl Config {
    /// The image's path or name: all before the first option.
    pub fn target(&self) -> &str {
        &self.target
    }

    /// The value of the option `key`.
    pub fn option(&self, key: &str) -> Option<&str> {
        self.options
            .iter()
            .find(|(name, _)| name == key)
            .map(|(_, value)| value.as_str())
    }

    /// The same without the option `key`.
    #[must_use]
    pub fn without(&self, key: &str) -> Self {
        let mut config = self.clone();
        config.options.retain(|(name, _)| name != key);
        config
    }

    /// The option `key` as a switch: `on`, `yes`, `true`, `1` or `off`, `no`, `false`, `0`.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidConfig`] for any other value.
    pub fn switch(&self, key: &str) -> Result<Option<bool>, Error> {
        match self.option(key) {
            None => Ok(None),
            Some("on" | "yes" | "true" | "1") => Ok(Some(true)),
            Some("off" | "no" | "false" | "0") => Ok(Some(false)),
            Some(other) => Err(Error::new(
                ErrorKind::InvalidConfig,
                format!("the option {key} is on or off, not \"{other}\""),
            )),
        }
    }

    /// The option `key` as a whole number.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidConfig`] for anything else, and for numbers that are not in `range`.
    pub fn number(&self, key: &str, range: RangeInclusive<u64>) -> Result<Option<u64>, Error> {
        let Some(text) = self.option(key) else {
            return Ok(None);
        };
        match text.parse() {
            Ok(number) if range.contains(&number) => Ok(Some(number)),
            _ => Err(Error::new(
                ErrorKind::InvalidConfig,
                format!(
                    "the option {key} is a number from {} to {}, not \"{text}\"",
                    range.start(),
                    range.end()
                ),
            )),
        }
    }

    /// Restricts what this configuration may lead to; the target must be a path then.
    ///
    /// # Errors
    /// As [`check_path`](Self::check_path), and [`ErrorKind::PermissionDenied`] for a target that is
    /// no absolute path.
    pub fn restrict(&mut self, allowed: Arc<AllowedPaths>) -> Result<(), Error> {
        let path = Path::new(&self.target);
        if !path.is_absolute() {
            return Err(Error::new(
                ErrorKind::PermissionDenied,
                format!(
                    "\"{}\" is not an absolute path, and tcmu-runner's configuration allows only \
                     what is below: {allowed}",
                    self.target
                ),
            ));
        }
        allowed.check(path)?;
        self.allowed = Some(allowed);
        Ok(())
    }

    /// Says whether a file may be opened that the target leads to, such as a backing file. The target
    /// itself has been checked.
    ///
    /// # Errors
    /// As [`AllowedPaths::check`].
    pub fn check_path(&self, path: &Path) -> Result<(), Error> {
        match &self.allowed {
            Some(allowed) => allowed.check(path),
            None => Ok(()),
        }
    }

    /// Refuses options that are not in `known`.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidConfig`], naming the option and those that there are.
    pub fn allow_options(&self, known: &[&str]) -> Result<(), Error> {
        match self
            .options
            .iter()
            .find(|(name, _)| !known.contains(&name.as_str()))
        {
            None => Ok(()),
            Some((name, _)) if known.is_empty() => Err(Error::new(
                ErrorKind::InvalidConfig,
                format!("unknown option \"{name}\": this handler takes none"),
            )),
            Some((name, _)) => Err(Error::new(
                ErrorKind::InvalidConfig,
                format!("unknown option \"{name}\": there are {}", known.join(", ")),
            )),
        }
    }
}

impl FromStr for Config {
    type Err = ConfigError;

    fn from_str(text: &str) -> Result<Self, ConfigError> {
        let mut parts = vec![String::new()];
        let mut characters = text.chars().peekable();
        while let Some(character) = characters.next() {
            match character {
                '\\' if characters.peek() == Some(&';') => {
                    characters.next();
                    push(&mut parts, ';');
                }
                ';' => parts.push(String::new()),
                other => push(&mut parts, other),
            }
        }
        let mut parts = parts.into_iter();
        let target = parts.next().unwrap_or_default();
        let mut options: Vec<(String, String)> = Vec::new();
        for part in parts.filter(|part| !part.is_empty()) {
            let (key, value) = match part.split_once('=') {
                Some((key, value)) if !key.is_empty() => (key.to_owned(), value.to_owned()),
                _ => return Err(ConfigError::NotAnOption(part)),
            };
            if options.iter().any(|(name, _)| *name == key) {
                return Err(ConfigError::Repeated(key));
            }
            options.push((key, value));
        }
        Ok(Self {
            target,
            options,
            allowed: None,
        })
    }
}

fn push(parts: &mut [String], character: char) {
    if let Some(last) = parts.last_mut() {
        last.push(character);
    }
}

impl fmt::Display for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let escaped = |text: &str| text.replace(';', "\\;");
        f.write_str(&escaped(&self.target))?;
        self.options
            .iter()
            .try_for_each(|(key, value)| write!(f, ";{}={}", escaped(key), escaped(value)))
    }
}

impl From<ConfigError> for Error {
    fn from(error: ConfigError) -> Self {
        Error::new(ErrorKind::InvalidConfig, error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn splits_target_and_options() {
        let config: Config = "/a b/c=d.img;direct=on;create=off".parse().unwrap();
        assert_eq!(config.target(), "/a b/c=d.img");
        assert_eq!(config.option("direct"), Some("on"));
        assert_eq!(config.switch("create").unwrap(), Some(false));
        assert_eq!(config.option("other"), None);
    }

    #[test]
    fn numbers_have_a_range() {
        let config: Config = "/x;a=1;b=16;c=17;d=0;e=-1;f=;g=1.5".parse().unwrap();
        let number = |key| config.number(key, 1..=16);
        assert_eq!(number("a").unwrap(), Some(1));
        assert_eq!(number("b").unwrap(), Some(16));
        assert_eq!(number("other").unwrap(), None);
        for key in ["c", "d", "e", "f", "g"] {
            let error = number(key).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidConfig);
            let words = error.to_string();
            let says = format!("the option {key} is a number from 1 to 16");
            assert!(words.starts_with(&says), "{words}");
        }
    }

    #[test]
    fn a_semicolon_can_be_part_of_the_path() {
        let config: Config = r"/a\;b;x=1\;2".parse().unwrap();
        assert_eq!(config.target(), "/a;b");
        assert_eq!(config.option("x"), Some("1;2"));
        assert_eq!(config.to_string(), r"/a\;b;x=1\;2");
        let config: Config = r"/a;x\;y=1".parse().unwrap();
        assert_eq!(config.option("x;y"), Some("1"));
        assert_eq!(config.to_string(), r"/a;x\;y=1");
    }

    #[test]
    fn a_restriction_holds_for_the_target_and_what_it_leads_to() {
        let allowed = Arc::new(AllowedPaths::new(["/dev".into()]));
        let mut config: Config = "/dev/null".parse().unwrap();
        config.check_path(Path::new("/etc/passwd")).unwrap();
        config.restrict(Arc::clone(&allowed)).unwrap();
        config.check_path(Path::new("/dev/zero")).unwrap();
        config.check_path(Path::new("/etc/passwd")).unwrap_err();
        for target in ["/etc/passwd", "pool/image", "", "dev/null"] {
            let mut config: Config = target.parse().unwrap();
            let error = config.restrict(Arc::clone(&allowed)).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::PermissionDenied, "{error}");
        }
    }

    #[test]
    fn refuses_what_it_cannot_mean() {
        assert_eq!(
            "/x;direct".parse::<Config>(),
            Err(ConfigError::NotAnOption("direct".to_owned()))
        );
        assert_eq!(
            "/x;a=1;a=2".parse::<Config>(),
            Err(ConfigError::Repeated("a".to_owned()))
        );
        let config: Config = "/x;fast=1".parse().unwrap();
        let error = config.allow_options(&["direct", "create"]).unwrap_err();
        assert_eq!(
            error.to_string(),
            "unknown option \"fast\": there are direct, create"
        );
        assert!(
            "/x;direct=perhaps"
                .parse::<Config>()
                .unwrap()
                .switch("direct")
                .is_err()
        );
    }
}
