//! tcmu-runner with a disk so slow that what takes long can be looked at while it goes on.
#![forbid(unsafe_code)]

use std::process::ExitCode;
use std::thread;
use std::time::Duration;

use tcmu_handler::{
    Backstore, Buffer, Capabilities, Config, Handler, Io, OpenRequest, Result, WriteFlags,
};
use tcmu_handler_ram::Ram;

/// From this size on, a write is one of those that are to take long.
const LARGE: usize = 128 << 10;
/// How long such a write takes for each MiB.
const PER_MIB: Duration = Duration::from_millis(60);

struct SlowHandler;

/// Memory, whose large writes are slow.
struct Slow {
    ram: Ram,
    size: u64,
}

impl Handler for SlowHandler {
    type Backstore = Slow;

    fn subtype(&self) -> &str {
        "slow"
    }

    fn help(&self) -> &str {
        "slow/: memory, whose large writes take their time"
    }

    fn check(&self, config: &Config) -> Result<()> {
        config.allow_options(&[])
    }

    fn open(&self, request: &OpenRequest) -> Result<Slow> {
        Ok(Slow {
            ram: Ram::new(request.size, false),
            size: request.size,
        })
    }
}

impl Backstore for Slow {
    fn capabilities(&self) -> Capabilities {
        Capabilities::new(self.size)
    }

    async fn read(&self, io: &Io, buffer: Buffer<'_>, offset: u64) -> Result<()> {
        self.ram.read(io, buffer, offset).await
    }

    async fn write(
        &self,
        io: &Io,
        buffer: Buffer<'_>,
        offset: u64,
        flags: WriteFlags,
    ) -> Result<()> {
        if buffer.len() >= LARGE {
            let time = PER_MIB.mul_f64(buffer.len() as f64 / (1 << 20) as f64);
            io.blocking(move || thread::sleep(time))
                .await
                .map_err(|error| tcmu_handler::Error::os("wait", error))?;
        }
        self.ram.write(io, buffer, offset, flags).await
    }
}

fn main() -> ExitCode {
    let mut handlers = tcmu_runner::Registry::new();
    handlers.add(SlowHandler);
    tcmu_runner::main(handlers)
}
