//! `readonly`: an image that nobody changes.

use std::future::Future;

use tcmu_handler::{Capabilities, Error, ErrorKind, Io, Result};

use crate::gate::Gate;
use crate::operations::Request;

pub(crate) const HELP: &str = "\
readonly/SUBTYPE/CONFIG

Shows an image and refuses all changes; the image itself is opened as ever, for writing too. Where
the handler has an option for it, such as readonly=on, use that: it shares the image with others.

Example: readonly/ram/x
";

#[derive(Debug)]
pub(crate) struct ReadOnly;

impl Gate for ReadOnly {
    fn capabilities(&self, below: Capabilities) -> Capabilities {
        Capabilities {
            read_only: true,
            volatile_cache: false,
            unmap: None,
            write_zeroes: false,
            compare_and_write: 0,
            atomic_writes: None,
            ..below
        }
    }

    async fn pass<T>(
        &self,
        _io: &Io,
        request: Request,
        below: impl Future<Output = Result<T>>,
    ) -> Result<T> {
        if request.operation.changes() {
            return Err(Error::new(
                ErrorKind::ReadOnly,
                "the layer readonly takes no changes",
            ));
        }
        below.await
    }
}
