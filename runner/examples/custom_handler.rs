//! A handler of one's own in a runner of one's own: a daemon like tcmu-runner, with all that it has.
//!
//! ```text
//! cargo run --package tcmu-runner --example custom_handler &
//! tcmuctl create x --handler numbers --config any --size 1G --loopback
//! hexdump -C /dev/sdX | head
//! ```

use std::process::ExitCode;

use tcmu_handler::{
    Backstore, Buffer, Capabilities, Config, Error, ErrorKind, Handler, Io, OpenRequest, Result,
    WriteFlags,
};
use tcmu_runner::Registry;

fn main() -> ExitCode {
    let mut handlers = Registry::new();
    handlers.add(Numbers);
    // delay/ms=5/numbers/any and the like.
    handlers.add_layers();
    tcmu_runner::main(handlers)
}

/// Disks on which every 8 bytes are the number of their place, in little endian.
struct Numbers;

impl Handler for Numbers {
    type Backstore = Disk;

    fn subtype(&self) -> &str {
        "numbers"
    }

    fn help(&self) -> &str {
        "numbers/NAME: a read-only disk on which every 8 bytes tell their place; takes no options"
    }

    fn check(&self, config: &Config) -> Result<()> {
        config.allow_options(&[])
    }

    fn open(&self, request: &OpenRequest) -> Result<Disk> {
        self.check(&request.config)?;
        let size = request.size;
        Ok(Disk { size })
    }
}

struct Disk {
    size: u64,
}

impl Backstore for Disk {
    fn capabilities(&self) -> Capabilities {
        Capabilities {
            read_only: true,
            ..Capabilities::new(self.size)
        }
    }

    async fn read(&self, _io: &Io, buffer: Buffer<'_>, offset: u64) -> Result<()> {
        for at in (0..buffer.len()).step_by(8) {
            buffer.copy_from(at, &(offset + at as u64).to_le_bytes());
        }
        Ok(())
    }

    async fn write(&self, _: &Io, _: Buffer<'_>, _: u64, _: WriteFlags) -> Result<()> {
        Err(Error::new(
            ErrorKind::ReadOnly,
            "the numbers are what they are",
        ))
    }
}
