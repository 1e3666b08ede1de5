//! What the configuration string asks for.

use std::path::PathBuf;

use tcmu_handler::{Config, Error, ErrorKind, Result};

/// A checked configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Options {
    /// The file; absolute.
    pub(crate) path: PathBuf,
    /// Take no writes.
    pub(crate) read_only: bool,
}

impl Options {
    pub(crate) fn of(config: &Config) -> Result<Self> {
        config.allow_options(&["readonly"])?;
        let path = PathBuf::from(config.target());
        if !path.is_absolute() {
            return Err(Error::new(
                ErrorKind::InvalidConfig,
                format!(
                    "\"{}\" is not an absolute path: write template//path/to/file, with two slashes",
                    config.target()
                ),
            ));
        }
        Ok(Self {
            path,
            read_only: config.switch("readonly")?.unwrap_or(false),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(config: &str) -> Result<Options> {
        Options::of(&config.parse()?)
    }

    #[test]
    fn takes_what_the_help_says_and_nothing_else() {
        let options = of("/srv/disk.img;readonly=on").unwrap();
        assert!(options.read_only && options.path.ends_with("disk.img"));
        assert!(!of("/srv/disk.img").unwrap().read_only);
        for config in ["", "disk.img", "/x;readonly=perhaps", "/x;size=1"] {
            let error = of(config).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidConfig, "{config}: {error}");
        }
    }
}
