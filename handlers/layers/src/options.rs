//! The configuration of a layer: its own options, and what it lies over.

use std::str::FromStr;

use tcmu_handler::{Config, Error, ErrorKind, Result};

use crate::operations::Operations;

/// `KEY=VALUE/.../SUBTYPE/CONFIG`, taken apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Options {
    layer: &'static str,
    options: Vec<(String, String)>,
    /// The subtype of what lies below.
    pub(crate) subtype: String,
    /// Its configuration.
    pub(crate) config: String,
}

impl Options {
    /// Takes the configuration of `layer` apart, which has the options in `known`.
    pub(crate) fn of(layer: &'static str, known: &[&str], config: &Config) -> Result<Self> {
        let text = config.to_string();
        let mut rest = text.as_str();
        let mut options: Vec<(String, String)> = Vec::new();
        loop {
            let Some((part, behind)) = rest.split_once('/') else {
                return Err(invalid(format!(
                    "\"{text}\" does not say what {layer} lies over: write \
                     {layer}/OPTION=VALUE/SUBTYPE/CONFIG, such as {layer}/file//path"
                )));
            };
            let Some((key, value)) = part.split_once('=') else {
                let subtype = part.to_owned();
                let config = behind.to_owned();
                return Ok(Self {
                    layer,
                    options,
                    subtype,
                    config,
                });
            };
            if part.contains(';') {
                return Err(invalid(format!(
                    "the options of {layer} stand between slashes: \"{}\" instead of \"{part}\"",
                    part.replace(';', "/")
                )));
            }
            if !known.contains(&key) {
                let known = match known.is_empty() {
                    true => "takes none".to_owned(),
                    false => format!("has {}", known.join(", ")),
                };
                return Err(invalid(format!(
                    "unknown option \"{key}\": {layer} {known}"
                )));
            }
            if options.iter().any(|(name, _)| name == key) {
                return Err(invalid(format!(
                    "the option {key} of {layer} is given more than once"
                )));
            }
            options.push((key.to_owned(), value.to_owned()));
            rest = behind;
        }
    }

    /// The value of an option.
    pub(crate) fn text(&self, key: &str) -> Option<&str> {
        let mut options = self.options.iter();
        options
            .find(|(name, _)| name == key)
            .map(|(_, value)| value.as_str())
    }

    /// An option that is a number.
    pub(crate) fn number<T: FromStr>(&self, key: &str) -> Result<Option<T>> {
        self.parsed(key, "a number", |text| text.parse().ok())
    }

    /// An option that is a number from 1 on.
    pub(crate) fn count(&self, key: &str) -> Result<Option<u64>> {
        self.parsed(key, "a number from 1 on", |text| {
            text.parse().ok().filter(|number| *number > 0)
        })
    }

    /// An option that is a number of bytes, perhaps with k, M or G.
    pub(crate) fn bytes(&self, key: &str) -> Result<Option<u64>> {
        self.parsed(key, "a number of bytes such as 4096, 64k, 1M or 2G", bytes)
    }

    /// The operations that the layer deals with: all, unless `op` names some.
    pub(crate) fn operations(&self) -> Result<Operations> {
        let names = "one or more of read+write+flush+unmap+zero+compare+status";
        let parsed = self.parsed("op", names, Operations::parse)?;
        Ok(parsed.unwrap_or(Operations::ALL))
    }

    /// An option as `parse` understands it; `what` says what that is.
    pub(crate) fn parsed<T>(
        &self,
        key: &str,
        what: &str,
        parse: impl FnOnce(&str) -> Option<T>,
    ) -> Result<Option<T>> {
        let Some(text) = self.text(key) else {
            return Ok(None);
        };
        parse(text).map(Some).ok_or_else(|| {
            invalid(format!(
                "the option {key} of {} is {what}, not \"{text}\"",
                self.layer
            ))
        })
    }

    /// Refuses a configuration without any of the options in `needed`.
    pub(crate) fn needs_one_of(&self, needed: &[&str]) -> Result<()> {
        match needed.iter().any(|key| self.text(key).is_some()) {
            true => Ok(()),
            false => Err(invalid(format!(
                "{0} needs an option: {0}/{1}=VALUE/{2}/...",
                self.layer,
                needed.join("=VALUE or "),
                self.subtype
            ))),
        }
    }
}

pub(crate) fn invalid(why: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidConfig, why)
}

fn bytes(text: &str) -> Option<u64> {
    let unit = match text.chars().last()? {
        'k' | 'K' => 1 << 10,
        'M' => 1 << 20,
        'G' => 1 << 30,
        _ => 1,
    };
    let digits = if unit == 1 {
        text
    } else {
        &text[..text.len() - 1]
    };
    digits.parse::<u64>().ok()?.checked_mul(unit)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(text: &str) -> Result<Options> {
        Options::of("delay", &["ms", "op", "size"], &text.parse()?)
    }

    #[test]
    fn takes_its_own_options_off() {
        let options = of("ms=5/op=read+write/file//a b/c=d;direct=on").unwrap();
        assert_eq!(options.number("ms").unwrap(), Some(5));
        assert_eq!(options.subtype, "file");
        assert_eq!(options.config, "/a b/c=d;direct=on");
        let options = of("ram/").unwrap();
        assert_eq!(
            (options.subtype.as_str(), options.config.as_str()),
            ("ram", "")
        );
        assert_eq!(options.number::<u64>("ms").unwrap(), None);
        // What lies below may be a layer too, with the same options.
        let options = of("ms=5/delay/ms=6/file//x").unwrap();
        assert_eq!(options.subtype, "delay");
        assert_eq!(options.config, "ms=6/file//x");
        // A semicolon of the path stays one.
        assert_eq!(
            of(r"file//a\;b;direct=on").unwrap().config,
            r"/a\;b;direct=on"
        );
    }

    #[test]
    fn says_what_is_wrong() {
        for (text, word) in [
            ("", "lies over"),
            ("ms=5", "lies over"),
            ("file", "lies over"),
            (
                "us=5/file//x",
                "unknown option \"us\": delay has ms, op, size",
            ),
            ("ms=5/ms=6/file//x", "more than once"),
            ("ms=5;op=read/file//x", "\"ms=5/op=read\""),
        ] {
            let error = of(text).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidConfig, "{text}");
            assert!(error.to_string().contains(word), "{text}: {error}");
        }
        let options = of("ms=soon/op=reads/size=3T/file//x").unwrap();
        for error in [
            options.number::<u64>("ms").unwrap_err(),
            options.operations().unwrap_err(),
            options.bytes("size").unwrap_err(),
            options.count("ms").unwrap_err(),
        ] {
            assert!(error.to_string().contains(", not \""), "{error}");
        }
    }

    #[test]
    fn bytes_have_units() {
        for (text, number) in [
            ("0", Some(0)),
            ("512", Some(512)),
            ("4k", Some(4096)),
            ("3M", Some(3 << 20)),
            ("2G", Some(2 << 30)),
            ("", None),
            ("k", None),
            ("-1", None),
            ("1.5M", None),
            ("99999999999999999G", None),
            ("3µ", None),
        ] {
            assert_eq!(bytes(text), number, "{text}");
        }
    }
}
