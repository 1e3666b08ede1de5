//! What the configuration string asks for.

use std::path::PathBuf;

use tcmu_handler::{Config, Error, ErrorKind, Result};

/// A checked configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Options {
    /// The image; absolute.
    pub(crate) path: PathBuf,
    /// Go around the page cache; if not said, it depends on the kind of file.
    pub(crate) direct: Option<bool>,
    /// Make a file that is missing or empty.
    pub(crate) create: bool,
    /// Take no writes.
    pub(crate) read_only: bool,
}

impl Options {
    pub(crate) fn of(config: &Config) -> Result<Self> {
        config.allow_options(&["direct", "create", "readonly"])?;
        let path = PathBuf::from(config.target());
        if !path.is_absolute() {
            return Err(Error::new(
                ErrorKind::InvalidConfig,
                format!(
                    "\"{0}\" is not an absolute path: write file//path/to/image, with two slashes",
                    config.target()
                ),
            ));
        }
        let options = Self {
            path,
            direct: config.switch("direct")?,
            create: config.switch("create")?.unwrap_or(false),
            read_only: config.switch("readonly")?.unwrap_or(false),
        };
        if options.create && options.read_only {
            return Err(Error::new(
                ErrorKind::InvalidConfig,
                "create=on and readonly=on exclude each other: there would be nothing to read",
            ));
        }
        Ok(options)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(config: &str) -> Result<Options> {
        Options::of(&config.parse()?)
    }

    #[test]
    fn takes_what_the_help_says() {
        assert_eq!(
            of("/dev/sdx;direct=off;readonly=on").unwrap(),
            Options {
                path: "/dev/sdx".into(),
                direct: Some(false),
                create: false,
                read_only: true,
            }
        );
        let plain = of(r"/a\;b").unwrap();
        assert_eq!(plain.path, PathBuf::from("/a;b"));
        assert_eq!(plain.direct, None);
        assert!(!plain.create && !plain.read_only);
    }

    #[test]
    fn refuses_everything_else() {
        for config in [
            "",
            "disk.img",
            "./disk.img",
            "/x;sync=on",
            "/x;direct=maybe",
            "/x;create=on;readonly=on",
        ] {
            let error = of(config).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidConfig, "{config}: {error}");
        }
    }
}
