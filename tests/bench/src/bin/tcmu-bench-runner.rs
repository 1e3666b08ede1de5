//! Our runner with its `qcow` handler under the name `qcow2`: it serves beside the C tcmu-runner, which
//! would take every LUN whose configuration begins with `qcow`.
#![forbid(unsafe_code)]

use std::process::ExitCode;

use tcmu_handler::{Config, Handler, OpenRequest, Result};
use tcmu_handler_file::FileHandler;
use tcmu_handler_null::NullHandler;
use tcmu_handler_qcow::{QcowHandler, QcowImage};
use tcmu_runner::Registry;

struct Qcow2;

impl Handler for Qcow2 {
    type Backstore = QcowImage;

    fn subtype(&self) -> &str {
        "qcow2"
    }

    fn help(&self) -> &str {
        QcowHandler.help()
    }

    fn check(&self, config: &Config) -> Result<()> {
        QcowHandler.check(config)
    }

    fn open(&self, request: &OpenRequest) -> Result<QcowImage> {
        QcowHandler.open(request)
    }
}

fn main() -> ExitCode {
    let mut handlers = Registry::new();
    handlers.add(FileHandler);
    handlers.add(NullHandler);
    handlers.add(Qcow2);
    tcmu_runner::main(handlers)
}
