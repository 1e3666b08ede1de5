//! `delay`: requests take longer.

use std::future::Future;
use std::time::Duration;

use tcmu_handler::{Io, Operation, Result};

use crate::gate::Gate;
use crate::operations::{Operations, Request};
use crate::options::Options;

pub(crate) const OPTIONS: [&str; 3] = ["ms", "us", "op"];

pub(crate) const HELP: &str = "\
delay/OPTION=VALUE.../SUBTYPE/CONFIG

Lets each request wait before it is executed, however many wait already.

  ms=N, us=N       For so many milliseconds and microseconds.
  op=NAME+NAME...  Only these: read, write, flush, unmap, zero, compare, status. The default is all.

Example: delay/ms=5/op=flush/file//var/lib/x.img
";

#[derive(Debug)]
pub(crate) struct Delay {
    time: Duration,
    operations: Operations,
}

/// What the options say.
pub(crate) fn parse(options: &Options) -> Result<(Duration, Operations)> {
    options.needs_one_of(&["ms", "us"])?;
    let ms: u32 = options.number("ms")?.unwrap_or(0);
    let us: u32 = options.number("us")?.unwrap_or(0);
    let time = Duration::from_millis(ms.into()) + Duration::from_micros(us.into());
    Ok((time, options.operations()?))
}

impl Delay {
    pub(crate) fn new(options: &Options) -> Result<Self> {
        let (time, operations) = parse(options)?;
        Ok(Self { time, operations })
    }
}

impl Gate for Delay {
    async fn pass<T>(
        &self,
        io: &Io,
        request: Request,
        below: impl Future<Output = Result<T>>,
    ) -> Result<T> {
        if self.operations.contains(request.operation) {
            let time = self.time;
            // What it ends with makes no difference.
            let _ = io.submit(Operation::Wait { time }).await;
        }
        below.await
    }
}
