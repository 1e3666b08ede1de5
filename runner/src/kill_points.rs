//! The daemon for tests that kill it at chosen points, see `tcmu::kill_points`.

use std::process::ExitCode;

use tcmu_handler_file::FileHandler;

fn main() -> ExitCode {
    let mut handlers = tcmu_runner::Registry::new();
    handlers.add(FileHandler);
    tcmu_runner::main(handlers)
}
