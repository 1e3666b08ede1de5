//! `log`: requests and how they ended, in the log.

use std::future::Future;
use std::time::Instant;

use tcmu_handler::{Extent, Io, Result};

use crate::gate::Gate;
use crate::operations::{Operations, Request};
use crate::options::Options;

pub(crate) const OPTIONS: [&str; 1] = ["op"];

pub(crate) const HELP: &str = "\
log/[op=NAME+NAME.../]SUBTYPE/CONFIG

Writes each request into the daemon's log (level info) when it has ended: its place and length in
bytes, how long it took, and its error.

  op=NAME+NAME...  Only these: read, write, flush, unmap, zero, compare, status. The default is all.

Example: log/op=unmap+zero/file//var/lib/x.img
";

#[derive(Debug)]
pub(crate) struct Log {
    /// What lies below, for the log.
    image: String,
    operations: Operations,
}

impl Log {
    pub(crate) fn new(options: &Options) -> Result<Self> {
        Ok(Self {
            image: format!("{}/{}", options.subtype, options.config),
            operations: options.operations()?,
        })
    }
}

impl Gate for Log {
    async fn pass<T>(
        &self,
        _io: &Io,
        request: Request,
        below: impl Future<Output = Result<T>>,
    ) -> Result<T> {
        if !self.operations.contains(request.operation) {
            return below.await;
        }
        let begun = Instant::now();
        let result = below.await;
        let us = begun.elapsed().as_micros() as u64;
        let (image, operation) = (self.image.as_str(), request.operation.name());
        let Extent { offset, len } = request.extent;
        match &result {
            Ok(_) => tracing::info!(image, operation, offset, len, us, "request"),
            Err(error) => {
                let kind = error.kind();
                tracing::info!(image, operation, offset, len, us, ?kind, %error, "request failed");
            }
        }
        result
    }
}
