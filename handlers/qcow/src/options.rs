//! What the configuration string asks for.

use std::path::PathBuf;

use tcmu_handler::{Config, Error, ErrorKind, Result};

/// A checked configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Options {
    /// The image; absolute.
    pub(crate) path: PathBuf,
    /// Take no writes.
    pub(crate) read_only: bool,
    /// Show this snapshot, by name or id.
    pub(crate) snapshot: Option<String>,
    /// Make an image that is missing.
    pub(crate) create: Option<Create>,
    /// Says where the files may lie that the image names.
    pub(crate) config: Config,
}

/// How an image is made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Create {
    pub(crate) cluster_bits: u32,
    pub(crate) extended: bool,
    pub(crate) preallocation: Preallocation,
    /// The image below and its format, as they are to stand in the header.
    pub(crate) backing: Option<(String, String)>,
}

/// What a new image has of the storage that it will need.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Preallocation {
    /// Nothing.
    Off,
    /// All tables; the data are a hole in the file.
    Metadata,
    /// All tables, and space for the data.
    Falloc,
    /// All tables, and zeroes for the data.
    Full,
}

const CREATE: [&str; 5] = [
    "cluster_size",
    "extended_l2",
    "preallocation",
    "backing",
    "backing_format",
];

impl Options {
    pub(crate) fn of(config: &Config) -> Result<Self> {
        let known: Vec<&str> = ["readonly", "snapshot", "create"]
            .into_iter()
            .chain(CREATE)
            .collect();
        config.allow_options(&known)?;
        let path = PathBuf::from(config.target());
        if !path.is_absolute() {
            return Err(no(format!(
                "\"{0}\" is not an absolute path: write qcow//path/to/image.qcow2, with two slashes",
                config.target()
            )));
        }
        let snapshot = config.option("snapshot").map(str::to_owned);
        let read_only = config.switch("readonly")?;
        if snapshot.is_some() && read_only == Some(false) {
            return Err(no("a snapshot can only be read".into()));
        }
        let create = match config.switch("create")?.unwrap_or(false) {
            true => Some(Create::of(config)?),
            false => None,
        };
        let read_only = read_only.unwrap_or(snapshot.is_some());
        if create.is_some() && read_only {
            return Err(no(
                "create=on excludes readonly=on and snapshot: there would be nothing to read"
                    .into(),
            ));
        }
        let idle = CREATE.iter().find(|key| config.option(key).is_some());
        match idle {
            Some(key) if create.is_none() => Err(no(format!("the option {key} needs create=on"))),
            _ => Ok(Self {
                path,
                read_only,
                snapshot,
                create,
                config: config.clone(),
            }),
        }
    }
}

impl Create {
    fn of(config: &Config) -> Result<Self> {
        let extended = config.switch("extended_l2")?.unwrap_or(false);
        let cluster_size = match config.option("cluster_size") {
            None => 64 << 10,
            Some(text) => bytes(text).ok_or_else(|| {
                no(format!(
                    "cluster_size is a number of bytes such as 65536 or 64k, not \"{text}\""
                ))
            })?,
        };
        let smallest: u64 = if extended { 16 << 10 } else { 512 };
        if !cluster_size.is_power_of_two() || !(smallest..=2 << 20).contains(&cluster_size) {
            return Err(no(format!(
                "cluster_size is a power of two from {smallest} to 2M, not {cluster_size}"
            )));
        }
        let preallocation = match config.option("preallocation") {
            None | Some("off") => Preallocation::Off,
            Some("metadata") => Preallocation::Metadata,
            Some("falloc") => Preallocation::Falloc,
            Some("full") => Preallocation::Full,
            Some(other) => {
                return Err(no(format!(
                    "preallocation is off, metadata, falloc or full, not \"{other}\""
                )));
            }
        };
        let backing = match (config.option("backing"), config.option("backing_format")) {
            (None, None) => None,
            (Some(name), Some(format @ ("raw" | "qcow2"))) if !name.is_empty() => {
                Some((name.to_owned(), format.to_owned()))
            }
            _ => {
                return Err(no(
                    "backing=PATH and backing_format=raw or backing_format=qcow2 go together"
                        .into(),
                ));
            }
        };
        if backing.is_some() && preallocation != Preallocation::Off {
            return Err(no(
                "preallocation would hide the backing file: leave one of them out".into(),
            ));
        }
        Ok(Self {
            cluster_bits: cluster_size.trailing_zeros(),
            extended,
            preallocation,
            backing,
        })
    }
}

/// A number of bytes, perhaps with k or M.
fn bytes(text: &str) -> Option<u64> {
    let (digits, unit) = match text.strip_suffix(['k', 'K']) {
        Some(digits) => (digits, 1 << 10),
        None => match text.strip_suffix('M') {
            Some(digits) => (digits, 1 << 20),
            None => (text, 1),
        },
    };
    digits.parse::<u64>().ok()?.checked_mul(unit)
}

fn no(why: String) -> Error {
    Error::new(ErrorKind::InvalidConfig, why)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(config: &str) -> Result<Options> {
        Options::of(&config.parse()?)
    }

    #[test]
    fn takes_what_the_help_says() {
        let plain = of("/x.qcow2").unwrap();
        assert!(!plain.read_only && plain.create.is_none());
        assert!(of("/x.qcow2;snapshot=before").unwrap().read_only);
        let made = of("/x;create=on;cluster_size=2M;extended_l2=on;preallocation=full").unwrap();
        assert_eq!(
            made.create.unwrap(),
            Create {
                cluster_bits: 21,
                extended: true,
                preallocation: Preallocation::Full,
                backing: None,
            }
        );
        let overlay = of("/x;create=on;backing=base.img;backing_format=raw").unwrap();
        assert_eq!(
            overlay.create.unwrap().backing,
            Some(("base.img".into(), "raw".into()))
        );
    }

    #[test]
    fn refuses_everything_else() {
        for config in [
            "",
            "x.qcow2",
            "/x;direct=on",
            "/x;cluster_size=64k",
            "/x;create=on;cluster_size=63k",
            "/x;create=on;cluster_size=256",
            "/x;create=on;cluster_size=4M",
            "/x;create=on;cluster_size=4k;extended_l2=on",
            "/x;create=on;preallocation=some",
            "/x;create=on;backing=/b",
            "/x;create=on;backing=/b;backing_format=vmdk",
            "/x;create=on;backing=/b;backing_format=raw;preallocation=full",
            "/x;create=on;readonly=on",
            "/x;snapshot=a;readonly=off",
            "/x;snapshot=a;create=on",
        ] {
            let error = of(config).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidConfig, "{config}: {error}");
        }
    }
}
