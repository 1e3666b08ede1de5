//! Backstore that stores nothing: the cost of the protocol alone.
//!
//! What is written is forgotten. What is read is zeroes, unless the option `fill=off` leaves the
//! request's memory as it is: then nothing but the way of the command is measured, but the
//! initiator gets to see whatever that memory held before.
#![deny(missing_docs)]
#![forbid(unsafe_code)]

use std::cell::Cell;

use tcmu_handler::{
    Backstore, Buffer, Capabilities, Config, Handler, Io, OpenRequest, Result, WriteFlags,
};

const HELP: &str = "\
null/NAME[;OPTION=VALUE]...

Stores nothing: for measuring what the way to the backstore and back costs. Takes LUNs of every
size. NAME is only a label and may be left out.

  fill=on|off  on (the default): reads return zeroes.
               off: reads leave the request's memory as it is, so that no byte is touched. The
               initiator then sees what the memory held before, which can be other initiators'
               data: use it for benchmarks only.
";

/// The handler `null`.
#[derive(Clone, Copy, Debug, Default)]
pub struct NullHandler;

impl Handler for NullHandler {
    type Backstore = Null;

    fn subtype(&self) -> &str {
        "null"
    }

    fn help(&self) -> &str {
        HELP
    }

    fn check(&self, config: &Config) -> Result<()> {
        fill(config).map(drop)
    }

    fn open(&self, request: &OpenRequest) -> Result<Null> {
        Ok(Null {
            size: Cell::new(request.size),
            fill: fill(&request.config)?,
        })
    }
}

fn fill(config: &Config) -> Result<bool> {
    config.allow_options(&["fill"])?;
    Ok(config.switch("fill")?.unwrap_or(true))
}

/// An image that is not there.
#[derive(Debug)]
pub struct Null {
    size: Cell<u64>,
    fill: bool,
}

impl Backstore for Null {
    fn capabilities(&self) -> Capabilities {
        Capabilities::new(self.size.get())
    }

    async fn read(&self, _io: &Io, buffer: Buffer<'_>, _offset: u64) -> Result<()> {
        if self.fill {
            buffer.fill(0);
        }
        Ok(())
    }

    async fn write(
        &self,
        _io: &Io,
        _buffer: Buffer<'_>,
        _offset: u64,
        _flags: WriteFlags,
    ) -> Result<()> {
        Ok(())
    }

    async fn resize(&self, _io: &Io, size: u64) -> Result<()> {
        self.size.set(size);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use tcmu_handler::ErrorKind;
    use tcmu_handler::testing::{Contract, block_on, contents, io, scattered};

    use super::*;

    tcmu_handler::contract_tests!(Contract::new(NullHandler, |_| "x").stores_nothing());

    fn open(config: &str) -> Result<Null> {
        NullHandler.open(&OpenRequest {
            config: config.parse()?,
            size: 1 << 40,
            block_size: 4096,
        })
    }

    fn read(null: &Null) -> Vec<u8> {
        let buffer = scattered(&[7; 2048], 512);
        block_on(null.read(&io(), buffer.view(), 0)).unwrap();
        contents(&buffer)
    }

    #[test]
    fn old_memory_does_not_leak_unless_asked_for() {
        assert_eq!(read(&open("").unwrap()), [0; 2048]);
        assert_eq!(read(&open("bench;fill=on").unwrap()), [0; 2048]);
        assert_eq!(read(&open("bench;fill=off").unwrap()), [7; 2048]);
    }

    #[test]
    fn has_the_size_of_the_lun() {
        let null = open("").unwrap();
        assert_eq!(null.capabilities().size, 1 << 40);
        block_on(null.resize(&io(), 1 << 50)).unwrap();
        assert_eq!(null.capabilities().size, 1 << 50);
    }

    #[test]
    fn refuses_options_that_it_does_not_have() {
        for config in [";zero=on", ";fill=maybe"] {
            let error = open(config).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidConfig, "{error}");
            let config = config.parse().unwrap();
            assert!(NullHandler.check(&config).is_err());
        }
    }
}
