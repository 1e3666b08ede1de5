//! The daemon for tests that kill it: at chosen points (`tcmu::kill_points`), and by a poisonous image.

use std::process::ExitCode;

use tcmu_handler::{
    Backstore, Buffer, Capabilities, Config, Error, Handler, Io, OpenRequest, WriteFlags,
};
use tcmu_handler_file::FileHandler;

/// Writing to this place kills the daemon: block 64 of 512 bytes.
const POISON: u64 = 64 * 512;

/// Makes images that read as zeroes and keep nothing.
struct PoisonousHandler;

struct Poisonous {
    size: u64,
}

impl Handler for PoisonousHandler {
    type Backstore = Poisonous;

    fn subtype(&self) -> &str {
        "poisonous"
    }

    fn help(&self) -> &str {
        "anything"
    }

    fn check(&self, _: &Config) -> Result<(), Error> {
        Ok(())
    }

    fn open(&self, request: &OpenRequest) -> Result<Poisonous, Error> {
        Ok(Poisonous { size: request.size })
    }
}

impl Backstore for Poisonous {
    fn capabilities(&self) -> Capabilities {
        Capabilities::new(self.size)
    }

    async fn read(&self, _: &Io, buffer: Buffer<'_>, _: u64) -> Result<(), Error> {
        buffer.fill(0);
        Ok(())
    }

    async fn write(&self, _: &Io, _: Buffer<'_>, offset: u64, _: WriteFlags) -> Result<(), Error> {
        if offset == POISON {
            std::process::abort();
        }
        Ok(())
    }
}

fn main() -> ExitCode {
    let mut handlers = tcmu_runner::Registry::new();
    handlers.add(FileHandler);
    handlers.add(PoisonousHandler);
    tcmu_runner::main(handlers)
}
