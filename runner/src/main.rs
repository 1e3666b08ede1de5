//! The daemon with the project's own handlers.

use std::process::ExitCode;

use tcmu_handler_file::FileHandler;
use tcmu_handler_nbd::NbdHandler;
use tcmu_handler_null::NullHandler;
use tcmu_handler_qcow::QcowHandler;
use tcmu_handler_ram::RamHandler;
use tcmu_handler_rbd::RbdHandler;

fn main() -> ExitCode {
    let mut handlers = tcmu_runner::Registry::new();
    handlers.add(FileHandler);
    handlers.add(NbdHandler);
    handlers.add(NullHandler);
    handlers.add(QcowHandler);
    handlers.add(RamHandler);
    handlers.add(RbdHandler::default());
    handlers.add_layers();
    tcmu_runner::main(handlers)
}
