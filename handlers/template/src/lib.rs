//! A handler to copy: it serves a regular file. See the crate's README.
//!
//! The handler says what a configuration string means and opens images; all that happens to an open
//! image is in `image.rs`.
#![deny(missing_docs)]
#![forbid(unsafe_code)]

mod image;
mod options;

pub use image::Image;

use tcmu_handler::{Config, Handler, OpenRequest, Result};

use crate::options::Options;

/// Shown to people: the first line is what they type, then what it does, then the options.
const HELP: &str = "\
template/PATH[;OPTION=VALUE]...

Serves a regular file. PATH is absolute, so there are two slashes: template//srv/disk.img. The file
must be at least as large as the LUN.

  readonly=on|off  on: serves the file for reading only. The default is off.

Resizing the LUN makes the file larger where it must, and never smaller.
";

/// The handler `template`.
#[derive(Clone, Copy, Debug, Default)]
pub struct TemplateHandler;

impl Handler for TemplateHandler {
    type Backstore = Image;

    fn subtype(&self) -> &str {
        "template"
    }

    fn help(&self) -> &str {
        HELP
    }

    fn check(&self, config: &Config) -> Result<()> {
        Image::look(&Options::of(config)?).map(drop)
    }

    fn open(&self, request: &OpenRequest) -> Result<Image> {
        Image::open(&Options::of(&request.config)?, request.size)
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::path::Path;

    use tcmu_handler::ErrorKind;
    use tcmu_handler::testing::Contract;

    use super::*;

    /// Makes a file for the LUN, and says how to open it.
    fn image(folder: &Path) -> String {
        let path = folder.join("disk.img");
        let file = File::create(&path);
        file.and_then(|file| file.set_len(4 << 20)).unwrap();
        path.display().to_string()
    }

    tcmu_handler::contract_tests!(Contract::new(TemplateHandler, image).read_only(";readonly=on"));

    #[test]
    fn what_cannot_be_opened_is_refused_with_its_reason() {
        let folder = tempfile::tempdir().unwrap();
        let path = image(folder.path());
        let missing = format!("{path}.missing");
        let a_folder = folder.path().display().to_string();
        for (config, size, kind) in [
            (&path, 5 << 20, ErrorKind::OutOfRange),
            (&missing, 1 << 20, ErrorKind::NotFound),
            (&a_folder, 1 << 20, ErrorKind::InvalidConfig),
        ] {
            let request = OpenRequest {
                config: config.parse().unwrap(),
                size,
                block_size: 512,
            };
            let error = TemplateHandler.open(&request).unwrap_err();
            assert_eq!(error.kind(), kind, "{error}");
            assert!(error.to_string().contains(config), "{error}");
        }
    }
}
